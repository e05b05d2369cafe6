"""What an exception says about a run, and the folder, port and signals of its start."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretraining.errors import Diverged, EndedEarly, UsageError
from pretraining.record import run_folder
from pretraining.record.run_folder import Verdict
from pretraining.request import flags as training_flags
from pretraining.request import settings
from pretraining.run import ending


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


@pytest.mark.parametrize(
    ("error", "verdict", "code", "cause"),
    [
        (KeyboardInterrupt(), Verdict.INTERRUPTED, 130, "interrupted by SIGINT"),
        (ending.Interrupted("SIGTERM"), Verdict.INTERRUPTED, 130, "interrupted by SIGTERM"),
        (UsageError("--data x: there is none"), Verdict.FAILED, 2, "--data x: there is none"),
        (Diverged("the loss is nan at iteration 3"), Verdict.DIVERGED, 1, "is nan at iteration 3: try a lower"),
        (
            RuntimeError("Rank 0, node vm, device 0, iteration 5: found NaN in local grad norm for bucket #0"),
            Verdict.DIVERGED, 1, "found NaN in local grad norm for bucket #0: try a lower learning rate",
        ),
        (RuntimeError("Unexpected result: found Inf in local forward loss"), Verdict.DIVERGED, 1, "or more layers in"),
        (OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore"), Verdict.OUT_OF_MEMORY, 1, "2 GiB. Lower --mi"),
        (MemoryError(), Verdict.OUT_OF_MEMORY, 1, "Lower --micro-batch-size or --seq-length"),
        (OSError(errno.ENOSPC, "No space", "/d/f"), Verdict.FAILED, 1, "disk is full writing /d/f: free some space"),
        (OSError(errno.ENOSPC, "No space"), Verdict.FAILED, 1, "the disk is full: free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Verdict.FAILED, 1, "the disk is full: free some space"),
        (OSError(errno.EACCES, "Permission denied", "/d/f"), Verdict.FAILED, 1, "PermissionError: [Errno 13] Permi"),
        (EndedEarly(2, 6, "train.exit_interval"), Verdict.INTERRUPTED, 130, "ended at iteration 2 of 6 as train.exit"),
        (EndedEarly(2, 6), Verdict.FAILED, 1, "after iteration 2 of 6 without an error: the data is empty"),
        (SystemExit(3), Verdict.FAILED, 1, "Megatron ended the process with exit code 3: see train.log"),
        (SystemExit(), Verdict.FAILED, 1, "Megatron ended the process with exit code None"),
        (ValueError("\n first\nsecond"), Verdict.FAILED, 1, "ValueError: first"),
        (AssertionError(), Verdict.FAILED, 1, "AssertionError: it says nothing: see train.log"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_classify(error: BaseException, verdict: Verdict, code: int, cause: str) -> None:
    found, said, exit_code = ending.classify(error, Path("nowhere"))
    assert (found, exit_code) == (verdict, code)
    assert cause in said
    assert "\n" not in said and "None" not in said.replace("code None", "")
    assert said == said.strip() and not said.endswith(":")


@pytest.mark.parametrize(
    ("interval", "minutes", "done", "code", "signalled", "asked"),
    [
        (2, None, 2, 0, "", "train.exit_interval"), (2, None, 4, None, "", "train.exit_interval"),
        (None, 1, 5, 0, "", "train.exit_duration_in_mins"), (4, 0.5, 6, 0, "", "train.exit_duration_in_mins"),
        (4, None, 6, 0, "", None), (None, None, 2, 0, "", None), (2, None, 2, 3, "", None),
        (2, None, 2, 0, "SIGTERM", None),
    ],
)  # fmt: skip
def test_an_end_that_was_asked_for(tmp_path: Path, interval, minutes, done, code, signalled, asked) -> None:
    """Whether the run keeps checkpoints or not: with them, Megatron's exit after a signal looks the same."""
    run = ending.RunEnd(tmp_path, 0)
    run.telemetry = SimpleNamespace(iterations=done)
    run.saving.active, run.saving.signal = True, signalled
    train = SimpleNamespace(exit_interval=interval, exit_duration_in_mins=minutes, train_iters=8)
    with pytest.raises((EndedEarly, SystemExit)) as end, ending.asked_for(train, run):
        sys.exit(code)
    assert getattr(end.value, "asked", None) == asked
    assert not asked or f"at iteration {done} of 8 as {asked} asked" in str(end.value)


def test_torchs_own_out_of_memory_error() -> None:
    import torch

    assert ending.classify(torch.OutOfMemoryError("CUDA out of memory."), Path("nowhere"))[0] is Verdict.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 80000000000000 bytes. Error code 12 (Cannot allocate memory)",
        "could not create a primitive: out of memory",
    ],
)
def test_a_cpu_out_of_memory(said: str) -> None:
    assert ending.classify(RuntimeError(said), Path("nowhere"))[0] is Verdict.OUT_OF_MEMORY


def test_a_full_disk_behind_another_error() -> None:
    """torch.save and Megatron's checkpoint writers, as they say it."""
    full = OSError(errno.ENOSPC, "No space left on device", "/d/f")
    try:
        try:
            raise full
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 448 vs 342")  # noqa: B904
    except RuntimeError as error:
        assert "the disk is full: free some space" in ending.classify(error, Path("nowhere"))[1]
    for words in (str(full), "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"):
        wrapped = RuntimeError(f"CheckpointException ranks:dict_keys([0])\nRuntimeError: Worker failure: {words}")
        assert "the disk is full: free some space" in ending.classify(wrapped, Path("nowhere"))[1]


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EDQUOT, "the disk is full: free some space"),
        (errno.EACCES, "RuntimeError: Worker failure"),
        (None, "RuntimeError: Worker failure"),
    ],
)
def test_a_checkpoint_writer_that_keeps_its_cause_to_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int | None, cause: str
) -> None:
    """As Megatron-Core 0.17 does: "error: <class 'RuntimeError'>"; the disk is asked."""
    from torch.distributed.checkpoint.api import CheckpointException

    def no_file(**_) -> None:
        raise OSError(number, os.strerror(number))

    if number:
        monkeypatch.setattr(ending.tempfile, "TemporaryFile", no_file)
    found = ending.classify(CheckpointException("write", {0: (RuntimeError("Worker failure"), None)}), tmp_path)
    assert found[0] is Verdict.FAILED and found[1].startswith(cause)
    assert list(tmp_path.iterdir()) == []


SHAPES = "Global shape mismatch for loaded (torch.Size([20])) and expected ((40,)) tensor for key a.param"


@pytest.mark.parametrize(
    ("inner", "verdict", "cause"),
    [
        (
            ValueError(SHAPES),
            Verdict.FAILED,
            f"ValueError: {SHAPES}: resume with the settings of the run that saved it",
        ),
        (KeyError("optimizer.state"), Verdict.FAILED, "KeyError: 'optimizer.state'"),
        (OutOfMemoryError("CUDA out of memory."), Verdict.OUT_OF_MEMORY, "CUDA out of memory. Lower --micro-batch"),
        (OSError(errno.ENOSPC, "No space", "/d/f"), Verdict.FAILED, "the disk is full writing /d/f: free some space"),
    ],
)
def test_what_is_behind_a_checkpoint_exception(tmp_path: Path, inner: Exception, verdict: Verdict, cause: str) -> None:
    """Its own first line names the ranks; each rank's error stands behind it."""
    from torch.distributed.checkpoint.api import CheckpointException

    found = ending.classify(CheckpointException("plan", {1: (inner, None), 2: (inner, None)}), tmp_path)
    assert (found[0], found[2]) == (verdict, 1)
    assert found[1].startswith(cause)


def test_a_checkpoint_exception_of_no_rank(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.api import CheckpointException

    said = ending.classify(CheckpointException("plan", {}), tmp_path)[1]
    assert said == "CheckpointException: CheckpointException ranks:dict_keys([])"


@pytest.fixture
def chosen(tmp_path: Path) -> settings.Settings:
    """The defaults, with a run folder that does not exist yet."""
    defaults = settings.resolve(training_flags.parser("x").parse_args([]), on_gpu=False, processes=1)
    return replace(defaults, run_dir=tmp_path / "runs" / "one")


def test_the_run_folder_is_made(chosen: settings.Settings) -> None:
    ending.claim_run_dir(chosen).close()
    assert chosen.run_dir.is_dir()
    (chosen.run_dir / run_folder.PLAN).touch()  # the launcher's, written before
    with ending.claim_run_dir(chosen) as held:
        assert (held.folder, held.problem) == (chosen.run_dir, "")


@pytest.mark.parametrize("name", [run_folder.METRICS, run_folder.ENVIRONMENT, run_folder.OUTCOME])
def test_a_run_is_never_overwritten(chosen: settings.Settings, name: str) -> None:
    chosen.run_dir.mkdir(parents=True)
    (chosen.run_dir / name).touch()
    with pytest.raises(UsageError, match=r"already holds a run; .* name another"):
        ending.claim_run_dir(chosen)


def test_a_folder_that_cannot_be_made(chosen: settings.Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--run-dir .*/file/run: Not a directory"):
        ending.claim_run_dir(replace(chosen, run_dir=tmp_path / "file" / "run"))
    with pytest.raises(UsageError, match=r"--run-dir .*/file: "):
        ending.claim_run_dir(replace(chosen, run_dir=tmp_path / "file"))


def test_several_processes_need_one_folder(chosen: settings.Settings, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="give --run-dir"):
        ending.claim_run_dir(replace(chosen, run_dir=None))


def test_signals_become_interruptions() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            ending.interrupt_on_sigterm()
            with pytest.raises(KeyboardInterrupt, match=number.name) as raised:
                signal.raise_signal(number)
            assert ending.caught(raised.value) is raised.value
            signal.raise_signal(signal.SIGINT)  # the verdict is being written: no second interruption
            signal.raise_signal(signal.SIGTERM)
    finally:
        ending.caught(KeyboardInterrupt())
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


def test_an_error_without_words_is_told_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as raised:
        raise ValueError
    cause = ending.classify(raised.value, tmp_path)[1]
    assert cause.startswith("ValueError: raise ValueError (test_ending.py:") and cause.endswith("): see train.log")


def test_the_end_is_written_once_and_by_the_right_process(tmp_path: Path) -> None:
    assert ending.RunEnd(tmp_path, 1).succeeded() == 0
    assert not (tmp_path / run_folder.OUTCOME).exists()  # rank 0 reports a success
    assert ending.RunEnd(tmp_path, 1).failed(Diverged("the loss is nan")) == 1
    assert ending.RunEnd(tmp_path, 0).failed(KeyboardInterrupt()) == 130
    assert run_folder.read_run(tmp_path).verdict is Verdict.DIVERGED


def test_an_outcome_that_cannot_be_written_is_said(tmp_path: Path, capsys) -> None:
    assert ending.RunEnd(tmp_path / "gone", 0).failed(ValueError("cause")) == 1
    said = capsys.readouterr().err
    assert "ValueError: cause" in said and "the outcome could not be written" in said


def test_an_interruption_swallowed_by_a_destructor_comes_again() -> None:
    script = (
        "import os, signal, time\n"
        "from pretraining.run import ending\n"
        "class Swallows:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(0.05)\n"
        "ending.interrupt_on_sigterm()\n"
        "Swallows()\n"
        "print('went on', flush=True)\n"
        "try:\n"
        "    time.sleep(20)\n"
        "except ending.Interrupted as error:\n"
        "    ending.caught(error); time.sleep(1.2); print(f'caught {error}')\n"
    )
    found = {**os.environ, "PYTHONPATH": str(training_flags.PROJECT / "assets")}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=15, env=found)
    assert ended.stdout.splitlines() == ["went on", "caught SIGINT"] and ended.returncode == 0


STUCK = """
import ctypes, signal
from pretraining.run import ending
ending.STUCK_SECONDS = 0.5
ending.interrupt_on_sigterm()
mutex = (ctypes.c_char * 64)()  # zeros: an unlocked mutex of the C library
lock = ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
print("stuck", flush=True)
lock(mutex)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_waits_in_c_for_ever_ends_on_a_signal(environment, number: int) -> None:
    """As one does that waits for a partner which is gone: no Python handler ever runs."""
    process = subprocess.Popen([sys.executable, "-c", STUCK], env=environment(), stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "stuck\n"
        time.sleep(0.5)  # from the print to the lock
        process.send_signal(number)
        assert process.wait(timeout=20) == 130


UNREAD = """
import sys
import pretrain_llama

def train(*_):
    print("x" * 200_000)  # a pipe holds 64 kB
    if "--seed" in sys.argv:
        raise RuntimeError("a bug of ours")

pretrain_llama.train = train
sys.exit(pretrain_llama.main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("flags", "code"), [((), 0), (("--seed", "7"), 1)], ids=["succeeded", "failed"])
def test_a_signal_ends_the_wait_for_a_reader(environment, until, tmp_path: Path, number: int, flags, code: int) -> None:
    command = [sys.executable, "-c", UNREAD, "--model", "tiny", "--run-dir", str(tmp_path), *flags]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        until(lambda: os.readlink(f"/proc/{process.pid}/fd/1") == os.devnull)  # it waits, with nothing more to say
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        assert process.stdout.read().count(b"x") >= 200_000  # and finds everything when it goes on
    assert run_folder.read_run(tmp_path).outcome["exit_code"] == code


def test_a_lost_partner_is_told_from_a_cause(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    lost, cause = ending.RunEnd(tmp_path, 0), ending.RunEnd(tmp_path, 1)
    assert lost.failed(RuntimeError("[gloo] Read error: Connection closed by peer [127.0.0.1]:22")) == 1
    assert not (tmp_path / run_folder.OUTCOME).exists()
    assert cause.failed(RuntimeError("a bug")) == 1
    told = run_folder.read_run(tmp_path).outcome
    assert told["cause"].startswith("rank 1 on ") and told["rank"] == 1
    assert told["traceback"][-1] == "RuntimeError: a bug"
