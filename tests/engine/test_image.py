"""Images: pulled from a registry with progress, asked for before, and the project's own Dockerfiles built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import docker
import local_registry
import pytest
from conftest import wait_for

PROJECT = Path(__file__).resolve().parents[2]
PORT = 5000
NAME = f"127.0.0.1:{PORT}/nvidia/nemo:pulled"


@pytest.fixture
def registry_beside(private):
    """A registry on the loopback of the engine's own network."""
    script = Path(local_registry.__file__)
    serving = subprocess.Popen(["nsenter", f"--net=/proc/{private.pid}/ns/net", sys.executable, str(script), str(PORT)])
    yield
    serving.kill()
    serving.wait()


def test_a_missing_image_is_pulled_and_its_digest_recorded(station, registry_beside) -> None:
    def pulled() -> bool:
        try:
            return bool(station.api.pull(NAME))
        except docker.errors.APIError:
            return False

    wait_for(pulled)  # the registry has come up
    station.api.remove_image(NAME)
    code, printed = station.run(tag=NAME)
    assert f"Pulling {NAME}" in printed
    assert code == 1 and f"{NAME} is no NeMo image: it has no Python on its PATH" in printed and "TAG=26.04" in printed
    assert not station.runs.exists() and station.containers() == []
    _, digest = station.api.inspect_image(NAME)["RepoDigests"][0].split("@")
    _, printed = station.run("doctor", "--json", tag=NAME)
    checks = {each["name"]: each for each in json.loads(printed)["checks"]}
    assert digest[:19] in checks["image"]["found"]
    assert "is no NeMo image" in checks["inside the image"]["found"]


def test_a_tag_the_registry_does_not_have(station, registry_beside) -> None:
    other = NAME.replace("pulled", "missing")

    def answered() -> bool:
        return "there is no" in station.run(tag=other)[1]

    wait_for(answered)


def test_what_can_be_pulled_is_known_before(station, registry_beside) -> None:
    def image_of(name: str) -> dict:
        printed = station.run("doctor", "--json", tag=name)[1]
        return next(each for each in json.loads(printed)["checks"] if each["name"] == "image")

    for tag in {tag for image in station.api.images() for tag in image["RepoTags"] or ()} & {NAME}:
        station.api.remove_image(tag)
    wait_for(lambda: image_of(NAME)["ok"])  # the registry has come up
    assert "is not here yet" in image_of(NAME)["found"]
    missing = image_of(NAME.replace("pulled", "missing"))
    assert missing["ok"] is False and "there is no" in missing["found"] and "docker load" in missing["remedy"]
    assert station.api.images(NAME) == []


def test_make_image_builds_the_nemo_layer_and_it_trains(station, private) -> None:
    built = subprocess.run(
        ["make", "image", "TAG=26.04"], cwd=PROJECT, env=station.environment(DOCKER_BUILDKIT="0"),
        text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    code, printed = station.run(tag="nvfp4-playbook:26.04")
    assert code == 0, printed


@pytest.mark.slow
def test_the_cpu_image_builds_and_starts(station, with_packages) -> None:
    base, name = station.engine.image("training"), f"{station.engine.names}-image:cpu"
    words = [
        "docker",
        "build",
        "--quiet",
        "--force-rm",
        "--build-arg",
        f"BASE={base}",
        "--file",
        "docker/Dockerfile.cpu",
    ]
    built = subprocess.run(
        [*words, "--tag", name, "."], cwd=PROJECT, env=station.environment(DOCKER_BUILDKIT="0"),
        text=True, capture_output=True, timeout=180,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    shown = subprocess.run(
        ["docker", "run", "--rm", name, "--help"], env=station.environment(),
        text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert "Pretrain a Llama" in shown.stdout, shown.stderr
