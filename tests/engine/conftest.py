"""A private Docker engine with stand-in images, and the launcher as a user of a DGX Station would start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import docker
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import private_engine  # noqa: E402
import standin_image  # noqa: E402

STATION = [
    {"index": 0, "uuid": "GPU-0a6f", "name": "NVIDIA RTX PRO 6000", "capability": [12, 0], "memory": 102 * 10**9},
    {"index": 1, "uuid": "GPU-1b7e", "name": "NVIDIA GB300", "capability": [10, 3], "memory": 288 * 10**9},
]  # fmt: skip
BEHAVIOURS = ("steady", "deaf", "cuda-oom", "crash", "flood", "facts")
SECONDS = 60


@dataclass
class Station:
    """A DGX Station: the launcher, its run folders and its engine."""

    engine: private_engine.PrivateEngine
    api: docker.APIClient
    home: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("HF_HOME", "HF_TOKEN", "DOCKER_HOST")}
        fixed = {"DOCKER_HOST": self.engine.address, "HF_HOME": str(self.home / "hf"), "PYTHONUNBUFFERED": "1"}
        return kept | fixed | {"PLAYBOOK_TEST_GPUS": json.dumps(STATION), **more}

    def command(self, job: str, *flags: str, tag: str = "26.04") -> list[str]:
        words = [sys.executable, str(HERE / "launcher.py"), job, "--runs", str(self.runs), "--tag", tag]
        return [*words, "--model", "tiny", "--train-iters", "5", "--cache-dir", str(self.home / "cache"), *flags]

    def start(self, job: str = "nvfp4", *flags: str, tag: str = "26.04", **more: str) -> subprocess.Popen[str]:
        """Start the launcher; it is killed at the end of the test if it still runs."""
        process = subprocess.Popen(
            self.command(job, *flags, tag=tag),
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, job: str = "nvfp4", *flags: str, tag: str = "26.04", **more: str) -> tuple[int, str]:
        """Run the launcher to its end: exit code and everything printed."""
        process = self.start(job, *flags, tag=tag, **more)
        printed, _ = process.communicate(timeout=SECONDS)
        return process.returncode, printed

    def containers(self) -> list[dict]:
        return self.api.containers(all=True)

    def folder(self) -> Path:
        """The newest run folder."""
        return max(self.runs.iterdir())

    def outcome(self) -> dict:
        return json.loads((self.folder() / "outcome.json").read_text())

    def training(self) -> Path:
        """Wait until a steady training has written metrics; its run folder."""
        wait_for(lambda: self.runs.exists() and any(self.runs.glob("*/metrics.jsonl")))
        folder = self.folder()
        wait_for(lambda: (folder / "metrics.jsonl").stat().st_size > 100)
        return folder


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def engine() -> Iterator[private_engine.PrivateEngine]:
    """The engine, with the stand-in image under NeMo's own name."""
    if os.environ.get("INSTALL_ENGINE") or os.environ.get("CI"):
        private_engine.install()
    if reason := private_engine.why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="engine-", ignore_cleanup_errors=True) as folder:
        running = private_engine.PrivateEngine(Path(folder) / "e")
        try:
            running.start()
        except RuntimeError as error:
            pytest.skip(f"no Docker engine can be started here: {error}")
        with running:
            api = docker.APIClient(base_url=running.address, version="auto", timeout=120)
            standin_image.import_root(api, standin_image.python_root(), "plain")
            known = {"PYTHONPATH": "/opt/standin/lib"}
            standin_image.tag_with(api, "plain", "26.04", known)
            for name in BEHAVIOURS:
                standin_image.tag_with(api, "26.04", name, {"STANDIN": name})
            api.close()
            yield running


@pytest.fixture(scope="session")
def with_packages(engine: private_engine.PrivateEngine) -> None:
    """The image `training`: the stand-in with the CPU runtime's packages."""
    api = docker.APIClient(base_url=engine.address, version="auto", timeout=300)
    packages = Path(sysconfig.get_paths()["purelib"])
    standin_image.import_root(api, standin_image.python_root(packages=packages), "training")
    api.close()


@pytest.fixture
def station(engine: private_engine.PrivateEngine, tmp_path: Path) -> Iterator[Station]:
    """A station with an empty project; nothing may be left running on it."""
    api = docker.APIClient(base_url=engine.address, version="auto", timeout=60)
    station = Station(engine, api, tmp_path)
    yield station
    for process in station.started:
        if process.poll() is None:
            process.kill()
            process.wait()
    if engine.answers():
        for each in station.containers():
            api.remove_container(each["Id"], force=True)
    api.close()
