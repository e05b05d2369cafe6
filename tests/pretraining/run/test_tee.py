"""The log beside stdout: everything, in order, whoever wrote it and however the writer ends."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest


@pytest.fixture
def teeing(environment, tmp_path: Path):
    """Starts a process that tees to `log` and then runs the code."""
    started = []

    def start(code: str, *, log: Path = tmp_path / "train.log", stdout=subprocess.PIPE) -> subprocess.Popen[bytes]:
        head = "import os, signal, subprocess, sys, time\nfrom pathlib import Path\nfrom pretraining.run import tee\n"
        lines = f"{head}copier = tee.tee(Path({str(log)!r}))\n{textwrap.dedent(code)}"
        process = subprocess.Popen(
            [sys.executable, "-c", lines],
            env=environment(), stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.stdout:
            process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_both_get_everything_in_order(teeing, tmp_path: Path) -> None:
    process = teeing("""
        print("one")
        sys.stderr.write("two\\n")
        os.write(1, b"three, past Python's buffer\\n")
        subprocess.run(["echo", "four, from a child"])
        print("five, unended", end="")
        tee.finish(copier)
        print("six, after the end")
    """)
    said = process.communicate(timeout=30)[0]
    assert said.splitlines() == (tmp_path / "train.log").read_bytes().splitlines()
    assert [line.split(b",")[0] for line in said.splitlines()] == [b"one", b"two", b"three", b"four", b"five"]
    assert process.returncode == 0


def test_much_output_is_whole(teeing, tmp_path: Path) -> None:
    process = teeing("""
        for number in range(60_000):
            print(f"line {number:06} " + "x" * 40)
        tee.finish(copier)
    """)
    said = process.communicate(timeout=60)[0]
    assert said == b"".join(b"line %06d %s\n" % (number, b"x" * 40) for number in range(60_000))
    assert (tmp_path / "train.log").read_bytes() == said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_last_words_of_a_killed_process(teeing, tmp_path: Path, number: signal.Signals) -> None:
    process = teeing(f"""
        os.write(2, b"last words")
        os.kill(os.getpid(), {int(number)})
    """)
    assert process.communicate(timeout=30)[0] == b"last words"
    assert process.returncode == -number
    assert (tmp_path / "train.log").read_bytes() == b"last words"


def test_an_interrupt_to_the_whole_group_leaves_the_copying_alone(teeing, tmp_path: Path) -> None:
    process = teeing("""
        try:
            print("ready")
            time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted, and saying so")
        tee.finish(copier)
        os._exit(130)
    """)
    assert process.stdout.readline() == b"ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[0] == b"interrupted, and saying so\n"
    assert process.returncode == 130
    assert (tmp_path / "train.log").read_text() == "ready\ninterrupted, and saying so\n"


def test_a_full_log_leaves_stdout_going(teeing) -> None:
    process = teeing("""
        for number in range(5):
            os.write(1, b"line %d\\n" % number)
            time.sleep(0.05)
        tee.finish(copier)
    """, log=Path("/dev/full"))  # fmt: skip
    assert process.communicate(timeout=30)[0].split(b"\n")[:-1] == [b"line %d" % number for number in range(5)]
    assert process.returncode == 0


def test_a_reader_that_went_away_leaves_the_log_going(teeing, tmp_path: Path) -> None:
    process = teeing("""
        print("first")
        time.sleep(0.5)
        for number in range(2000):
            print("after", number)
        tee.finish(copier)
        os._exit(7)
    """)
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    assert process.wait(timeout=30) == 7
    assert (tmp_path / "train.log").read_text().splitlines()[-1] == "after 1999"


STALLED = """
    for number in range(20_000):
        print(f"line {number:06} " + "x" * 40)
    tee.finish(copier, SECONDS)
    os._exit(7)
"""


def test_a_reader_that_stops_reading_stops_nothing(teeing, tmp_path: Path) -> None:
    """A megabyte, where a pipe holds 64 kB."""
    process = teeing(STALLED.replace("SECONDS", "0.5"))
    assert process.wait(timeout=60) == 7
    whole = b"".join(b"line %06d %s\n" % (number, b"x" * 40) for number in range(20_000))
    assert process.stdout.read() == whole  # and finds everything when it goes on
    assert (tmp_path / "train.log").read_bytes() == whole  # now that the copying has ended


def test_a_run_that_ends_well_waits_for_its_reader(teeing) -> None:
    process = teeing(STALLED.replace("SECONDS", "None"))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    assert len(process.communicate(timeout=60)[0]) == 20_000 * 53
    assert process.returncode == 7


def test_a_child_that_keeps_the_pipe_does_not_hang_the_end(teeing, tmp_path: Path) -> None:
    process = teeing("""
        sleeper = subprocess.Popen(["sleep", "60"])
        print("done")
        began = time.monotonic()
        tee.finish(copier)
        os._exit(0 if time.monotonic() - began < 2 else 1)
    """, stdout=(tmp_path / "stdout").open("wb"))  # fmt: skip
    assert process.wait(timeout=30) == 0
    assert (tmp_path / "train.log").read_text() == (tmp_path / "stdout").read_text() == "done\n"


def test_told_to_end_while_reading_it_still_copies_what_was_written(teeing, tmp_path: Path) -> None:
    """`finish` may come at any moment of the copying: in a read, between two, in a write."""
    for attempt in range(10):
        log = tmp_path / f"{attempt}.log"
        process = teeing("""
            sleeper = subprocess.Popen(["sleep", "60"])
            for number in range(3000):
                os.write(1, b"line %d\\n" % number)
            tee.finish(copier)
            os._exit(0)
        """, log=log, stdout=(tmp_path / f"{attempt}.out").open("wb"))  # fmt: skip
        assert process.wait(timeout=30) == 0
        whole = "".join(f"line {number}\n" for number in range(3000))
        assert log.read_text() == (tmp_path / f"{attempt}.out").read_text() == whole


def test_the_log_is_appended_to(teeing, tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("before\n")
    teeing("print('after')\ntee.finish(copier)").communicate(timeout=30)
    assert (tmp_path / "train.log").read_text() == "before\nafter\n"


def test_a_line_is_there_when_it_is_printed(teeing, tmp_path: Path) -> None:
    teeing("print('now')\ntime.sleep(60)", stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    log = tmp_path / "train.log"
    while not (log.exists() and log.read_text() == "now\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
