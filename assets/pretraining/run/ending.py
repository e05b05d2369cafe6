"""How a run begins and ends: its folder, its signals, and the verdict on how it went."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from pretraining import nemo_images, packages
from pretraining.errors import FULL_DISK, Diverged, EndedEarly, UsageError, WrongKernels
from pretraining.megatron.plugin import located
from pretraining.record import ends, lock, run_folder
from pretraining.record.ends import Strength
from pretraining.record.run_folder import Peak, Verdict
from pretraining.request.flags import PROJECT, RUNS
from pretraining.request.precisions import PRECISIONS
from pretraining.request.recipe import recipe_checks
from pretraining.request.settings import Settings
from pretraining.run.signals import SaveFirst

if TYPE_CHECKING:
    from megatron.bridge.training.config import TrainingConfig

    from pretraining.run.device_monitor import Sampler
    from pretraining.run.telemetry import Telemetry

INTERRUPTED = 130
PATIENCE_SECONDS = 1.0  # an interrupted run's, with who reads its output
REPEAT_SECONDS = 0.5
STUCK_SECONDS = 20.0  # with torch.distributed.run's own, below the 30 s in which a dead rank ends a run
_TRACEBACK_LINES = 40

_ANOTHER_SHAPE = "Global shape mismatch"  # of Megatron-Core's loading: a tensor of the checkpoint and the run's
_ANOTHER_LAYOUT = "resume with the settings of the run that saved it, those of its config.yaml"

_came: list[str] = []  # the signal that is ending this process


class Interrupted(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C is."""


def interrupt_on_sigterm() -> None:
    """End on SIGTERM as on Ctrl-C: with a verdict, in the main thread, at the next bytecode.

    A thread that waits in C for a partner that is gone has no next bytecode: such a process ends without a verdict
    after STUCK_SECONDS.
    """
    _end_where_stuck()

    def handler(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):  # one is enough: a second must not interrupt the verdict
            signal.signal(each, signal.SIG_IGN)
        name = signal.Signals(number).name
        _came.append(name)

        def again(*_: object) -> None:
            raise Interrupted(name)

        # An exception that a signal raises inside a destructor is swallowed: raise it until somebody caught it.
        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, REPEAT_SECONDS, REPEAT_SECONDS)
        raise Interrupted(name)

    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)  # also where the launcher was started in the background, which ignores it


def _end_where_stuck() -> None:
    """Watch for a signal that Python never comes to handle. The C half of its handler writes to a socket at once."""
    told, tell = socket.socketpair()
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.detach(), warn_on_full_buffer=False)
    alive = threading.Event()
    answer = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: alive.set() or 0)

    def watch() -> None:
        while number := told.recv(1)[0]:  # also those of loaders that end: a socket without a reader is an error
            if number in (signal.SIGTERM, signal.SIGINT) and not alive.is_set():
                ctypes.pythonapi.Py_AddPendingCall(answer, None)  # in the main thread, whoever handles the signal
                if not alive.wait(STUCK_SECONDS):
                    os._exit(INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


def caught(error: BaseException) -> BaseException:
    """`error` ends the run: nothing raises from a signal any more. Returns what ended it: a signal, if one came.

    Code that catches everything gives what a signal raised another type: Python 3.11's `__set_name__` makes it a
    RuntimeError, an extension that imports while it loads an ImportError.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    came = _came.pop() if _came else ""
    return Interrupted(came) if came and not isinstance(error, KeyboardInterrupt) else error


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is visible to this process, without importing torch where there is plainly none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return torch.cuda.is_available()


def check_capability(chosen: Settings) -> None:
    """Raise UsageError where this GPU or engine has no kernels for the precision, before Megatron is imported."""
    import torch

    capability, row, emulated = torch.cuda.get_device_capability(), chosen.precision, bool(chosen.emulate)
    version = f"{capability[0]}.{capability[1]}"
    if not row.trains_on(capability, emulate=emulated):
        also = ", or --emulate" if row.trains_on(capability, emulate=True) else ""
        works = [name for name, each in PRECISIONS.items() if each.trains_on(capability)]
        raise UsageError(
            f"{row.name} needs {row.needs}; this is {torch.cuda.get_device_name()} with {version}: it trains in "
            f"{', '.join(works) or 'none of the precisions here'}{also}"
        )
    if row.fp4 and not emulated:
        _require_engine(packages.NVFP4, row.name)
    if row.is_probed(capability, emulate=emulated):
        also = ", or --emulate (EMULATE=1)" if row.fp4 else ""
        _require_engine(packages.PROBED, f"{row.name} on compute capability {version}", also)
    if switch := chosen.late_switch:
        switch.check(row, capability)
    if not emulated:
        for words, release in recipe_checks.later_engine(chosen.nvfp4, switch).items():
            also = "NVFP4 with --emulate (EMULATE=1) needs no such kernels"
            if words == f"--switch {switch}":
                also = f"--switch {switch._replace(to='bf16')} works, and {also}"
            _require_engine(release, words, f"; {also}")


def _require_engine(least: tuple[int, ...], what: str, also: str = "") -> None:
    """Raise UsageError where this Transformer Engine is older than `what` needs: `also` is what else would do."""
    if not packages.engine_has(least):
        found = packages.installed().get("transformer-engine", "none")
        raise UsageError(
            f"{what} needs Transformer Engine {packages.dotted(least)}, and {found} is here: "
            f"{nemo_images.with_engine(least)}{also}"
        )


def claim_run_dir(chosen: Settings) -> lock.Held:
    """Make the run folder, or take the one the launcher made, and lock it. One process alone may name a new one.

    Raises UsageError where the folder holds another run, or cannot be made.
    """
    folder = chosen.run_dir
    if folder is None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UsageError("several processes need one run folder: give --run-dir")
        folder = PROJECT / RUNS / run_folder.run_name(chosen.precision.name, chosen.model.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--run-dir {folder}: {error.strerror}") from error
    return lock.hold(folder, lock.run_of_environment(), "training")


def settled(code: int) -> None:
    """The outcome is written and output waits for its reader: a signal now ends the process with the outcome's code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: leave(code))


def leave(code: int) -> NoReturn:
    """Exit at once. A plain return can hang: collectives and loader threads wait for partners that are gone."""
    for child in multiprocessing.active_children():  # checkpoint writers, which only an orderly exit would end
        child.kill()
    os._exit(code)


@contextlib.contextmanager
def asked_for(train: TrainingConfig, run: RunEnd) -> Iterator[None]:
    """Within: the exit by which Megatron-Bridge ends where a field of its config says so raises EndedEarly."""
    try:
        yield
    except SystemExit as end:
        done = run.telemetry.iterations if run.telemetry else 0
        at, minutes = train.exit_interval, train.exit_duration_in_mins
        asked = "train.exit_interval" if at and done % at == 0 else "train.exit_duration_in_mins" if minutes else ""
        if end.code or not asked or run.saving.signal or run.saving.problem:
            raise
        raise EndedEarly(done, train.train_iters, asked) from end


class RunEnd:
    """Turns the end of a training into its outcome. Rank 0 reports a success, any rank its failure."""

    def __init__(self, folder: Path, rank: int, plugin: Path | None = None) -> None:
        self.folder, self.rank = folder, rank
        self.plugin = plugin  # the user's file, whose line a cause names
        # Whether torch.distributed.run started other processes beside this one.
        self.partners = int(os.environ.get("WORLD_SIZE", 1)) > 1 and "TORCHELASTIC_RUN_ID" in os.environ
        self.telemetry: Telemetry | None = None  # set once training is about to start
        self.sampler: Sampler | None = None  # of this machine, where this process started it
        self.saving = SaveFirst()
        self._began = time.monotonic()

    def succeeded(self) -> int:
        """Write the outcome of a completed training. Returns 0."""
        if self.rank == 0:
            self._write(Verdict.SUCCEEDED, "", 0)
        return 0

    def failed(self, error: BaseException) -> int:
        """Write the outcome that `error` stands for. Returns the exit code."""
        verdict, cause, code = self._saved_first() if self.ended_by_saving(error) else classify(error, self.folder)
        if self.plugin and not isinstance(error, UsageError) and (line := located(error, self.plugin)):
            cause = f"{line}: {cause}"
        if isinstance(error, Interrupted) and str(error) == "SIGTERM" and self.partners:
            # torch.distributed.run also ends so the partners of a process that died: the launcher knows which it was.
            print("pretrain_llama.py: ended by SIGTERM", file=sys.stderr, flush=True)
            return code
        if self.partners and ends.raised(str(error))[0].strength is Strength.KILLED:
            # Whoever left has a verdict of its own, or was killed, which torch.distributed.run sees.
            print(f"pretrain_llama.py: rank {self.rank} lost a partner: {cause}", file=sys.stderr, flush=True)
            return code
        if self.partners and code not in (2, INTERRUPTED):
            cause = f"rank {self.rank} on {socket.gethostname()}: {cause}"
        print(f"pretrain_llama.py: {verdict}: {cause}", file=sys.stderr, flush=True)
        try:
            self._write(verdict, cause, code, error)
        except OSError as full:
            print(f"pretrain_llama.py: the outcome could not be written: {full}", file=sys.stderr, flush=True)
        return code

    def ended_by_saving(self, error: BaseException) -> bool:
        """Whether `error` is Megatron-Bridge's end after a signal: the checkpoint is written."""
        return self.saving.active and isinstance(error, SystemExit) and not error.code

    def _saved_first(self) -> tuple[Verdict, str, int]:
        done = self.telemetry.iterations if self.telemetry else 0
        saved = f"saved at iteration {done}: --resume {self.folder} (RESUME=) continues"
        if self.saving.problem:
            verdict, cause, code = classify(self.saving.problem, self.folder)
            return verdict, f"{cause}; {saved}", code
        by = self.saving.signal or "a signal to another of its processes"
        return Verdict.INTERRUPTED, f"interrupted by {by}, {saved}", INTERRUPTED

    def _write(self, verdict: Verdict, cause: str, code: int, error: BaseException | None = None) -> None:
        telemetry = self.telemetry
        details = {
            "seconds": round(time.monotonic() - self._began, 3),
            "iterations": telemetry.iterations if telemetry else 0,
            "peak_memory": self._peak_memory(),
        }
        if self.sampler and self.sampler.core_share is not None:
            details["sampling_core_share"] = self.sampler.core_share
        if telemetry and telemetry.slowest_rank:
            details["slowest_rank"] = telemetry.slowest_rank
        if error is not None and self.partners and code not in (2, INTERRUPTED):
            lines = "".join(traceback.format_exception(error)).splitlines()
            details |= {"rank": self.rank, "host": socket.gethostname(), "traceback": lines[-_TRACEBACK_LINES:]}
        run_folder.write_outcome(self.folder, verdict, cause=cause, exit_code=code, details=details)

    def _peak_memory(self) -> dict[str, Any] | None:
        """What `run_folder.write_outcome` says, None where nothing is known."""
        sampled = self.sampler.stop() if self.sampler else {}
        known = (self.telemetry.peaks if self.telemetry else {}) | sampled
        kind = next((kind for kind in Peak if kind in known), None)
        processes = int(os.environ.get("WORLD_SIZE", 1))
        return kind and {"bytes": known[kind], "kind": kind, "processes": processes, "all": known}


def classify(error: BaseException, folder: Path) -> tuple[Verdict, str, int]:
    """The verdict, a one-line cause that says what to do, and the exit code that an exception stands for.

    `folder` is the run's, on whose disk checkpoints are written.
    """
    if (behind := _behind(error)) is not error and not _is_full_disk(error, folder):
        return classify(behind, folder)
    first_line = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, KeyboardInterrupt):
        return Verdict.INTERRUPTED, f"interrupted by {first_line or 'SIGINT'}", INTERRUPTED
    if isinstance(error, UsageError):
        return Verdict.FAILED, str(error), 2
    if isinstance(error, EndedEarly) and error.asked:
        return Verdict.INTERRUPTED, str(error), INTERRUPTED
    if isinstance(error, EndedEarly | WrongKernels):
        return Verdict.FAILED, str(error), 1
    end, _ = ends.raised(str(error))
    if isinstance(error, Diverged) or end.verdict is Verdict.DIVERGED:
        cause = f"{first_line}: try a lower learning rate, or more layers in BF16 (--bf16-tail-layers)"
        return Verdict.DIVERGED, cause, 1
    named = type(error).__name__ == "OutOfMemoryError"
    if named or end.verdict is Verdict.OUT_OF_MEMORY or isinstance(error, MemoryError):
        cause = f"{first_line or 'out of memory.'} Lower --micro-batch-size or --seq-length, or take a smaller --model"
        return Verdict.OUT_OF_MEMORY, cause, 1
    if _is_full_disk(error, folder):
        where = f" writing {error.filename}" if getattr(error, "filename", None) else ""
        return Verdict.FAILED, f"the disk is full{where}: free some space, `make clean` lists what old runs hold", 1
    if isinstance(error, SystemExit):
        return Verdict.FAILED, f"Megatron ended the process with exit code {error.code}: see {run_folder.LOG}", 1
    also = f": {_ANOTHER_LAYOUT}" if _ANOTHER_SHAPE in first_line else ""
    return Verdict.FAILED, f"{type(error).__name__}: {first_line or _line_of(error)}{also}", 1


def _behind(error: BaseException) -> BaseException:
    """What made PyTorch's `CheckpointException`, which names the ranks alone: the first rank's error; else `error`."""
    failures = getattr(error, "failures", None) if type(error).__name__ == "CheckpointException" else None
    return next(iter(failures.values()))[0] if failures else error


def _line_of(error: BaseException) -> str:
    """What an error without words, an `assert` of Megatron's, says by its line of code."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{(frames and frames[-1].line) or 'it says nothing'}{at}: see {run_folder.LOG}"


def _is_full_disk(error: BaseException | None, folder: Path) -> bool:
    """Whether a full disk, or a used-up quota, is behind `error`: itself, what it was raised from, or words in it.

    Megatron-Core 0.17 keeps the type of what stopped a checkpoint's writer and loses its words: the disk is asked.
    """
    words = re.compile(rf"{os.strerror(errno.ENOSPC)}|unexpected pos \d+ vs \d+|PytorchStreamWriter failed writing")
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL_DISK) or words.search(str(error)):
            return True
        if type(error).__name__ == "CheckpointException" and not _has_room(folder):
            return True
        error = error.__cause__ or error.__context__
    return False


def _has_room(folder: Path) -> bool:
    """Whether the disk takes a MiB more."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        return error.errno not in FULL_DISK
    return True
