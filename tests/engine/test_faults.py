"""What can go wrong with a container, each with the verdict that must be on record and nothing lost or left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import wait_for

NAME = "nvfp4-playbook-GPU-1b7e"


def worker_of(station) -> int:
    """The training process inside the container, as the host numbers it."""
    for row in station.api.top(station.containers()[0]["Id"])["Processes"]:
        if "standin_training" in row[-1]:
            return int(row[1])
    raise AssertionError("no training process")


@pytest.mark.parametrize(
    ("behaviour", "number"), [("steady", signal.SIGINT), ("steady", signal.SIGTERM), ("deaf", signal.SIGINT)]
)
def test_interrupted_it_stops_within_ten_seconds(station, behaviour, number) -> None:
    running = station.start(tag=behaviour)
    station.training()
    began = time.monotonic()
    running.send_signal(number)
    assert running.wait(timeout=15) == 130
    assert time.monotonic() - began < 10
    assert station.outcome()["verdict"] == "interrupted"
    assert station.containers() == []


def test_interrupted_while_it_starts_nothing_is_left(station) -> None:
    running = station.start(tag="steady")
    wait_for(lambda: station.containers())
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=15) == 130
    assert station.outcome()["verdict"] == "interrupted"
    assert station.containers() == []


def test_a_killed_launcher_is_found_and_stopped(station) -> None:
    running = station.start(tag="steady")
    folder = station.training()
    running.kill()
    running.wait()
    code, printed = station.run()
    assert code == 1
    assert folder.name in printed and "make attach" in printed and "make stop" in printed
    code, printed = station.run("stop")
    assert code == 0, printed
    assert station.outcome()["verdict"] == "interrupted"
    assert station.containers() == []


def test_a_killed_launcher_is_attached_to_again(station) -> None:
    running = station.start(tag="steady")
    folder = station.training()
    running.kill()
    running.wait()
    attached = station.start("attach")
    wait_for(lambda: (folder / ".launcher").read_text().strip() == str(attached.pid))
    second = station.run("attach")
    assert second[0] == 2 and f"process {attached.pid}" in second[1]
    attached.send_signal(signal.SIGINT)
    assert attached.wait(timeout=15) == 130
    assert station.outcome()["verdict"] == "interrupted"
    assert station.containers() == []


def test_an_end_that_nobody_saw_is_recorded_by_the_next_command(station) -> None:
    running = station.start(tag="steady")
    folder = station.training()
    running.kill()
    running.wait()
    os.kill(worker_of(station), signal.SIGKILL)
    wait_for(lambda: station.containers()[0]["State"] == "exited")
    code, printed = station.run()
    assert code == 0, printed
    assert f"run {folder.name} ended while nobody watched: killed" in printed
    assert "killed" in (folder / "outcome.json").read_text()
    assert station.containers() == []


def test_killed_training_is_called_killed(station) -> None:
    running = station.start(tag="steady")
    folder = station.training()
    lines = (folder / "metrics.jsonl").read_text().count("\n")
    os.kill(worker_of(station), signal.SIGKILL)
    assert running.wait(timeout=15) == 1
    assert station.outcome()["verdict"] == "killed"
    assert (folder / "metrics.jsonl").read_text().count("\n") >= lines
    assert station.containers() == []


@pytest.mark.parametrize(("behaviour", "verdict", "code"), [("steady", "interrupted", 130), ("deaf", "killed", 1)])
def test_a_container_stopped_from_outside(station, behaviour, verdict, code) -> None:
    running = station.start(tag=behaviour)
    station.training()
    station.api.stop(station.containers()[0]["Id"], timeout=2)
    assert running.wait(timeout=15) == code
    assert station.outcome()["verdict"] == verdict
    assert station.containers() == []


def test_a_container_removed_from_outside(station) -> None:
    running = station.start(tag="deaf")
    station.training()
    station.api.remove_container(station.containers()[0]["Id"], force=True)
    assert running.wait(timeout=15) == 1
    assert station.outcome()["verdict"] == "killed"


def test_an_engine_that_restarts_is_reported(station) -> None:
    running = station.start(tag="steady")
    station.training()
    station.engine.stop()
    station.engine.start()
    printed, _ = running.communicate(timeout=45)
    assert running.returncode in (1, 130)
    assert "the Docker engine stopped or restarted" in printed
    assert station.outcome()["verdict"] in ("interrupted", "killed")
    wait_for(lambda: station.containers() == [])


def test_an_engine_that_does_not_come_back(station) -> None:
    running = station.start(tag="steady", PLAYBOOK_TEST_PATIENCE="1")
    folder = station.training()
    station.engine.stop()
    printed, _ = running.communicate(timeout=30)
    assert running.returncode in (1, 130)
    assert "sudo systemctl start docker" in printed
    assert "interrupted" in (folder / "outcome.json").read_text()  # the engine told training to end
    station.engine.start()
    assert station.run()[0] == 0
    assert station.containers() == []


def test_an_engine_that_crashes(station) -> None:
    running = station.start(tag="steady", PLAYBOOK_TEST_PATIENCE="1")
    folder = station.training()
    station.engine.crash()
    printed, _ = running.communicate(timeout=30)
    assert running.returncode == 1
    assert "the next make command then records how the run ended" in printed
    assert not (folder / "outcome.json").exists(), "training may still run"
    station.engine.start()
    code, printed = station.run()
    assert code == 0, printed
    assert (folder / "outcome.json").exists()
    assert station.containers() == []


def test_an_image_that_is_missing_without_a_network(station) -> None:
    code, printed = station.run(tag="99.99")
    assert code == 1
    assert "nvcr.io/nvidia/nemo:99.99 is not here and cannot be pulled" in printed and "network" in printed
    assert not station.runs.exists() and station.containers() == []


def test_a_full_disk_loses_nothing(station) -> None:
    station.runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", station.runs], check=True)
    try:
        running = station.start(tag="steady")
        folder = station.training()
        with (station.runs / "ballast").open("wb", buffering=0) as ballast:
            for block in (1 << 14, 1 << 12, 1 << 8, 1):
                while True:
                    try:
                        ballast.write(bytes(block))
                    except OSError:
                        break
        printed, _ = running.communicate(timeout=30)
        assert running.returncode == 1
        assert "could not be written" in printed
        assert not (folder / "outcome.json").exists()
        assert len(station.containers()) == 1, "the container is the record until the end is written"
        (station.runs / "ballast").unlink()
        assert station.run()[0] == 0
        assert "failed" in (folder / "outcome.json").read_text()
        assert "No space left on device" in (folder / "outcome.json").read_text()
        assert station.containers() == []
    finally:
        subprocess.run(["umount", "-l", station.runs], check=True)


def test_out_of_the_machines_memory(station) -> None:
    running = station.start(tag="steady")
    folder = station.training()
    station.api.update_container(station.containers()[0]["Id"], mem_limit="256m", memswap_limit="256m")
    (folder / "eat-memory").touch()
    assert running.wait(timeout=30) == 1
    assert station.outcome()["verdict"] == "out_of_memory"
    assert "not the GPU's" in station.outcome()["cause"]
    assert station.containers() == []


def test_out_of_the_gpus_memory(station) -> None:
    code, printed = station.run(tag="cuda-oom")
    assert code == 1
    assert station.outcome()["verdict"] == "out_of_memory"
    assert "CUDA out of memory" in station.outcome()["cause"] and "MBS" in printed


def test_a_crash_says_what_it_said(station) -> None:
    code, _ = station.run(tag="crash")
    assert code == 1
    assert station.outcome()["verdict"] == "failed"
    assert "megatron said no" in station.outcome()["cause"]


def test_a_gpu_that_is_busy(station) -> None:
    running = station.start(tag="steady")
    folder = station.training()
    code, printed = station.run()
    assert code == 1
    assert f"GPU 1 NVIDIA GB300 is held by run {folder.name} (its launcher is process {running.pid})" in printed
    assert len(list(station.runs.iterdir())) == 1 and len(station.containers()) == 1
    other = station.run("bf16", "--gpu", "0")
    assert other[0] == 0, "the other GPU is free"
    running.terminate()
    assert running.wait(timeout=15) == 130


def test_two_runs_at_once_never_share_a_gpu(station) -> None:
    both = [station.start(tag="steady", BATCH=str(number)) for number in range(2)]
    wait_for(lambda: any(each.poll() is not None for each in both))
    loser = next(each for each in both if each.poll() is not None)
    assert loser.returncode == 1
    assert re.search("h[eo]ld", loser.communicate()[0])
    wait_for(lambda: [each["State"] for each in station.containers()] == ["running"])
    for each in both:
        if each is not loser:
            each.terminate()
            assert each.wait(timeout=15) == 130
    assert station.containers() == []


def test_a_folder_to_mount_that_is_missing(station, monkeypatch) -> None:
    from playbook import engine
    from playbook.launch import NotStarted
    from playbook.runtimes.container import Container, Folder
    from playbook.runtimes.container_process import ContainerProcess

    monkeypatch.setenv("DOCKER_HOST", station.engine.address)
    run = station.home / "run"
    run.mkdir()
    home = {name: str(run) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    asked = Container(
        image="nvcr.io/nvidia/nemo:26.04", name=None, command=["python", "-V"], environment=home, secrets=(),
        folders=(Folder(Path("/no/such/folder")),), user="0:0", workdir="/", gpu=None,
    )  # fmt: skip
    with pytest.raises(NotStarted, match=r"a folder to mount is missing.*/no/such/folder"):
        ContainerProcess.start(engine.connect(), asked, run)
    assert not Path("/no/such/folder").exists() and station.containers() == []


def test_a_container_of_that_name_that_is_not_ours(station) -> None:
    station.api.create_container("nvcr.io/nvidia/nemo:26.04", ["true"], name=NAME)
    code, printed = station.run()
    assert code == 1
    assert station.outcome()["verdict"] == "failed"
    assert f"docker rm {NAME}" in printed
    assert len(station.containers()) == 1, "somebody else's container stays"
