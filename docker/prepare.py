"""Runs once, as root, while the image is built: installs the pins, and builds Megatron-Core's dataset helper.

The helper is C++ that Megatron builds in its own folder at the first start, which an ordinary user cannot.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Fails the build where pip or the compiler does."""
    pins = Path(__file__).with_name("pins.txt")
    if any(line.strip() and not line.startswith("#") for line in pins.read_text().splitlines()):
        pip = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--no-deps", "-r", str(pins)]
        subprocess.run(pip, check=True)
    for core in _megatron_core():
        helpers = Path(core) / "datasets"
        if (helpers / "Makefile").exists() and not list(helpers.glob("helpers_cpp*.so")):
            subprocess.run(["make", "-C", str(helpers)], check=True)


def _megatron_core() -> list[str]:
    """Its folders, also of an editable install; none where the image has no Megatron."""
    try:
        found = importlib.util.find_spec("megatron.core")
    except ModuleNotFoundError:
        return []
    return list(found.submodule_search_locations or []) if found else []


if __name__ == "__main__":
    main()
