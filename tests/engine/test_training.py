"""The real training, end to end inside a container: Megatron-Bridge on the CPU, as a user the image does not know."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from conftest import wait_for

from playbook.runtimes.container_process import ContainerProcess

UID = 12345 if os.geteuid() == 0 else os.getuid()  # nobody whom the image knows
SECONDS = 240

pytestmark = pytest.mark.slow


def test_it_trains_inside_and_stops_when_told(station, with_packages) -> None:
    flags = ("--global-batch-size", "8", "--micro-batch-size", "8")
    running = station.start("nvfp4", *flags, tag="training", PLAYBOOK_TEST_UID=str(UID))
    printed, _ = running.communicate(timeout=SECONDS)
    assert running.returncode == 0, printed
    run = station.folder()
    assert station.outcome()["verdict"] == "succeeded"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5]
    assert {(run / name).stat().st_uid for name in ("metrics.jsonl", "train.log", "outcome.json")} == {UID}
    environment = json.loads((run / "environment.json").read_text())
    assert environment["precision"]["arithmetic"] == "emulated"  # there is no GPU in this container

    running = station.start("bf16", *flags, "--train-iters", "100000", tag="training", PLAYBOOK_TEST_UID=str(UID))
    wait_for(lambda: len(list(station.runs.glob("*/metrics.jsonl"))) == 2, seconds=SECONDS)
    began = time.monotonic()
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=20) == 130
    took = time.monotonic() - began
    assert took < 10
    assert station.outcome()["verdict"] == "interrupted"
    # Training answers within a second and writes this itself. Only where it did not within its grace, because a step
    # was in one long call and the machine busy, does the launcher end it and write in its place.
    assert station.outcome()["cause"] == "interrupted by SIGINT" or took > ContainerProcess.grace_seconds
    assert station.containers() == []
