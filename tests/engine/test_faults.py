"""What can go wrong with a run in a container: a table of faults, each really caused, with what must come of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Station

GPU = "GPU-1b7e"
STOPS_WITHIN_SECONDS = 10


@dataclass
class Scene:
    """A run and what happens to it.

    Attributes:
        launcher: None until it is started.
        folder: of the run, None where it has none.
    """

    station: Station
    launcher: subprocess.Popen[str] | None = None
    folder: Path | None = None

    @property
    def container(self) -> str:
        return self.station.containers()[0]["Id"]

    def worker(self) -> int:
        """The training process inside the container, as the host numbers it."""
        processes = self.station.api.top(self.container, ps_args="-efww")["Processes"]  # whole lines
        return next(int(row[1]) for row in processes if "standin_training" in row[-1])


# How each is caused while training runs.


def ctrl_c(scene: Scene) -> None:
    scene.launcher.send_signal(signal.SIGINT)


def ctrl_c_twice(scene: Scene) -> None:
    ctrl_c(scene)
    time.sleep(0.5)
    ctrl_c(scene)


def ctrl_c_while_paused(scene: Scene) -> None:
    scene.station.api.pause(scene.container)
    ctrl_c(scene)


def docker_kill(scene: Scene) -> None:
    scene.station.api.kill(scene.container)


def terminate(scene: Scene) -> None:
    scene.launcher.send_signal(signal.SIGTERM)


def kill_the_launcher(scene: Scene) -> None:
    scene.launcher.kill()


def kill_the_training(scene: Scene) -> None:
    os.kill(scene.worker(), signal.SIGKILL)


def docker_stop(scene: Scene) -> None:
    scene.station.api.stop(scene.container, timeout=1)


def docker_rm(scene: Scene) -> None:
    scene.station.api.remove_container(scene.container, force=True)


def stop_the_engine(scene: Scene) -> None:
    scene.station.engine.own.stop()


def restart_the_engine(scene: Scene) -> None:
    scene.station.engine.own.stop()
    scene.station.engine.own.start()


def crash_the_engine(scene: Scene) -> None:
    scene.station.engine.own.crash()


def fill_the_disk(scene: Scene) -> None:
    with (scene.station.runs / "ballast").open("wb", buffering=0) as ballast:
        for block in (1 << 14, 1 << 12, 1 << 8, 1):
            while True:
                try:
                    ballast.write(bytes(block))
                except OSError:
                    break


def run_out_of_memory(scene: Scene) -> None:
    scene.station.api.update_container(scene.container, mem_limit="256m", memswap_limit="256m")
    (scene.folder / "eat-memory").touch()


# How each is caused before the launcher starts: what is done, and what the launcher is then started with.


def nothing(scene: Scene) -> dict:
    return {}


def little_patience(scene: Scene) -> dict:
    return {"PLAYBOOK_TEST_PATIENCE": "1"}


def an_engine_that_is(**variables: str) -> Callable[[Scene], dict]:
    """Named by these variables of the environment, and none that could train."""
    return lambda scene: variables


def a_small_disk(scene: Scene) -> dict:
    scene.station.runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", scene.station.runs], check=True)
    return {}


def another_run(scene: Scene) -> dict:
    scene.station.start(tag="steady")
    scene.station.training()
    return {}


def a_container_of_that_name(scene: Scene) -> dict:
    host = scene.station.engine
    scene.station.api.create_container(host.image("26.04"), ["true"], name=f"{host.names}-{GPU}")
    return {}


def data_that_the_engine_does_not_see(scene: Scene) -> dict:
    """A file system that is mounted for the launcher alone."""
    mounted = scene.station.home / "mounted"
    mounted.mkdir()
    files = "mkdir $0/data && touch $0/data/corpus.bin $0/data/corpus.idx"
    script = f'mount -t tmpfs tmpfs "$0" && {files} && exec "$@"'
    return {
        "flags": ("--data", str(mounted / "data" / "corpus")),
        "before": ("unshare", "--mount", "sh", "-c", script, str(mounted)),
    }


# What must be there when the launcher has ended.


def the_record_alone(scene: Scene) -> None:
    assert scene.station.containers() == []


def the_training(scene: Scene) -> None:
    assert [each["State"] for each in scene.station.containers()] == ["running"]
    assert not (scene.folder / "outcome.json").exists()
    assert scene.station.run("stop")[0] == 0
    ended(scene, "interrupted")


def the_container_until_its_end_is_written(scene: Scene) -> None:
    assert len(scene.station.containers()) == 1
    (scene.station.runs / "ballast").unlink()
    assert scene.station.run()[0] == 0
    ended(scene, "failed")
    assert "No space left on device" in (scene.folder / "outcome.json").read_text()


def the_container_until_the_engine_is_back(scene: Scene) -> None:
    scene.station.engine.own.start()
    assert scene.station.run()[0] == 0
    assert scene.station.containers() == []
    assert (scene.folder / "outcome.json").exists()


def the_other_run(scene: Scene) -> None:
    assert [each["State"] for each in scene.station.containers()] == ["running"]
    assert len(list(scene.station.runs.iterdir())) == 1
    assert not (scene.station.folder() / "outcome.json").exists()


def their_container(scene: Scene) -> None:
    assert len(scene.station.containers()) == 1


def no_folder(scene: Scene) -> None:
    assert not scene.station.runs.exists() and scene.station.containers() == []


def ended(scene: Scene, verdict: str) -> None:
    """The run has this verdict now, and its container is gone."""
    assert f'"{verdict}"' in (scene.folder / "outcome.json").read_text()
    assert scene.station.containers() == []


@dataclass(frozen=True)
class Fault:
    """A row.

    Attributes:
        training: how the stand-in trains (the image's tag); "deaf" ignores every signal that can be ignored.
        prepared: done before the launcher starts.
        caused: done while training runs; None where it never comes to run.
        verdict: in outcome.json when the launcher has ended; None where nobody has written one.
        code: the launcher's exit code.
        says: in what it prints, or in the cause on record.
        left: what must be there then, and what becomes of it. Whatever training had written is there in any case.
        needs: "root", or "private" for an engine that may be stopped.
    """

    name: str
    training: str
    prepared: Callable[[Scene], dict]
    caused: Callable[[Scene], None] | None
    verdict: str | None
    code: int
    says: str
    left: Callable[[Scene], None]
    needs: str = ""


# fmt: off
FAULTS = (
    Fault("Ctrl-C", "steady", nothing, ctrl_c,
          "interrupted", 130, "interrupted by SIGINT", the_record_alone),
    Fault("Ctrl-C, and training does not listen", "deaf", nothing, ctrl_c,
          "interrupted", 130, "stopped by the launcher", the_record_alone),
    Fault("Ctrl-C twice, and training does not listen", "deaf", nothing, ctrl_c_twice,
          "interrupted", 130, "stopped by the launcher", the_record_alone),
    Fault("Ctrl-C while the container is paused", "steady", nothing, ctrl_c_while_paused,
          "interrupted", 130, "interrupted by SIGINT|stopped by the launcher", the_record_alone),
    Fault("container killed from outside", "steady", nothing, docker_kill,
          "killed", 1, "docker kill", the_record_alone),
    Fault("more lines than anybody reads", "flood", nothing, None,
          "succeeded", 0, "", the_record_alone),
    Fault("no engine at that address", "26.04", an_engine_that_is(DOCKER_HOST="unix:///no/such.sock"), None,
          None, 1, "no Docker engine answers at DOCKER_HOST=unix:///no/such.sock", no_folder),
    Fault("an address that is none", "26.04", an_engine_that_is(DOCKER_HOST="tcp://127.0.0.1:70000"), None,
          None, 1, "no Docker engine answers at DOCKER_HOST=tcp://127.0.0.1:70000", no_folder),
    Fault("engine over ssh", "26.04", an_engine_that_is(DOCKER_HOST="ssh://gpubox"), None,
          None, 1, "DOCKER_HOST=ssh://gpubox is not supported", no_folder),
    Fault("engine's certificates missing", "26.04",
          an_engine_that_is(DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH="/nope"), None,
          None, 1, "/nope has no ca.pem", no_folder),
    Fault("no such context", "26.04", an_engine_that_is(DOCKER_HOST="", DOCKER_CONTEXT="gone"), None,
          None, 1, "the Docker context gone is not there", no_folder),
    Fault("SIGTERM", "steady", nothing, terminate,
          "interrupted", 130, "interrupted by SIGINT", the_record_alone),
    Fault("kill -9 of the launcher", "steady", nothing, kill_the_launcher,
          None, -signal.SIGKILL, "", the_training),
    Fault("kill -9 of training", "steady", nothing, kill_the_training,
          "killed", 1, r"killed \(SIGKILL\): if nobody did that", the_record_alone),
    Fault("container stopped from outside", "steady", nothing, docker_stop,
          "interrupted", 130, "interrupted by SIGTERM", the_record_alone),
    Fault("container stopped from outside, and training does not listen", "deaf", nothing, docker_stop,
          "killed", 1, "the container was killed", the_record_alone),
    Fault("container removed from outside", "deaf", nothing, docker_rm,
          "killed", 1, "docker rm", the_record_alone),
    Fault("engine stopped", "steady", little_patience, stop_the_engine,
          "interrupted", 130, "sudo systemctl start docker", the_container_until_the_engine_is_back, "private"),
    Fault("engine restarted", "steady", nothing, restart_the_engine,
          "interrupted", 130, "the Docker engine stopped or restarted", the_record_alone, "private"),
    Fault("engine crashed", "steady", little_patience, crash_the_engine,
          None, 1, "the next make command then records", the_container_until_the_engine_is_back, "private"),
    Fault("image missing without network", "99.99", nothing, None,
          None, 1, "is not here and cannot be pulled.*check the network", no_folder),
    Fault("disk full for the log", "steady", a_small_disk, fill_the_disk,
          None, 1, "could not be written", the_container_until_its_end_is_written, "root"),
    Fault("out of the machine's memory", "steady", nothing, run_out_of_memory,
          "out_of_memory", 1, "not the GPU's", the_record_alone),
    Fault("out of the GPU's memory", "cuda-oom", nothing, None,
          "out_of_memory", 1, "CUDA out of memory.*MBS", the_record_alone),
    Fault("training crashes", "crash", nothing, None,
          "failed", 1, "megatron said no", the_record_alone),
    Fault("GPU busy", "steady", another_run, None,
          None, 1, r"GPU 1 NVIDIA GB300 is held by run \S+ \(its launcher is process \d+\)", the_other_run),
    Fault("bind source missing", "26.04", data_that_the_engine_does_not_see, None,
          "failed", 1, "a folder to mount is missing.*mounted/data", the_record_alone, "root"),
    Fault("name clash", "26.04", a_container_of_that_name, None,
          "failed", 1, f"docker rm .*{GPU}", their_container),
)
# fmt: on


@pytest.fixture
def scene(station: Station):
    scene = Scene(station)
    yield scene
    if os.path.ismount(station.runs):
        subprocess.run(["umount", "-l", station.runs], check=True)
    if station.engine.own and not station.engine.own.answers():
        station.engine.own.start()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault(scene: Scene, fault: Fault) -> None:
    station = scene.station
    if fault.needs == "private" and station.engine.own is None:
        pytest.skip("the engine is somebody's and must not be stopped")
    if fault.needs == "root" and os.geteuid() != 0:
        pytest.skip("mounting needs root")
    start = fault.prepared(scene)
    before = set(station.runs.iterdir()) if station.runs.exists() else set()
    scene.launcher = station.start("nvfp4", *start.pop("flags", ()), tag=fault.training, **start)
    trained = 0
    if fault.caused:
        scene.folder = station.training()
        trained = lines(scene.folder)
        began = time.monotonic()
        fault.caused(scene)
    printed, _ = scene.launcher.communicate(timeout=45)

    assert scene.launcher.returncode == fault.code, printed
    if fault.caused in (ctrl_c, ctrl_c_twice, ctrl_c_while_paused, terminate):
        assert time.monotonic() - began < STOPS_WITHIN_SECONDS
    made = [each for each in station.runs.iterdir() if each not in before] if station.runs.exists() else []
    scene.folder = scene.folder or (made[0] if made else None)
    outcome = {}
    if fault.verdict is None:
        assert scene.folder is None or not (scene.folder / "outcome.json").exists()
    else:
        outcome = station.outcome()
        assert outcome["verdict"] == fault.verdict
    assert re.search(fault.says, printed + outcome.get("cause", ""))
    fault.left(scene)
    assert scene.folder is None or lines(scene.folder) >= trained, "lines of metrics are gone"


def lines(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0
