"""The launcher as a process, with a stand-in for the training."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretraining.record import run_folder
from pretraining.record.run_folder import Run

LAUNCHER = Path(__file__).parents[1] / "fakes" / "launcher.py"
FLAGS = ("--runtime", "cpu", "--model", "tiny", "--train-iters", "8")


def _trainings(runs: Path) -> list[int]:
    """The process ids of stand-ins for a training whose run folder is in or below `runs`."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            content = command.read_bytes()
            if str(runs).encode() in content and b"training.py" in content:
                found.append(int(command.parent.name))
    return found


class Launched:
    """A launcher under way."""

    def __init__(self, process: subprocess.Popen[str], runs: Path) -> None:
        self.process, self.runs = process, runs

    @property
    def folder(self) -> Path:
        """The only run folder."""
        (found,) = self.runs.iterdir()
        return found

    def read(self) -> Run:
        """The only run."""
        return run_folder.read_run(self.folder)

    def iterations(self) -> int:
        """Of the only run, so far."""
        found = list(self.runs.glob(f"*/{run_folder.METRICS}"))
        return found[0].read_text().count("\n") if found else 0

    def trainings(self) -> list[int]:
        """The process ids of the stand-ins for a training that its run folders have."""
        return _trainings(self.runs)


@pytest.fixture
def launch(environment, project: Path, tmp_path: Path) -> Iterator:
    """`launch("nvfp4", FAKE="slow")` starts the launcher; what it says comes through a pipe."""
    started: list[Launched] = []

    def start(job: str, *flags: str, stdout: int = subprocess.PIPE, **more: str) -> Launched:
        runs = tmp_path / "runs"
        paths = os.pathsep.join([str(project / "assets"), str(project / "scripts"), more.pop("MORE_PATH", "")])
        process = subprocess.Popen(
            [sys.executable, str(LAUNCHER), job, *FLAGS, *flags, "--runs", str(runs)],
            env=environment(PYTHONPATH=paths, **more), stdin=subprocess.DEVNULL,
            stdout=stdout, stderr=stdout if stdout != subprocess.PIPE else subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        started.append(Launched(process, runs))
        return started[-1]

    yield start
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.communicate()
        for number in each.trainings():  # in a session of its own, so it outlives a launcher that left it behind
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
