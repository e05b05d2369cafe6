"""A private Slurm for the session, and `scripts/run.py submit` as a user of its head node would start it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
sys.path.append(str(HERE))  # last: tests/engine imports its own conftest by name

import private_slurm  # noqa: E402

SECONDS = 240
SIZES = ("--model", "tiny", "--global-batch-size", "8", "--micro-batch-size", "4", "--seq-length", "64")


@dataclass
class HeadNode:
    """The machine that `make submit` is typed on.

    Attributes:
        slurm: the cluster.
        shared: the folder that all nodes see.
    """

    slurm: private_slurm.PrivateSlurm
    shared: Path

    @property
    def runs(self) -> Path:
        return self.shared / "runs"

    def cluster(self, **fields: object) -> Path:
        """A cluster.yaml; JSON is YAML."""
        path = Path(tempfile.mkstemp(suffix=".yaml", dir=self.shared)[1])
        own = {"gpus": 0, "time": "00:10:00", "runs": str(self.runs), "python": sys.executable, "end_before_limit": 30}
        path.write_text(json.dumps(own | fields))
        return path

    def run(self, what: str, *flags: str, cluster: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the launcher to its end."""
        script = PROJECT / "scripts" / "run.py"
        words = [sys.executable, str(script), what, "--cluster", str(cluster or self.cluster())]
        if what == "submit":
            words += [*SIZES, "--cache-dir", str(PROJECT / ".cache")]
        return subprocess.run(
            [*words, *flags], env={**os.environ, **self.slurm.environment}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip

    def submit(self, name: str, *flags: str, code: int = 0, **fields: object) -> Path:
        """Submit a two-node BF16 run of 6 iterations unless told otherwise; gives its folder."""
        folder = self.runs / name
        given = [word for word in ("--nodes", "--precision", "--train-iters") if word not in flags]
        defaults = {"--nodes": "2", "--precision": "bf16", "--train-iters": "6"}
        more = [part for word in given for part in (word, defaults[word])]
        ended = self.run("submit", *more, *flags, "--run-dir", str(folder), cluster=self.cluster(**fields))
        assert ended.returncode == code, ended.stdout[-3000:] + ended.stderr[-3000:] + self.said(folder)
        return folder

    def said(self, folder: Path) -> str:
        """What the job of a run printed, for a test that fails."""
        logs = sorted((self.runs / ".submitted").glob(f"experiments/{folder.name}*/*/*/*.out"))
        return "".join(f"\n== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in logs)

    def jobs(self) -> str:
        """The queue, without the header."""
        return self.slurm.run("squeue", "-h").stdout

    def state(self, folder: Path) -> str:
        """Slurm's word for the state of a run's job."""
        number = json.loads((folder / "job.json").read_text())["job"]
        said = self.slurm.run("scontrol", "-o", "show", "job", number).stdout
        return next(word for word in said.split() if word.startswith("JobState=")).partition("=")[2]


@pytest.fixture(scope="session")
def head() -> Iterator[HeadNode]:
    """The private Slurm, up."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munge wants its socket reachable
    slurm = private_slurm.PrivateSlurm(folder / "slurm")
    try:
        private_slurm.install()
        slurm.start()
        yield HeadNode(slurm, folder)
    except private_slurm.Missing as missing:
        pytest.skip(str(missing))
    finally:
        slurm.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def until() -> Callable[..., None]:
    """`until(condition)` waits for it."""

    def wait(true: Callable[[], object], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.2)

    return wait


@pytest.fixture(autouse=True)
def an_empty_queue(head) -> Iterator[None]:
    """No test leaves a job to the next."""
    yield
    head.slurm.run("scancel", "--user=root")
    deadline = time.monotonic() + 30
    while head.jobs() and time.monotonic() < deadline:
        time.sleep(0.2)
