"""`make doctor` on a real engine."""

from __future__ import annotations

import json
import signal

import pytest
import standin_image


@pytest.fixture
def examine(station):
    """`examine(flags...)`: exit code and the checks by name, on a station of two GPUs."""

    def run(*flags: str, tag: str = "26.04") -> tuple[int, dict[str, dict]]:
        code, printed = station.run("doctor", "--json", *flags, tag=tag)
        return code, {each["name"]: each for each in json.loads(printed)["checks"]}

    return run


def test_a_station_that_is_ready(examine) -> None:
    code, checks = examine()
    assert code == 0, checks
    assert "API 1." in checks["Docker engine"]["found"]
    assert checks["GPUs in containers"]["found"] == "NVIDIA Container Toolkit"
    assert checks["image"]["ok"] and "sha256:" in checks["image"]["found"]
    assert checks["leftover containers"]["ok"]
    assert checks["memory for containers"]["found"]


def test_an_image_that_is_neither_here_nor_in_reach(examine) -> None:
    code, checks = examine(tag="no-such-image:1")
    assert code == 1
    assert "is not here" in checks["image"]["found"] and "docker save" in checks["image"]["remedy"]


def test_a_leftover_container_on_the_chosen_gpu_is_in_the_way(station, examine) -> None:
    running = station.start(tag="steady")
    station.training()
    running.send_signal(signal.SIGKILL)
    running.wait()
    code, checks = examine()
    assert code == 1
    assert "its launcher is gone" in checks["container"]["found"] and "make attach" in checks["container"]["remedy"]
    code, checks = examine("--precision", "bf16", "--gpu", "0")
    assert code == 0, "the other GPU is free"


def test_a_driver_older_than_the_images_cuda_is_pointed_out(station, examine) -> None:
    names = [station.engine.image(tag) for tag in ("26.04", "newer")]
    standin_image.tag_with(station.api, *names, {"CUDA_VERSION": "14.1.0.036"})
    code, checks = examine(tag="newer")
    check = checks["driver for the image"]
    assert not check["ok"] and "14.1" in check["found"] and "13.0" in check["found"] and "update" in check["remedy"]
    assert code == 0, "it may work through the image's compatibility libraries"


def test_an_engine_older_than_what_is_asked_for_is_named_with_the_image_that_has_it(examine) -> None:
    code, checks = examine()
    assert checks["transformer-engine"]["ok"] and "2.14.1 (needs 2.8 or newer)" in checks["transformer-engine"]["found"]
    code, checks = examine("--nvfp4", "scale=4over6:weights")
    check = checks["transformer-engine"]
    assert code == 1 and not check["ok"] and "2.14.1 (needs 2.18 or newer)" in check["found"]
    assert check["remedy"] == "NeMo 26.08 has 2.17, so take a newer one (TAG=)"
    code, checks = examine("--nvfp4", "scale=4over6:weights", "--emulate")
    assert code == 0 and "needs 2.10" in checks["transformer-engine"]["found"]
