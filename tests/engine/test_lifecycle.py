"""A run after its launcher died, two runs on one GPU, and an interruption at an awkward moment."""

from __future__ import annotations

import os
import re
import shutil
import signal

from conftest import wait_for

from pretraining.record import lock


def killed_launcher(station):
    """A training whose launcher was killed; its folder."""
    running = station.start(tag="steady")
    folder = station.training()
    running.kill()
    running.wait()
    return folder


def test_the_next_command_says_who_holds_the_gpu_and_stop_ends_it(station) -> None:
    folder = killed_launcher(station)
    code, printed = station.run()
    assert code == 1
    assert f"is held by run {folder.name} (its launcher is gone)" in printed
    assert "make attach" in printed and "make stop" in printed
    code, printed = station.run("stop")
    assert code == 0 and f"stopped {folder.name}: interrupted" in printed
    assert station.outcome()["verdict"] == "interrupted"
    assert station.containers() == []
    code, printed = station.run("stop")
    assert code == 2 and "no run of this project" in printed


def test_attach_follows_it_once_and_ctrl_c_stops_it(station) -> None:
    folder = killed_launcher(station)
    attached = station.start("attach")
    wait_for(lambda: (folder / ".launcher").read_text().strip() == str(attached.pid))
    code, printed = station.run("attach")
    assert code == 2 and f"process {attached.pid}" in printed
    attached.send_signal(signal.SIGINT)
    printed, _ = attached.communicate(timeout=60)
    assert attached.returncode == 130
    assert re.search(r"nvfp4 tiny: following, from iteration \d+ of 5", printed), printed
    assert station.outcome()["verdict"] == "interrupted"
    assert station.containers() == []


def test_an_end_that_nobody_saw_is_recorded_by_the_next_command(station) -> None:
    folder = killed_launcher(station)
    processes = station.api.top(station.containers()[0]["Id"], ps_args="-efww")["Processes"]
    os.kill(next(int(row[1]) for row in processes if "standin_training" in row[-1]), signal.SIGKILL)
    wait_for(lambda: station.containers()[0]["State"] == "exited")
    code, printed = station.run()
    assert code == 0, printed
    assert f"run {folder.name} ended while nobody watched: killed" in printed
    assert "killed" in (folder / "outcome.json").read_text()
    assert station.containers() == []


def test_interrupted_while_it_starts_nothing_is_left(station) -> None:
    running = station.start(tag="steady")
    wait_for(lambda: station.containers())
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 130
    assert station.outcome()["verdict"] == "interrupted"
    assert station.containers() == []


def test_while_one_gpu_is_busy_the_other_trains(station) -> None:
    station.start(tag="steady")
    station.training()
    code, printed = station.run("bf16", "--gpu", "0")
    assert code == 0, printed
    assert [each["State"] for each in station.containers()] == ["running"]


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
            assert each.wait(timeout=60) == 130
    assert station.containers() == []


def test_two_runs_in_one_folder_are_one_on_whatever_gpus(station) -> None:
    folder = station.runs / "one"
    first = station.start("nvfp4", "--run-dir", str(folder), tag="steady")
    station.training()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "metrics.jsonl"}
    code, printed = station.run("bf16", "--gpu", "0", "--run-dir", str(folder))
    assert code == 2 and f"--run-dir {folder} is in use by process" in printed
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "metrics.jsonl"} == before
    first.kill()
    first.wait()
    code, printed = station.run("bf16", "--gpu", "0", "--run-dir", str(folder))
    assert code == 2 and re.search(r"in use by process \d+ on [0-9a-f]{12} \(training\)", printed)  # inside
    assert lock.in_use(folder)
    assert station.run("stop")[0] == 0
    assert lock.in_use(folder) == ""


def test_a_container_whose_folder_was_removed_can_be_ended(station) -> None:
    folder = killed_launcher(station)
    shutil.rmtree(folder)
    code, printed = station.run("attach")
    assert code == 2 and f"the run folder {folder} was removed" in printed and "make stop" in printed
    code, printed = station.run("stop")
    assert code == 0 and f"stopped {folder.name}: its run folder was removed before" in printed
    assert station.containers() == []
    assert station.run()[0] == 0  # the GPU is free again
