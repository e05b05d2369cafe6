"""An interpreter and a module path for each version of Megatron-Bridge.

From 0.4 it needs Python 3.12, where 0.3.1 wants 3.11: each has the project's own environment of that Python. What a
version pins otherwise lies in a folder of `.cache/versions` before it on the path, so that torch, which alone is
gigabytes, is installed once.
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
MAKE = "from playbook.common.venvs import make; print(make('cpu'))"


class Missing(Exception):
    """A version cannot be had here: which and why."""


def command_of(version: str) -> tuple[str, list[str]]:
    """The interpreter of a version, and the folders that go before its own packages.

    Raises:
        Missing: no Python for it, or its packages cannot be installed.
    """
    wanted = "3.11" if version == OWN else "3.12"
    python = _interpreter(wanted)
    if python is None:
        raise Missing(f"Megatron-Bridge {version} needs Python {wanted}: none on PATH or under ~/.pyenv")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:  # two test runs at once: the second waits and finds it done
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _environment(python, wanted), [] if version == OWN else [str(_layer(python, version))]


def _interpreter(wanted: str) -> str | None:
    """A Python of that version that runs: this one, on PATH, or pyenv's."""
    if _is_own(wanted):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [shutil.which(f"python{wanted}"), *sorted(pyenv.glob(f"{wanted}*/bin/python{wanted}"), reverse=True)]
    return next((str(each) for each in found if each and _runs(each)), None)


def _is_own(wanted: str) -> bool:
    return ".".join(map(str, sys.version_info[:2])) == wanted


def _runs(python: str | Path) -> bool:
    """A shim of pyenv is there also where its version is not."""
    return subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode == 0


def _environment(python: str, wanted: str) -> str:
    """The interpreter of the project's CPU environment of that Python; `.venv/cpu` goes on leading to where it did."""
    if _is_own(wanted):
        return sys.executable
    return _run([python, "-c", MAKE], PYTHONPATH=str(PROJECT / "scripts")).splitlines()[-1]


def _layer(python: str, version: str) -> Path:
    """The folder of one version."""
    folder = CACHE / version
    pins = REQUIREMENTS / "versions" / f"{version}.txt"
    for _ in _unless_made(folder, pins):
        _run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "-r", str(pins)])
    return folder


def engine_sources(version: str) -> Path:
    """The Python sources of a Transformer Engine; its libraries are packages of their own, and not needed.

    Raises:
        Missing: they cannot be installed.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    folder, pins = CACHE / f"transformer-engine-{version}", CACHE / f"transformer-engine-{version}.txt"
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pins.write_text(f"transformer-engine=={version}\n")
        for _ in _unless_made(folder, pins):
            _run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--no-deps",
                    "--target",
                    str(folder),
                    "-r",
                    str(pins),
                ]
            )
    return folder


def _unless_made(folder: Path, pins: Path) -> Iterator[None]:
    """Once where `folder` was not made from these pins, which it is afterwards."""
    stamp, wanted = folder / ".pins", hashlib.sha256(pins.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    yield
    stamp.write_text(wanted)


def _run(words: list[str], **environment: str) -> str:
    try:
        ended = subprocess.run(
            words, env=os.environ | environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"{' '.join(words)}: not done within {SECONDS} s") from None
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or [ended.stderr[-300:]]
        raise Missing(f"{' '.join(words)}: {said[-1]}")
    return ended.stdout
