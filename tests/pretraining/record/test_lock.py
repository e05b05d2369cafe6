"""The lock of a run folder: over processes, over runs, and where the file system has none."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pretraining.errors import UsageError
from pretraining.record import lock, run_folder

HOLDER = """
import sys, time
from dataclasses import asdict, replace
from pathlib import Path
from pretraining.record import lock
held = lock.hold(Path(sys.argv[1]), sys.argv[2], "training")
print("held", flush=True)
time.sleep(600)
"""


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What is in a folder, and when it was written."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.fixture
def elsewhere(project: Path, tmp_path: Path) -> Iterator:
    """`elsewhere("one")` holds the folder for that run in another process."""
    started = []

    def start(run: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), run],
            env={**os.environ, "PYTHONPATH": str(project / "assets")}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)


def test_another_run_is_refused_and_changes_nothing(tmp_path: Path, elsewhere) -> None:
    process = elsewhere("one")
    (tmp_path / run_folder.PLAN).write_text("{}")
    before = contents(tmp_path)
    assert lock.in_use(tmp_path) == f"in use by process {process.pid} (training)"
    with pytest.raises(UsageError, match=rf"in use by process {process.pid} \(training\): name another"):
        lock.hold(tmp_path, "two", "launcher")
    assert contents(tmp_path) == before
    process.kill()
    process.wait()
    assert lock.in_use(tmp_path) == ""
    with lock.hold(tmp_path, "two", "launcher"):  # that run never wrote a record
        assert [each.run for each in lock.processes(tmp_path)] == ["two"]


def test_processes_of_one_run_hold_it_together(tmp_path: Path, elsewhere) -> None:
    with lock.hold(tmp_path, "one", "launcher"):
        first, second = elsewhere("one"), elsewhere("one")
        (tmp_path / run_folder.ENVIRONMENT).touch()  # by one of them, before the last came
        third = elsewhere("one")
    numbers = [os.getpid(), first.pid, second.pid, third.pid]
    assert [each.number for each in lock.processes(tmp_path)] == numbers
    for each in (first, third, second):
        assert lock.in_use(tmp_path)
        each.kill()
        each.wait()
    assert lock.in_use(tmp_path) == ""


@pytest.mark.parametrize("name", [run_folder.METRICS, run_folder.ENVIRONMENT, run_folder.OUTCOME])
@pytest.mark.parametrize("locked", [True, False], ids=["with its lock", "of before there was one"])
def test_a_folder_that_was_used_is_refused_and_unchanged(tmp_path: Path, name: str, locked: bool) -> None:
    if locked:
        lock.hold(tmp_path, "one", "training").close()
    (tmp_path / name).write_text("{}")
    before = contents(tmp_path)
    for run in ("one", "two"):  # a rank that comes late, and a stranger
        with pytest.raises(UsageError, match="already holds a run; a run is never overwritten"):
            lock.hold(tmp_path, run, "training")
    assert contents(tmp_path) == before


def test_a_late_rank_of_a_run_that_has_ended_is_refused(tmp_path: Path) -> None:
    with lock.hold(tmp_path, "one", "launcher"):
        (tmp_path / run_folder.OUTCOME).touch()
        before = contents(tmp_path)
        with pytest.raises(UsageError, match="already holds a run"):
            lock.hold(tmp_path, "one", "training")
        assert contents(tmp_path) == before


def test_a_folder_of_a_job_is_of_that_job_alone(tmp_path: Path) -> None:
    (tmp_path / run_folder.JOB).write_text('{"job": "12"}')
    for run in ("one", "job 1 attempt 0", "job 123 attempt 0"):
        with pytest.raises(UsageError, match=r"is of job 12 of a cluster \(make jobs\)"):
            lock.hold(tmp_path, run, "launcher")
    lock.hold(tmp_path, "job 12 attempt 0", "launcher").close()


def test_a_helper_that_is_forked_does_not_hold_on_to_it(tmp_path: Path) -> None:
    held = lock.hold(tmp_path, "one", "training")
    (told, tell), (begun, begin) = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        os.close(tell)
        os.write(begin, b"1")
        os.read(told, 1)
        os._exit(0)
    os.read(begun, 1)  # by then it has let go
    held.close()
    assert lock.in_use(tmp_path) == ""
    os.close(tell)
    os.waitpid(child, 0)


def test_many_that_come_at_once_are_one(tmp_path: Path, project: Path) -> None:
    code = HOLDER.replace("time.sleep(600)", "sys.stdin.read()")
    environment = {**os.environ, "PYTHONPATH": str(project / "assets")}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    commands = [[sys.executable, "-c", code, str(tmp_path), f"run {number}"] for number in range(6)]
    racers = [subprocess.Popen(command, env=environment, text=True, **pipes) for command in commands]
    refused = [racer for racer in racers if not racer.stdout.readline()]
    assert len(refused) == 5
    assert [racer.communicate()[1].count("is in use by process") for racer in refused] == [1] * 5
    for racer in racers:
        if racer not in refused:
            racer.communicate("")
    assert len(lock.processes(tmp_path)) == 1


@pytest.mark.parametrize(
    ("environment", "same"),
    [
        ({}, False),
        ({lock.VARIABLE: "one"}, True),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}, True),
        ({"WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, False),
        ({"WORLD_SIZE": ""}, False),
    ],
    ids=["alone", "of a launcher", "of torch.distributed.run", "of torch.distributed.run alone", "of an empty one"],
)
def test_who_is_of_one_run(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], same: bool) -> None:
    for name in (lock.VARIABLE, "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (lock.run_of_environment() == lock.run_of_environment()) is same


def test_a_file_system_without_locks_says_so_and_holds_one_run(tmp_path: Path, lockless) -> None:
    with lock.hold(tmp_path, "one", "launcher") as held:
        assert "cannot lock (No locks available)" in held.problem
        lock.hold(tmp_path, "one", "training").close()
        before = contents(tmp_path)
        with pytest.raises(UsageError, match=r"in use by process .*this file system cannot lock"):
            lock.hold(tmp_path, "two", "launcher")
        assert contents(tmp_path) == before
        assert lock.in_use(tmp_path) == f"in use by process {os.getpid()} (launcher), process {os.getpid()} (training)"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"started": 1}, ""),  # another has its number
        ({"boot": "another"}, "may be in use by process {} on {} (training): this file system cannot lock"),
        ({"namespace": "pid:[1]"}, "may be in use by process {} on {} (training): this file system cannot lock"),
    ],
)
def test_without_locks_only_processes_of_this_machine_can_be_told(
    tmp_path: Path, lockless, change: dict, words: str
) -> None:
    written = {**asdict(lock.Process.this("one", "training")), **change}
    (tmp_path / lock.FILE).write_text(json.dumps(written) + "\n")
    said = lock.in_use(tmp_path)
    assert said.startswith(words.format(written["number"], written["host"])) and bool(said) == bool(words)
    (tmp_path / run_folder.OUTCOME).write_text("{}")
    assert lock.in_use(tmp_path) == ""


@pytest.mark.parametrize("content", ["", "{", "[]\n", "\udcff", '{"run": 1}\n', "\0" * 50, '{"a":' * 9000])
def test_a_damaged_lock_is_no_claim(tmp_path: Path, content: str) -> None:
    (tmp_path / lock.FILE).write_text(content, errors="surrogateescape")
    assert lock.in_use(tmp_path) == "" and lock.processes(tmp_path) == []
    with lock.hold(tmp_path, "one", "launcher"):
        assert lock.in_use(tmp_path).startswith("in use by process")


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_folder_that_takes_no_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match=f"cannot be locked: {os.strerror(code)}"):
        lock.hold(tmp_path, "one", "launcher")


def test_a_signal_reaches_that_process_and_nobody_else(tmp_path: Path, elsewhere) -> None:
    process = elsewhere("one")
    (recorded,) = lock.processes(tmp_path)
    for stranger in ({"started": recorded.started + 1}, {"boot": "another"}, {"namespace": "pid:[1]"}):
        assert not replace(recorded, **stranger).send(signal.SIGKILL)
    assert process.poll() is None
    assert recorded.send(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    assert not recorded.send(signal.SIGTERM)


def test_one_watches_at_a_time(tmp_path: Path) -> None:
    assert lock.watcher(tmp_path) is None
    with lock.watch(tmp_path):
        assert lock.watcher(tmp_path) == os.getpid()
        with pytest.raises(UsageError, match=f"is watched already, by process {os.getpid()}"):
            lock.watch(tmp_path)
    assert lock.watcher(tmp_path) is None
