"""One folder, one run: who has claimed a run folder, and whether any process of that run still lives.

    .lock        a line of JSON for each process of the run (`Process`), of which the first is the claim. Each holds a
                 shared flock on it for as long as it lives, so the kernel knows whether the folder is in use.
    .launcher    the number of the process that watches the run, and its exclusive flock: another may attach once that
                 is gone, while training goes on

Processes of one run know each other by the run's name. A launcher gives it to what it starts (`VARIABLE`), Slurm's is
the job's, and processes that torch.distributed.run started by hand share its rendezvous. The lock is taken before
anything else is written, and whoever is refused has changed nothing.

On a file system that cannot lock (some network and FUSE ones) the claim is safe all the same, because only one process
can create a file. Whether a run lives is then told by its recorded processes, and on their own machine alone.

Cleaning asks before anything is installed, so the standard library has to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pretraining.errors import UsageError
from pretraining.record import run_folder

FILE = ".lock"
LAUNCHER = ".launcher"
VARIABLE = "PLAYBOOK_RUN"
WITHOUT_LOCK_SECONDS = 15 * 60  # a run of before there was a lock counts as running this long after its last write
_TRIES, _WAIT_SECONDS = 20, 0.05  # with whoever asks, or writes a claim, and so holds a file for a moment
_ASKING = 3


@dataclass(frozen=True)
class Process:
    """A process, told apart from any other that ever had its number."""

    run: str  # the name of the run that it is part of
    role: str  # "launcher" or "training"
    host: str  # the name of its machine, or of its container
    boot: str  # the number has a meaning in one start of one kernel
    namespace: str  # and in it in one PID namespace
    number: int
    started: int  # in clock ticks after the boot

    @classmethod
    def this(cls, run: str, role: str, number: int = 0) -> Process:
        """The present process, or another one of this machine."""
        number = number or os.getpid()
        return cls(run, role, socket.gethostname(), *_here(), number, _started(number))

    def is_here(self) -> bool:
        """Whether its number means the same to the present process."""
        return (self.boot, self.namespace) == _here()

    def lives(self) -> bool:
        """Whether it runs, as far as the present process can see."""
        return self.is_here() and 0 < self.started == _started(self.number)

    def send(self, what: signal.Signals) -> bool:
        """Send it a signal, and never to another that has its number by now. Returns whether it was there."""
        try:
            handle = os.pidfd_open(self.number)
        except ProcessLookupError:
            return False
        try:
            if self.lives():  # and so it is the one that the handle stands for
                signal.pidfd_send_signal(handle, what)
                return True
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)
        return False

    def __str__(self) -> str:
        return f"process {self.number}" if self.is_here() else f"process {self.number} on {self.host}"


class _CannotLock(Exception):
    """The file system has no locks; why."""


class Held(contextlib.AbstractContextManager):
    """A lock that this process holds until it ends, or closes it; `problem` says where the file system cannot lock."""

    def __init__(self, file: IO[str], folder: Path, run: str = "", problem: str = "") -> None:
        self.folder, self.run = folder, run
        self.problem = problem and (
            f"the file system of {folder} cannot lock ({problem}): whether this run lives can be told on this machine "
            "alone; do not start another run in its folder"
        )
        self._file = file
        os.register_at_fork(after_in_child=file.close)  # a helper that outlives its training is no training

    def close(self) -> None:
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def new_run() -> str:
    """A name that no other run has."""
    return secrets.token_hex(8)


def run_of_environment() -> str:
    """The name of the run that this process was started for, a new one where it stands alone."""
    if given := os.environ.get(VARIABLE):
        return given
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return "/".join(os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))
    return new_run()


def hold(folder: Path, run: str, role: str) -> Held:
    """Claim a run folder, which exists, for a run, or join that run in it.

    Raises:
        UsageError: another run is in it, or has been. Nothing was changed.
    """
    path = folder / FILE
    if not path.exists():
        _refuse_used(folder, run)
    try:
        file, created = _append_to(path)
        try:
            problem = _join(file, folder, Process.this(run, role), created=created)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise UsageError(f"the run folder {folder} cannot be locked: {error.strerror}") from error
    return Held(file, folder, run, problem)


def _append_to(path: Path) -> tuple[IO[str], bool]:
    """The lock file, and whether this call made it."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        descriptor, created = os.open(path, flags | os.O_EXCL, 0o666), True
    except FileExistsError:
        descriptor, created = os.open(path, flags, 0o666), False
    return os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace"), created


def _join(file: IO[str], folder: Path, process: Process, *, created: bool) -> str:
    """Take the lock and write the process down. Returns why the file system cannot lock, "" where it can."""
    for _ in range(_TRIES):
        try:
            if _lock(file, fcntl.LOCK_EX):  # nobody of an earlier run lives
                _refuse_used(folder, process.run)
                file.truncate(0)
                _write(file, process)
            shared = _lock(file, fcntl.LOCK_SH)  # another may come between: the claim that is read counts
        except _CannotLock as error:
            if created:
                _write(file, process)
            _check_claim(file, folder, process, f"; this file system cannot lock ({error})")
            return str(error)
        if shared:
            _check_claim(file, folder, process)
            return ""
        time.sleep(_WAIT_SECONDS)
    raise UsageError(f"--run-dir {folder} is in use by another process: name another")


def _lock(file: IO[Any], how: int) -> bool:
    """Whether the lock could be had. Raises _CannotLock where the file system has none."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _CannotLock(error.strerror) from error
    return True


def _check_claim(file: IO[str], folder: Path, process: Process, and_so: str = "") -> None:
    present = _read(file)
    if not present or present[0].run != process.run:
        raise UsageError(f"--run-dir {folder} is in use by {_named(present)}{and_so}: name another")
    if (folder / run_folder.OUTCOME).exists():
        raise UsageError(f"--run-dir {folder} already holds a run; a run is never overwritten: name another")
    if not (folder / FILE).exists() or not os.path.samestat(os.fstat(file.fileno()), os.stat(folder / FILE)):
        raise UsageError(f"the run folder {folder} was removed just now: start again")
    if process not in present:
        _write(file, process)


def keep(folder: Path) -> None:
    """Have a finished run count as in use until this process ends: nobody is to remove what it will read."""
    with contextlib.suppress(OSError, _CannotLock):  # as before there were locks
        file = (folder / FILE).open("r", encoding="utf-8")
        if _lock(file, fcntl.LOCK_SH):
            _kept.append(file)


_kept: list[IO[str]] = []


def refuse_taken(folder: Path) -> None:
    """Raise UsageError where a new run could not have the folder, which need not exist."""
    if processes(folder) and (used := in_use(folder)):
        raise UsageError(f"--run-dir {folder} is {used}: name another")
    _refuse_used(folder, "")


def _refuse_used(folder: Path, run: str) -> None:
    if run_folder.holds_run(folder):
        raise UsageError(f"--run-dir {folder} already holds a run; a run is never overwritten: name another")
    job = f"job {_facts(folder / run_folder.JOB).get('job', '')}".strip() + " "
    if (folder / run_folder.JOB).exists() and not run.startswith(job):
        raise UsageError(f"--run-dir {folder} is of {job}of a cluster (make jobs): name another")


def in_use(folder: Path) -> str:
    """Who uses a run folder, in words; "" where nobody does.

    Of a run of before there was a lock, and where the file system cannot lock, what is not known for sure counts as
    use, and the words say so.
    """
    try:
        if _is_free(folder / FILE, fcntl.LOCK_EX):
            return ""
    except FileNotFoundError:
        return _in_use_without_lock(folder)
    except _CannotLock as error:
        return _in_use_by_numbers(folder, str(error))
    return f"in use by {_named(processes(folder))}"


def _is_free(path: Path, how: int) -> bool:
    """Whether nobody else's lock is in the way; asks again, because another may ask at this moment."""
    try:
        file = path.open("r+b")  # over NFS an exclusive lock takes the right to write
    except (PermissionError, IsADirectoryError):  # somebody else's
        file = path.open("rb")
    with file:
        for _ in range(_ASKING):
            if _lock(file, how):
                return True
            time.sleep(_WAIT_SECONDS)
    return False


def processes(folder: Path) -> list[Process]:
    """The recorded processes of the run in a folder, whether they live or not."""
    try:
        with (folder / FILE).open(encoding="utf-8", errors="replace") as file:
            return _read(file)
    except OSError:
        return []


def watch(folder: Path) -> Held:
    """Mark the run as watched by this process. Raises UsageError where another watches it."""
    file, _ = _append_to(folder / LAUNCHER)
    for _ in range(_TRIES):
        try:
            had = _lock(file, fcntl.LOCK_EX)
        except _CannotLock:
            had = watcher(folder) in (None, os.getpid())
        if had:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            return Held(file, folder)
        time.sleep(_WAIT_SECONDS)
    file.close()
    raise UsageError(f"{folder.name} is watched already, by process {watcher(folder) or '?'}")


def watcher(folder: Path) -> int | None:
    """The number of the process that watches a run, None where none does or nobody can tell."""
    try:
        if not _is_free(folder / LAUNCHER, fcntl.LOCK_SH):
            return int((folder / LAUNCHER).read_text().strip() or 0)
    except _CannotLock:
        return next((each.number for each in processes(folder) if each.role == "launcher" and each.lives()), None)
    except (OSError, ValueError):
        pass
    return None


def _read(file: IO[str]) -> list[Process]:
    file.seek(0)
    found = []
    for line in file.read().splitlines():
        with contextlib.suppress(ValueError, TypeError, RecursionError):  # cut off by a full disk, or edited
            each = Process(**json.loads(line))
            if isinstance(each.number, int) and isinstance(each.started, int):
                found.append(each)
    return found


def _write(file: IO[str], process: Process) -> None:
    file.write(json.dumps(asdict(process)) + "\n")
    file.flush()


def _named(present: list[Process]) -> str:
    """Those that live, or whom the lock was last given to where this process cannot tell."""
    told = [each for each in present if each.lives()] or [each for each in present if not each.is_here()]
    return ", ".join(dict.fromkeys(f"{each} ({each.role})" for each in told[:3])) or "another process"


def _in_use_by_numbers(folder: Path, problem: str) -> str:
    present = processes(folder)
    if any(each.lives() for each in present):
        return f"in use by {_named(present)}"
    if (folder / run_folder.OUTCOME).exists() or all(each.is_here() for each in present):
        return ""
    return f"may be in use by {_named(present)}: this file system cannot lock ({problem}), so nobody can tell"


def _in_use_without_lock(folder: Path) -> str:
    """Of a run of before there was a lock: its launcher, its process on this machine, or else the last write."""
    if (launcher := watcher(folder)) is not None:
        return f"in use: process {launcher} watches it"
    if (folder / run_folder.OUTCOME).exists():
        return ""
    environment = _facts(folder / run_folder.ENVIRONMENT)
    host, number = environment.get("host"), environment.get("pid")
    if host == socket.gethostname() and isinstance(number, int):
        with contextlib.suppress(OSError):
            if b"pretrain_llama" in Path(f"/proc/{number}/cmdline").read_bytes():
                return f"in use by process {number}"
        return ""
    written = [folder / name for name in (run_folder.PLAN, run_folder.ENVIRONMENT, run_folder.METRICS, run_folder.LOG)]
    age = time.time() - max((path.stat().st_mtime for path in written if path.exists()), default=0.0)
    if age > WITHOUT_LOCK_SECONDS:
        return ""
    where = f" on {host}" if host else ""
    return f"may be in use{where}: last written {max(0, round(age))} s ago, without an outcome"


def _facts(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a record, {} where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _here() -> tuple[str, str]:
    """Which start of which kernel, and which PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname(), "?"


def _started(number: int) -> int:
    """When a process was started, in clock ticks after the boot; 0 where there is none, or it has ended unread."""
    try:
        state, *rest = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return 0 if state in "ZX" else int(rest[18])
    except (OSError, ValueError, IndexError):
        return 0
