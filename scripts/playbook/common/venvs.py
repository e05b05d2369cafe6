"""The project's virtual environments: what each holds, and making it so once.

An environment remembers a hash of every requirements file it was made from, and is brought up to date when one
changes. Each Python has its own, `.venv/cpu-3.12`; `.venv/cpu` leads to the one that was last asked for. Only the
standard library is used: this runs before anything is installed.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from playbook import PROJECT
from playbook.common import torch_index
from playbook.common.failures import Failure, last_line
from pretraining.record import files

VENVS = PROJECT / ".venv"
REQUIREMENTS = PROJECT / "requirements"

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

# name: (folder, requirements files in order, what to say while it takes its time)
ENVIRONMENTS = {
    "host": ("host", ("host.txt",), "the launcher's packages, 0.2 GB"),
    "cpu": ("cpu", ("cpu.txt", "megatron.txt"), "PyTorch and Megatron-Bridge for the CPU, a minute or two"),
    "cluster": ("cluster", ("cluster.txt",), "NeMo-Run and its packages, half a gigabyte, a minute or two"),
    "test": ("cpu", ("cpu.txt", "megatron.txt", "host.txt", "dev.txt"), "the CPU runtime and the test tools"),
}
_STAMP = ".installed.json"
SAY_EVERY_SECONDS = 15.0


class SetupError(Failure):
    who = "setup"


def folder_of(name: str) -> Path:
    """Where environment `name` of this Python is, made or not."""
    return VENVS / f"{ENVIRONMENTS[name][0]}-{VERSION}"


def python_of(name: str) -> Path:
    """The interpreter of environment `name`, made or not."""
    return folder_of(name) / "bin" / "python"


def ensure(name: str) -> Path:
    """Make environment `name` of this Python, or bring it up to date, and have `.venv/NAME` lead to it.

    Returns its interpreter. Raises SetupError: no venv module, no network, no space; with what pip said last.
    """
    python = make(name)
    link = VENVS / ENVIRONMENTS[name][0]
    if not link.is_symlink() or os.readlink(link) != folder_of(name).name:
        beside = files.beside(link)
        beside.symlink_to(folder_of(name).name)
        beside.replace(link)
    return python


def make(name: str) -> Path:
    """As `ensure`, and leave `.venv/NAME` as it is."""
    _, parts, what = ENVIRONMENTS[name]
    folder, link = folder_of(name), VENVS / ENVIRONMENTS[name][0]
    wanted = {file: _fingerprint(file) for file in parts}
    _forget_addresses(folder / _STAMP)
    if _missing(folder, wanted) or not link.is_symlink():
        try:
            VENVS.mkdir(exist_ok=True)
            with (VENVS / f".{folder.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once: the second waits and finds it done
                _adopt(link)
                missing = _missing(folder, wanted)
                if missing:
                    print(f"Setting up {folder.relative_to(PROJECT)}: {what} ...", flush=True)
                    _make(folder, missing, wanted)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise SetupError(
                f"{error.filename or VENVS} cannot be written ({error.strerror}), and the packages go there: work in "
                "a clone of your own (git clone), or have its owner do this once; a DRY_RUN=1 needs no set-up"
            ) from error
    return python_of(name)


def for_a_dry_run(name: str) -> Path:
    """The interpreter of environment `name` where it is there, else the one that runs this: nothing is set up."""
    made = (folder for folder in (folder_of(name), VENVS / ENVIRONMENTS[name][0]) if _installed(folder))
    return next((folder / "bin" / "python" for folder in made), Path(sys.executable))


def _adopt(old: Path) -> None:
    """Give an environment its own folder that lies where the link goes, from when all Pythons had one."""
    if not old.is_dir() or old.is_symlink():
        return
    try:
        python = json.loads((old / _STAMP).read_text())["python"]
        own = old.rename(old.with_name(f"{old.name}-{'.'.join(map(str, python))}"))
    except (OSError, ValueError, TypeError, KeyError):  # never finished, damaged, or there is another
        shutil.rmtree(old)
    else:
        old.symlink_to(own.name)


def fingerprint(name: str) -> str:
    """A short hash of what environment `name` is made from: two runs with the same have the same packages."""
    content = b"".join((REQUIREMENTS / file).read_bytes() for file in ENVIRONMENTS[name][1])
    return hashlib.sha256(content).hexdigest()[:12]


def _fingerprint(file: str) -> str:
    """Of the file, and of the index that torch was asked for from, after a space: its address may hold a password."""
    index = os.environ.get("TORCH_INDEX", "") if file == "cpu.txt" else ""
    of_index = hashlib.sha256(index.encode()).hexdigest()[:12] if index else ""
    return f"{hashlib.sha256((REQUIREMENTS / file).read_bytes()).hexdigest()} {of_index}".strip()


def _forget_addresses(stamp: Path) -> None:
    """Stamps of earlier versions hold TORCH_INDEX as it was, with its password."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        made = json.loads(stamp.read_text())
        if any("://" in mark for mark in made["files"].values()):
            made["files"] = {file: mark.split(" ")[0] for file, mark in made["files"].items()}
            files.write_text(stamp, json.dumps(made))


def _installed(folder: Path) -> dict[str, str] | None:
    """The files that the environment was made from, each with its fingerprint; None where it must be made anew."""
    try:
        stamp = json.loads((folder / _STAMP).read_text())
        if stamp["python"] == list(sys.version_info[:2]) and (folder / "bin" / "python").exists():
            whole = set(stamp.get("packages", ["pip"])) <= _packages(folder)
            return dict(stamp["files"]) if whole else None
    except (OSError, ValueError, TypeError, KeyError):  # never finished, or damaged
        pass
    return None


def _packages(folder: Path) -> set[str]:
    """The folders that can be imported from there."""
    there = (folder / "lib" / f"python{VERSION}" / "site-packages").glob("*")
    return {entry.name for entry in there if entry.is_dir() and entry.suffix != ".dist-info"} - {"__pycache__"}


def _missing(folder: Path, wanted: dict[str, str]) -> list[str]:
    """The files of `wanted` that the environment was not made from, in order."""
    have = _installed(folder) or {}
    # Without TORCH_INDEX any torch of the right version will do, also one from an index named earlier.
    return [file for file, mark in wanted.items() if mark not in (have.get(file), have.get(file, "").split(" ")[0])]


def _make(folder: Path, missing: list[str], wanted: dict[str, str]) -> None:
    stamp = folder / _STAMP
    have = _installed(folder)
    if have is None:
        _create(folder)
        have = {}
    log = folder.with_name(f"{folder.name}.log")
    with log.open("w", encoding="utf-8") as output:
        for file in missing:
            flags = ["--no-deps"] if file == "megatron.txt" else []
            if file == "cpu.txt":
                _torch(folder, output, log)
            _pip(folder, output, log, *flags, "-r", str(REQUIREMENTS / file))
            have[file] = wanted[file]
            made = {"python": list(sys.version_info[:2]), "files": have, "packages": sorted(_packages(folder))}
            files.write_text(stamp, json.dumps(made))


def _torch(folder: Path, output: IO[str], log: Path) -> None:
    """Install torch alone, where it is to come from another index than the rest."""
    wanted = torch_index.pin(REQUIREMENTS / "cpu.txt")
    if wanted is None:
        return
    source = torch_index.choose(folder / "bin" / "python")
    print(f"  PyTorch: {source.why}", flush=True)
    if source.url is None:
        return
    try:  # by force: the version is the same on every index, and pip would keep a CUDA build that is there
        _pip(folder, output, log, "--no-deps", "--force-reinstall", wanted, index=source.url)
    except SetupError:
        if not source.by_itself:
            raise
        print(f"  PyTorch: {source.url} did not give it; the plain wheel, up to {torch_index.LARGE}", flush=True)


def _create(folder: Path) -> None:
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"{sys.executable} cannot make virtual environments: install them "
            f"(Debian, Ubuntu: apt install python{VERSION}-venv) or name another Python: make PYTHON=python3.12 ..."
        )
    shutil.rmtree(folder, ignore_errors=True)  # a broken or outdated environment of ours
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=False)
    if made.returncode:
        raise SetupError(f"{sys.executable} -m venv failed: {last_line(made.stdout + made.stderr)}")


def _pip(folder: Path, output: IO[str], log: Path, *arguments: str, index: str = "") -> None:
    """Install; `index`, whose address may hold a password, is no argument: everybody sees those."""
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    began = log.stat().st_size
    with subprocess.Popen(
        [*command, "--progress-bar", "off", "--no-color", *arguments],
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **({"PIP_INDEX_URL": index} if index else {})},
    ) as pip:
        try:
            _follow(pip, log)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        text = log.read_bytes()[began:].decode("utf-8", errors="replace")
        errors = [line for line in text.splitlines() if line.startswith("ERROR")]
        raise SetupError(
            f"pip could not install {' '.join(arguments[-1:])}: {errors[-1] if errors else last_line(text)}\n"
            f"       Check the network and the disk, then run the same command again; all of it is in {log}"
        )


def _follow(pip: subprocess.Popen[bytes], log: Path) -> None:
    """Show what pip does and for how long, until it ends: on a terminal a line that moves, else one now and then."""
    moves = sys.stdout.isatty()
    began = said = time.monotonic()
    shown = 0
    while pip.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            pip.wait(0.25)
        now = time.monotonic()
        if moves or now - said > SAY_EVERY_SECONDS:
            doing = last_line(log.read_text(encoding="utf-8", errors="replace")[-2000:], "starting")
            line = f"  {now - began:3.0f} s  {doing}"[: shutil.get_terminal_size((120, 0)).columns - 1]
            print(f"\r{line:<{shown}}" if moves else line, end="" if moves else "\n", flush=True)
            said, shown = now, len(line)
    if moves and shown:
        print(f"\r{'':<{shown}}\r", end="", flush=True)


def main(arguments: list[str]) -> int:
    """`setup.py NAME`: exit code 0, 1 where it failed, 130 where it was interrupted."""
    if len(arguments) != 1 or arguments[0] not in ENVIRONMENTS:
        print(f"setup: name one of {', '.join(ENVIRONMENTS)}", file=sys.stderr)
        return 2
    try:
        ensure(arguments[0])
    except (SetupError, OSError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
