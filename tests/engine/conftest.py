"""A Docker engine with stand-in images, and the launcher as a user of a DGX Station would start it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import docker
import pytest
import requests

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import private_engine  # noqa: E402
import standin_image  # noqa: E402

from playbook.launch.container.engine_address import SOCKET  # noqa: E402
from playbook.launch.container.image import REPOSITORY  # noqa: E402
from playbook.launch.container.spec import LABEL  # noqa: E402

STATION = [
    {"index": 0, "uuid": "GPU-0a6f", "name": "NVIDIA RTX PRO 6000", "capability": [12, 0], "memory": 102 * 10**9},
    {"index": 1, "uuid": "GPU-1b7e", "name": "NVIDIA GB300", "capability": [10, 3], "memory": 288 * 10**9},
]  # fmt: skip
BEHAVIOURS = ("steady", "deaf", "cuda-oom", "crash", "flood", "facts")
SECONDS = 60


@dataclass(frozen=True)
class Host:
    """The engine that the tests run on.

    Attributes:
        address: for DOCKER_HOST.
        repository: of the stand-in images.
        names: what the names of containers begin with, and their label.
        own: the tests' private engine, None where it is somebody's: nothing of theirs has these names.
    """

    address: str
    repository: str = REPOSITORY
    names: str = LABEL
    own: private_engine.PrivateEngine | None = None

    def image(self, tag: str) -> str:
        """The name of a stand-in image; a whole name stays what it is."""
        return tag if {"/", ":"} & set(tag) else f"{self.repository}:{tag}"

    def client(self, timeout: float = 120) -> docker.APIClient:
        return docker.APIClient(base_url=self.address, version="auto", timeout=timeout)


@dataclass
class Station:
    """A DGX Station: the launcher, its run folders and its engine."""

    engine: Host
    api: docker.APIClient
    home: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("HF_HOME", "HF_TOKEN", "DOCKER_HOST")}
        fixed = {"DOCKER_HOST": self.engine.address, "HF_HOME": str(self.home / "hf"), "PYTHONUNBUFFERED": "1"}
        described = {"PLAYBOOK_TEST_GPUS": json.dumps(STATION), "PLAYBOOK_TEST_NAMES": self.engine.names}
        if self.engine.own is None:
            described["PLAYBOOK_TEST_NO_GPU"] = "1"
        return kept | fixed | described | more

    def command(self, job: str, *flags: str, tag: str = "26.04") -> list[str]:
        tag = self.engine.image(tag) if self.engine.own is None else tag
        words = [sys.executable, str(HERE / "launcher.py"), job, "--runs", str(self.runs), "--tag", tag]
        return [*words, "--model", "tiny", "--train-iters", "5", "--cache-dir", str(self.home / "cache"), *flags]

    def start(
        self, job: str = "nvfp4", *flags: str, tag: str = "26.04", before: tuple[str, ...] = (), **more: str
    ) -> subprocess.Popen[str]:
        """Start the launcher, behind the words of `before`; it is killed at the end of the test if it still runs."""
        process = subprocess.Popen(
            [*before, *self.command(job, *flags, tag=tag)],
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
        """The tests' own, ended ones too."""
        return self.api.containers(all=True, filters={"name": f"{self.engine.names}-"})

    def folder(self) -> Path:
        """The newest run folder."""
        return max(self.runs.iterdir())

    def outcome(self) -> dict:
        """The newest run's."""
        return json.loads((self.folder() / "outcome.json").read_text())

    def training(self) -> Path:
        """Wait until a steady training, the last that was started, has written metrics; its run folder."""

        def began() -> bool:
            assert self.started[-1].poll() is None, self.started[-1].communicate()[0]
            return self.runs.exists() and any(self.runs.glob("*/metrics.jsonl"))

        wait_for(began)
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
def engine() -> Iterator[Host]:
    """A private engine where one can be started, else one that answers; with the stand-in images on it."""
    with contextlib.ExitStack() as stack:
        host, why_not = _private(stack), ""
        if isinstance(host, str):
            host, why_not = _somebodys(stack), host
        if isinstance(host, str):
            pytest.skip(f"{why_not}, and {host}")
        yield host


def _private(stack: contextlib.ExitStack) -> Host | str:
    """The tests' own engine, or why there is none."""
    if os.environ.get("INSTALL_ENGINE"):
        private_engine.install()
    if reason := private_engine.why_not():
        return reason
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="engine-", ignore_cleanup_errors=True))
    running = private_engine.PrivateEngine(Path(folder) / "e")
    try:
        running.start()
    except RuntimeError as error:
        return f"no private Docker engine can be started here ({error})"
    stack.enter_context(running)
    host = Host(running.address, own=running)
    import_images(host, BEHAVIOURS)
    return host


def _somebodys(stack: contextlib.ExitStack) -> Host | str:
    """An engine that answers, or why there is none. Whatever is on it stays as it is."""
    names = f"{LABEL}-test-{uuid.uuid4().hex[:8]}"
    host = Host(os.environ.get("DOCKER_HOST") or f"unix://{SOCKET}", f"engine-tests.invalid/{names}/nemo", names)
    try:
        api = stack.enter_context(contextlib.closing(host.client()))
        stack.callback(_remove_all, api, host)
        import_images(host, BEHAVIOURS)
    except (docker.errors.DockerException, requests.RequestException, OSError):
        return f"no Docker engine answers at {host.address}"
    if not _sees_our_files(api, host):
        return f"the Docker engine at {host.address} does not see this machine's files"
    return host


def import_images(host: Host, behaviours: tuple[str, ...]) -> None:
    """Put the stand-in under NeMo's default tag, and each behaviour under a tag of its own."""
    with contextlib.closing(host.client()) as api:
        standin_image.import_root(api, host.image("26.04"))
        for name in behaviours:
            standin_image.tag_with(api, host.image("26.04"), host.image(name), {"STANDIN": name})


def _sees_our_files(api: docker.APIClient, host: Host) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        write = ["/opt/venv/bin/python", "-c", f"open('{folder}/seen', 'w')"]
        mounts = [docker.types.Mount(folder, folder, "bind")]
        made = api.create_container(
            host.image("26.04"), entrypoint=write[:1], command=write[1:], name=f"{host.names}-files",
            user=f"{os.getuid()}:{os.getgid()}", host_config=api.create_host_config(mounts=mounts),
        )  # fmt: skip
        with contextlib.suppress(docker.errors.APIError):
            api.start(made)
            api.wait(made)
        api.remove_container(made, force=True)
        return (Path(folder) / "seen").exists()


def _remove_all(api: docker.APIClient, host: Host) -> None:
    with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
        for each in api.containers(all=True, filters={"name": host.names}):
            api.remove_container(each["Id"], force=True, v=True)
        for _ in range(3):  # an image goes after those that were built on it
            for each in api.images(filters={"label": f"{standin_image.LABEL}={host.repository}"}):
                with contextlib.suppress(docker.errors.APIError):
                    api.remove_image(each["Id"], force=True)


@pytest.fixture
def private(engine: Host) -> private_engine.PrivateEngine:
    """The tests' own engine: for what must not be done to somebody's."""
    if engine.own is None:
        pytest.skip("needs a private engine: this one is somebody's")
    return engine.own


@pytest.fixture(scope="session")
def with_packages(engine: Host) -> None:
    """The image `training`: the stand-in with the CPU runtime's packages."""
    packages = Path(pytest.__file__).parents[1]
    with contextlib.closing(engine.client(timeout=300)) as api:
        standin_image.import_root(api, engine.image("training"), packages=packages)


@pytest.fixture
def station(engine: Host, tmp_path: Path) -> Iterator[Station]:
    """A station with an empty project; nothing may be left running on it."""
    with contextlib.closing(engine.client(timeout=60)) as api:
        station = Station(engine, api, tmp_path)
        yield station
        for process in station.started:
            if process.poll() is None:
                process.kill()
                process.wait()
        if engine.own is None or engine.own.answers():
            for each in station.containers():
                api.remove_container(each["Id"], force=True)
