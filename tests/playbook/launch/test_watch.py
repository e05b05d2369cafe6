"""`make nvfp4` as far as the launcher goes, with a stand-in for the training script: progress, interruption, ends."""

import contextlib
import os
import pty
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from playbook.launch.process import LocalProcess
from playbook.launch.watch import End, see_the_end
from pretraining.record import run_folder
from pretraining.record.run_folder import Verdict


def test_piped_progress_is_plain_lines(launch) -> None:
    launched = launch("nvfp4", PLAIN_EVERY_SECONDS="0.5", FAKE_STEP="0.3")
    said, errors = launched.process.communicate(timeout=60)
    assert launched.process.returncode == 0, errors
    assert "\x1b" not in said and "\r" not in said and errors == ""
    lines = said.splitlines()
    progress = [line for line in lines if line.startswith("nvfp4 tiny: ")]
    assert progress[0] == "nvfp4 tiny: starting, 8 iterations"
    assert 3 <= len(progress) <= 10
    numbers = [int(found[1]) for line in progress if (found := re.search(r"iteration (\d+)/8  loss 4\.99", line))]
    assert numbers == sorted(numbers) and numbers[-1] == 8
    assert re.search(r"0\.100 s/step  validation loss 2\.5000  \d+ s in all$", progress[-1])
    assert any("s left" in line for line in progress[1:-1])
    assert lines[0] == "nvfp4:"
    assert re.search(r"precision +nvfp4 +emulated exactly on the CPU", said)
    assert re.search(r"iterations +8 +asked for", said) and re.search(r"model +tiny +asked for", said)
    assert re.search(r"kept in BF16 +first 0 and last 1 of 4 layers +the default for nvfp4", said)


@pytest.mark.parametrize("lines", [0, 1, 15], ids=["at once", "in the plan", "in the progress"])
def test_a_reader_that_goes_away_does_not_end_the_training(launch, lines: int) -> None:
    launched = launch("bf16", PLAIN_EVERY_SECONDS="0.05", FAKE_STEP="0.05")
    for _ in range(lines):
        launched.process.stdout.readline()
    launched.process.stdout.close()
    assert launched.process.wait(timeout=60) == 0
    assert launched.read().verdict is Verdict.SUCCEEDED and launched.iterations() == 9


def test_a_failure_is_one_although_nobody_reads_it(launch) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    launched = launch("bf16", FAKE="early", stdout=writes)
    os.close(writes)
    assert launched.process.wait(timeout=60) == 1


def test_without_a_word_for_fifteen_seconds_unless_it_ends(launch) -> None:
    said, _ = launch("bf16", FAKE_STEP="0.01").process.communicate(timeout=60)
    assert len([line for line in said.splitlines() if line.startswith("bf16 tiny: ")]) == 2  # the start and the end


def test_a_terminal_gets_one_live_line(launch) -> None:
    master, slave = pty.openpty()
    launched = launch("bf16", FAKE_STEP="0.4", stdout=slave, TERM="xterm", COLUMNS="200")
    os.close(slave)
    seen: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while chunk := os.read(master, 4096):
                seen.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    assert launched.process.wait(timeout=60) == 0
    reader.join(timeout=10)
    os.close(master)
    said = b"".join(seen).decode()
    assert said.count("starting, 8 iterations") == 0
    assert len(set(re.findall(r"iteration (\d)/8", said))) >= 4  # it moved
    assert "\x1b[2K" in said or "\r" in said
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert plain.rstrip().splitlines()[-1].endswith("s in all")


def test_the_plan_is_kept(launch) -> None:
    launched = launch("nvfp4", "--seed", "5")
    assert launched.process.wait(timeout=60) == 0
    kept = launched.read().plan
    assert kept["request"]["precision"] == "nvfp4" and kept["request"]["seed"] == 5
    assert kept["request"]["train_iters"] == 8 and kept["request"]["runtime"] == "cpu"
    assert kept["choices"]["runtime"] == {"value": "cpu", "reason": "asked for"}
    assert "--run-dir" in kept["command"] and re.fullmatch(r"[0-9a-f]{40}(-dirty)?", kept["git_commit"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interruption_ends_training_and_keeps_its_record(launch, until, number: signal.Signals) -> None:
    launched = launch("nvfp4", FAKE="slow", GRACE="60")
    until(lambda: launched.iterations() >= 3, 60)
    began = time.monotonic()
    launched.process.send_signal(number)
    said, errors = launched.process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert launched.process.returncode == 130
    assert "stopping ..." in said and "run: interrupted" in errors and "Traceback" not in errors
    run = launched.read()
    assert run.verdict is Verdict.INTERRUPTED
    assert run.outcome["cause"] == "interrupted by SIGINT"  # training's own words
    assert len(run.train) >= 3 and run.plan and run.environment
    assert not launched.trainings()


def test_a_training_that_does_not_listen_is_killed_in_time(launch, until) -> None:
    launched = launch("nvfp4", FAKE="stubborn")
    until(lambda: launched.iterations() >= 3, 60)
    began = time.monotonic()
    launched.process.send_signal(signal.SIGINT)
    launched.process.communicate(timeout=60)
    assert 2 < time.monotonic() - began < 5
    assert launched.process.returncode == 130
    run = launched.read()
    assert run.verdict is Verdict.INTERRUPTED and run.outcome["exit_code"] == 130
    assert "stopped by the launcher" in run.outcome["cause"]
    assert not launched.trainings()


def test_a_second_interruption_kills_at_once(launch, until) -> None:
    launched = launch("nvfp4", FAKE="stubborn", GRACE="60")
    until(lambda: launched.iterations() >= 3, 60)
    began = time.monotonic()
    launched.process.send_signal(signal.SIGINT)
    assert "stopping" in next(line for line in launched.process.stdout if "stopping" in line)
    launched.process.send_signal(signal.SIGINT)
    _, errors = launched.process.communicate(timeout=60)
    assert time.monotonic() - began < 2.5
    assert launched.process.returncode == 130 and "Traceback" not in errors
    assert not launched.trainings()
    assert launched.read().verdict is Verdict.INTERRUPTED


def test_a_third_and_fourth_leave_no_traceback(launch, until) -> None:
    launched = launch("nvfp4", FAKE="stubborn")
    until(lambda: launched.iterations() >= 3, 60)
    for _ in range(4):
        with contextlib.suppress(ProcessLookupError):
            launched.process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    _, errors = launched.process.communicate(timeout=60)
    assert launched.process.returncode in (130, -signal.SIGINT) and "Traceback" not in errors
    until(lambda: not launched.trainings(), 10)


def test_an_interruption_in_the_background(launch, until) -> None:
    """A shell starts background jobs with SIGINT ignored; the training must still be stopped by SIGTERM."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        launched = launch("nvfp4", FAKE="slow", GRACE="60")
    finally:
        signal.signal(signal.SIGINT, before)
    until(lambda: launched.iterations() >= 2, 60)
    began = time.monotonic()
    launched.process.terminate()
    launched.process.communicate(timeout=60)
    assert time.monotonic() - began < 5 and launched.process.returncode == 130
    assert launched.read().verdict is Verdict.INTERRUPTED and not launched.trainings()


def test_a_killed_training(launch) -> None:
    launched = launch("nvfp4", FAKE="killed")
    said, errors = launched.process.communicate(timeout=60)
    assert launched.process.returncode == 1
    run = launched.read()
    assert run.verdict is Verdict.KILLED and len(run.train) == 2
    assert not launched.trainings()  # nor does its helper
    assert "training was ended by SIGKILL" in run.outcome["cause"] and "out of memory" in run.outcome["cause"]
    assert f"nvfp4: killed: {run.outcome['cause']}" in errors and "train.log" in errors
    assert "iteration 2/8" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("early", "code 3 before it began: ImportError: libnothing.so: cannot open shared object file"),
        ("refused", "code 1 before it began: no GPU was found"),
    ],
)
def test_last_words_of_a_training_that_never_began(launch, how: str, words: str) -> None:
    launched = launch("nvfp4", FAKE=how)
    _, errors = launched.process.communicate(timeout=60)
    assert launched.process.returncode == 1
    run = launched.read()
    assert run.verdict is Verdict.FAILED
    assert run.outcome["cause"] == f"training ended with exit {words}"
    assert run.outcome["cause"] in errors


def test_words_of_a_rank_that_was_left_behind_are_no_cause(tmp_path: Path) -> None:
    (tmp_path / run_folder.LOG).write_text("it began")
    words = ["pretrain_llama.py: ended by SIGTERM", "  traceback : Signal 11 (SIGSEGV) received by PID 4242", "====="]
    assert see_the_end(tmp_path, End(1), words)
    assert "Signal 11 (SIGSEGV)" in run_folder.read_facts(tmp_path).outcome["cause"]


def test_a_training_is_none_of_another_launchers_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started from a Slurm step or a torchrun, whose numbers would have it wait for partners."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "")
    words = [
        sys.executable,
        "-c",
        "import os; print([name for name in ('WORLD_SIZE', 'RANK', 'MINE') if name in os.environ])",
    ]
    assert list(LocalProcess(words, {"MINE": "1"}).lines()) == [b"['MINE']\n"]


def test_a_verdict_of_the_training_is_kept(launch) -> None:
    launched = launch("nvfp4", FAKE="diverged")
    _, errors = launched.process.communicate(timeout=60)
    assert launched.process.returncode == 1
    assert launched.read().verdict is Verdict.DIVERGED
    assert "nvfp4: diverged: the loss is nan at iteration 2: try a lower learning rate" in errors


def test_a_full_disk_is_told_although_nothing_could_be_written(launch) -> None:
    launched = launch("nvfp4", FAKE="disk")
    _, errors = launched.process.communicate(timeout=60)
    assert launched.process.returncode == 1
    assert "the disk is full" in errors
    assert "before it began" not in errors  # it had trained two iterations


def test_lines_that_are_not_finite_or_damaged_end_nothing(launch) -> None:
    launched = launch("nvfp4", FAKE="odd", PLAIN_EVERY_SECONDS="0")
    said, errors = launched.process.communicate(timeout=60)
    assert (launched.process.returncode, errors) == (0, "")
    assert "validation loss not finite" in said and "validation loss 2.5000" in said.splitlines()[-1]
    assert run_folder.read_facts(launched.folder).verdict is Verdict.SUCCEEDED


def test_a_folder_removed_while_it_trains_is_told_as_that(launch, until) -> None:
    launched = launch("nvfp4", FAKE="slow")
    until(lambda: launched.iterations() >= 2, 60)
    folder = launched.folder
    shutil.rmtree(folder)
    _, errors = launched.process.communicate(timeout=60)
    assert launched.process.returncode == 1 and not folder.exists()
    words = f"{folder.name}: incomplete: the run folder {folder} was removed while it trained, and its record with it\n"
    assert errors.endswith(words) and "Traceback" not in errors and "disk" not in errors


def test_a_closed_terminal_ends_training_with_its_record(launch, until) -> None:
    master, slave = pty.openpty()
    launched = launch("nvfp4", FAKE="slow", stdout=slave, TERM="xterm")
    os.close(slave)
    until(lambda: launched.iterations() >= 2, 60)
    os.close(master)  # nobody reads it: writing to it fails
    launched.process.send_signal(signal.SIGHUP)
    assert launched.process.wait(timeout=60) == 130
    assert launched.read().verdict is Verdict.INTERRUPTED and not launched.trainings()


def test_nohup_outlives_its_terminal(launch, until) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        launched = launch("bf16")
    finally:
        signal.signal(signal.SIGHUP, before)
    until(lambda: launched.iterations() >= 2, 60)
    launched.process.send_signal(signal.SIGHUP)
    assert launched.process.wait(timeout=60) == 0
    assert launched.read().verdict is Verdict.SUCCEEDED


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interruption_while_the_process_is_made_leaves_none(launch, tmp_path: Path, when: str) -> None:
    """The launcher's own SIGINT, from within Popen: before the child is there, and when it is and nobody knows it."""
    (tmp_path / "sitecustomize.py").write_text(f"""
import os, signal, subprocess
made = subprocess.Popen._execute_child
def interrupted(self, arguments, *more):
    training = "training.py" in str(arguments)
    if training and {when == "before"}:
        os.kill(os.getpid(), signal.SIGINT)
    made(self, arguments, *more)
    if training and {when == "after"}:
        os.kill(os.getpid(), signal.SIGINT)
subprocess.Popen._execute_child = interrupted
""")
    launched = launch("nvfp4", FAKE="slow", MORE_PATH=str(tmp_path))
    _, errors = launched.process.communicate(timeout=60)
    assert launched.process.returncode == 130 and "Traceback" not in errors
    assert launched.read().verdict is Verdict.INTERRUPTED and not launched.trainings()


def test_two_launchers_in_one_folder_are_one_run(launch, tmp_path: Path, until) -> None:
    folder = tmp_path / "runs" / "one"
    first = launch("nvfp4", "--run-dir", str(folder), "--seed", "1", FAKE="slow")
    until(lambda: (folder / run_folder.PLAN).exists(), 60)  # long before it has written a line
    before = (folder / run_folder.PLAN).read_bytes()
    second = launch("bf16", "--run-dir", str(folder), "--seed", "2")
    _, errors = second.process.communicate(timeout=60)
    assert second.process.returncode == 2
    assert re.search(rf"^run: --run-dir {folder} is in use by process \d+ \((launcher|training)\).*: name ano", errors)
    assert (folder / run_folder.PLAN).read_bytes() == before
    until(lambda: first.iterations() >= 2, 60)
    first.process.send_signal(signal.SIGINT)
    first.process.communicate(timeout=60)
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    third = launch("bf16", "--run-dir", str(folder))
    _, errors = third.process.communicate(timeout=60)
    assert third.process.returncode == 2 and "already holds a run" in errors
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == kept
    assert not [path for path in folder.iterdir() if path.name.startswith(".outcome")]
