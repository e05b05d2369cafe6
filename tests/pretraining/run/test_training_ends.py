"""The ends a training can come to, each with a verdict, a cause and an exit code; all but the folder's are real."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretraining.record import lock, run_folder
from pretraining.record.run_folder import Verdict

pytestmark = pytest.mark.slow

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOADERS = """
from pretraining.megatron import cpu

adapt = cpu.adapt

def with_loaders(config):
    adapt(config)
    config.dataset.num_workers = 2  # as on a GPU, where it is 8

cpu.adapt = with_loaders
"""


def iterations(folder: Path) -> int:
    """Completed ones so far."""
    return (folder / run_folder.METRICS).read_text().count('"train"') if (folder / run_folder.METRICS).exists() else 0


def test_a_wrong_flag_is_one_line_and_no_folder(train, tmp_path: Path) -> None:
    folder, ended = train("bf16", "--model", "tinny", folder=tmp_path / "run", code=2, fresh=True)
    assert ended.stderr.startswith("pretrain_llama.py: unknown model 'tinny': did you mean tiny?")
    assert ended.stderr.count("\n") == 1 and not folder.exists()


def test_a_folder_with_a_run_is_left_alone(train, tmp_path: Path) -> None:
    (tmp_path / run_folder.OUTCOME).write_text('{"verdict": "succeeded"}')
    _, ended = train("bf16", folder=tmp_path, code=2)
    assert "already holds a run" in ended.stderr and ended.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [run_folder.OUTCOME]


def test_a_port_in_use_is_nothing_to_a_process_alone(train) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        folder, _ = train("bf16", MASTER_PORT=str(taken.getsockname()[1]))
    assert run_folder.read_run(folder).verdict is Verdict.SUCCEEDED


def test_a_signal_while_training(start_training, until, tmp_path: Path) -> None:
    started = {number: start_training(tmp_path / number.name, "--train-iters", "100000") for number in SIGNALS}
    for number, process in started.items():
        folder = tmp_path / number.name
        until(lambda folder=folder: iterations(folder) >= 2)
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=60) == 130
        assert time.monotonic() - began < 5
        run = run_folder.read_run(folder)
        assert run.verdict is Verdict.INTERRUPTED
        assert (run.outcome["exit_code"], run.outcome["cause"]) == (130, f"interrupted by {number.name}")
        assert run.outcome["iterations"] in (len(run.train), len(run.train) - 1) and len(run.train) >= 2
        assert run.parity


def test_a_run_that_saves_saves_first(start_training, until, train, tmp_path: Path) -> None:
    batches = ("--data", "mock", "--seq-length", "32", "--global-batch-size", "16", "--micro-batch-size", "1")
    flags = ("--train-iters", "100000", "--save", "10", *batches)  # many micro batches: it comes while loaders are read
    started = {number: start_training(tmp_path / number.name, *flags, code=LOADERS) for number in SIGNALS}
    for number, process in started.items():
        folder = tmp_path / number.name
        until(lambda folder=folder: iterations(folder) >= 12)  # the helpers of its first checkpoint are there
        os.killpg(process.pid, number)  # Slurm, a terminal and torch.distributed.run signal every process
        assert process.wait(timeout=60) == 130
        run = run_folder.read_run(folder)
        done = len(run.train)
        assert 2 <= done < 100000 and run.outcome["iterations"] == done
        assert run.verdict is Verdict.INTERRUPTED
        assert run.outcome["cause"].startswith(f"interrupted by {number.name}, saved at iteration {done}: --resume ")
        assert "Traceback" not in process.stdout.read()
        tracker = folder / run_folder.CHECKPOINTS / "latest_checkpointed_iteration.txt"
        assert int(tracker.read_text()) == done
    end = ("--train-iters", str(done + 1), *batches)
    continued, _ = train("bf16", "--resume", str(folder), *end)
    assert [line["iteration"] for line in run_folder.read_run(continued).train] == [done + 1]


def test_a_signal_while_it_starts(start_training, until, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start_training(folder)
    until(lambda: (folder / run_folder.LOG).exists() and (folder / run_folder.LOG).stat().st_size)
    time.sleep(2)  # in the imports
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal: to everyone
    assert process.wait(timeout=60) == 130
    assert time.monotonic() - began < 5
    run = run_folder.read_run(folder)
    assert run.verdict is Verdict.INTERRUPTED and run.train == []


def test_a_killed_training_reads_as_incomplete(start_training, until, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start_training(folder, "--train-iters", "100000")
    samples = folder / run_folder.samples_of(0)  # a line a second, in which two iterations may be done
    until(lambda: iterations(folder) >= 2 and samples.exists() and samples.read_text().count("\n") >= 2)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert not (folder / run_folder.OUTCOME).exists()
    run = run_folder.read_run(folder)
    assert run.verdict is Verdict.INCOMPLETE
    assert len(run.train) >= 2 and run.parity
    samples = run.samples[:-1]  # the last may have been taken when the training was gone
    assert samples and all(line["process_bytes"] for line in samples)  # what is known of its memory
    assert process.stdout.read().strip()  # and its output ends: nobody keeps the pipe


@pytest.fixture
def train_after(environment, warm, tmp_path: Path):
    """Runs the training script after the given code has changed something in its process."""

    def run(code: str, *flags: str, exits: int = 1) -> tuple[run_folder.Run, str]:
        flags = ("--model", "tiny", "--train-iters", "20", "--global-batch-size", "8", "--data", "mock", *flags)
        lines = f"import pretrain_llama\n{textwrap.dedent(code)}\npretrain_llama.main()"
        folder = tmp_path / "run"
        ended = warm.run(["-c", lines, *flags, "--run-dir", str(folder)], environment(), 240)
        assert ended.returncode == exits, ended.stderr[-2000:]
        return run_folder.read_run(folder), ended.stdout + ended.stderr

    return run


def test_a_learning_rate_beyond_reason_diverges(train_after) -> None:
    run, said = train_after(
        """
        from dataclasses import replace
        from pretraining.request import models
        models.MODELS["tiny"] = replace(models.MODELS["tiny"], learning_rate=(1e30, 1e30))
        """,
        "--disable-fp4",
    )
    assert run.verdict is Verdict.DIVERGED, run.outcome
    assert run.outcome["exit_code"] == 1
    assert "try a lower learning rate" in run.outcome["cause"] and run.outcome["cause"] in said
    assert 1 <= len(run.train) < 20
    assert run.environment["mock_data"] and run.parity["data"] == "mock"
    assert all(line["loss"] is None or line["loss"] < 1e30 for line in run.train)


def test_an_error_in_training_is_told_with_its_traceback(train_after) -> None:
    run, said = train_after("""
        from pretraining.megatron import bridge_config as recipes
        def broken(*args, **more):
            raise RuntimeError("a bug of ours\\nin two lines")
        recipes.build_config = broken
    """)
    assert (run.verdict, run.outcome["cause"]) == (Verdict.FAILED, "RuntimeError: a bug of ours")
    assert "Traceback" in said and said.rstrip().endswith("pretrain_llama.py: failed: RuntimeError: a bug of ours")
    assert said.count("in two lines") == 1
    assert (run.folder / run_folder.LOG).read_text().strip() == said.strip()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB: room for the record, not for a checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small file system can be mounted only as root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("what", ["metrics", "checkpoint"])
def test_a_full_disk(train, small_disk: Path, what: str) -> None:
    folder = small_disk / "run"
    if what == "metrics":
        (small_disk / "filling").write_bytes(b"x" * 3_072_000)
    flags = ("--train-iters", "100000") if what == "metrics" else ("--save", "2")
    _, ended = train("bf16", "--data", "mock", *flags, folder=folder, code=1)
    said = ended.stdout + ended.stderr
    assert "pretrain_llama.py: failed: the disk is full" in said, said[-1500:]
    assert "`make clean` lists what old runs hold" in said
    (small_disk / "filling").unlink(missing_ok=True)
    run = run_folder.read_run(folder)
    assert run.verdict in (Verdict.FAILED, Verdict.INCOMPLETE)  # there may have been no room for the outcome
    if run.verdict is Verdict.INCOMPLETE:
        assert "the outcome could not be written" in said


def test_a_disk_that_fills_ends_a_run_that_saves_with_a_checkpoint(train_after) -> None:
    run, said = train_after(
        """
        import errno
        from pretraining.record import run_folder as record
        write = record.MetricsWriter.write
        def full(self, line):
            if line["iteration"] >= 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(self, line)
        record.MetricsWriter.write = full
        """,
        *("--disable-fp4", "--save", "1000"),
    )
    assert run.verdict is Verdict.FAILED
    assert run.outcome["cause"].startswith("the disk is full: free some space")
    assert f"saved at iteration 3: --resume {run.folder} (RESUME=) continues" in run.outcome["cause"]
    assert run_folder.has_checkpoint(run.folder) and len(run.train) == 2
    assert said.count("saving a checkpoint, then ending") == 1 and "Traceback" not in said


def test_an_interrupt_that_other_code_turned_into_another_error_stays_one(train_after) -> None:
    run, said = train_after(
        """
        import os, signal, time
        from pretraining.run import rendezvous
        def interrupted(*_):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            except BaseException as error:
                raise RuntimeError("Error calling __set_name__") from error
        rendezvous.describe = interrupted
        """,
        exits=130,
    )
    assert (run.verdict, run.outcome["cause"]) == (Verdict.INTERRUPTED, "interrupted by SIGTERM")
    assert "Error calling __set_name__" in said  # the log still shows where it was


def test_a_run_whose_folder_is_removed_ends(start_training, until, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start_training(folder)
    until(lambda: iterations(folder) >= 2, 120)
    shutil.rmtree(folder)
    assert process.wait(timeout=30) == 1
    assert "the run folder was removed while it trained" in process.stdout.read()
    assert not folder.exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stray_rank_changes_nothing_of_a_run_that_lives_or_has_ended(
    start_training, until, environment, tmp_path: Path, rank: int
) -> None:
    folder = tmp_path / "run"
    process = start_training(folder, "--train-iters", "2000")
    until(lambda: (folder / run_folder.LOG).exists(), 120)

    def refused() -> str:
        alone = environment(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29999")
        script = Path(lock.__file__).parents[2] / "pretrain_llama.py"
        ended = subprocess.run(
            [sys.executable, str(script), "--model", "tiny", "--run-dir", str(folder)],
            env=alone, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == 2 and ended.stdout == "" and ended.stderr.count("\n") == 1, ended.stderr
        return ended.stderr

    assert f"is in use by process {process.pid} (training)" in refused()
    process.terminate()
    assert process.wait(timeout=60) == 130, process.stdout.read()[-4000:]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert "already holds a run" in refused()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
