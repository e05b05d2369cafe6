"""An interpreter and a module path for each version of Megatron-Bridge, made once under `.cache/versions`.

From 0.4 it needs Python 3.12, which need not be the project's own. One virtual environment holds what all versions
share (torch alone is gigabytes); each version and what it pins otherwise lies in a folder before it on the path.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
REQUIREMENTS = PROJECT / "requirements"
CACHE = PROJECT / ".cache" / "versions"
OWN = "0.3.1"  # what requirements/megatron.txt installs for Python 3.11
NEWER = tuple(sorted(path.stem for path in (REQUIREMENTS / "versions").glob("*.txt")))
SECONDS = 900


class Missing(Exception):
    """A version cannot be had here: which and why."""


def python312() -> Path | None:
    """A Python 3.12 that runs: this one, on PATH, or pyenv's."""
    if sys.version_info[:2] == (3, 12):
        return Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [shutil.which("python3.12"), *sorted(pyenv.glob("3.12*/bin/python3.12"), reverse=True)]
    return next((Path(each) for each in found if each and _runs(each)), None)


def _runs(python: str | Path) -> bool:
    """A shim of pyenv is there also where its version is not."""
    code = "import sys, venv, ensurepip; raise SystemExit(sys.version_info[:2] != (3, 12))"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def command_of(version: str) -> tuple[str, list[str]]:
    """The interpreter of a version, and the folders that go before its own packages.

    Raises:
        Missing: no Python for it, or its packages cannot be installed.
    """
    if version == OWN:
        if sys.version_info[:2] != (3, 11):
            raise Missing(f"Megatron-Bridge {OWN} is tested with Python 3.11, and this is {sys.version.split()[0]}")
        return sys.executable, []
    python = python312()
    if python is None:
        raise Missing(f"Megatron-Bridge {version} needs Python 3.12: none on PATH or under ~/.pyenv")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:  # two test runs at once: the second waits and finds it done
        fcntl.flock(lock, fcntl.LOCK_EX)
        return str(_base(python)), [str(_layer(python, version))]


def _base(python: Path) -> Path:
    """The environment that all versions share; the project's own where that is a 3.12."""
    if sys.version_info[:2] == (3, 12):
        return Path(sys.executable)
    folder = CACHE / "base"
    made = folder / "bin" / "python"
    for _ in _unless_made(folder, REQUIREMENTS / "cpu.txt"):
        print(f"\ninstalling {folder.relative_to(PROJECT)}: PyTorch for Python 3.12, gigabytes ...", flush=True)
        _run([python, "-m", "venv", folder])
        _run([made, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS / "cpu.txt"])
    return made


def _layer(python: Path, version: str) -> Path:
    """The folder of one version."""
    folder = CACHE / version
    pins = REQUIREMENTS / "versions" / f"{version}.txt"
    for _ in _unless_made(folder, pins):
        _run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "-r", pins])
    return folder


def _unless_made(folder: Path, pins: Path) -> Iterator[None]:
    """Once where `folder` was not made from these pins, which it is afterwards."""
    stamp, wanted = folder / ".pins", hashlib.sha256(pins.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    yield
    stamp.write_text(wanted)


def _run(words: list[str | Path]) -> None:
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Missing(f"{' '.join(map(str, words))}: not done within {SECONDS} s") from None
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or [ended.stderr[-300:]]
        raise Missing(f"{' '.join(map(str, words))}: {said[-1]}")
