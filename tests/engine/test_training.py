"""The real scripts, end to end inside a container, as a user the image does not know: a training, and `make data`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import HERE, Station, wait_for

from playbook.launch.container.container_process import ContainerProcess

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
    assert running.wait(timeout=60) == 130
    took = time.monotonic() - began
    assert took < 10
    assert station.outcome()["verdict"] == "interrupted"
    # Training answers within a second and writes this itself. Only where it did not within its grace, because a step
    # was in one long call and the machine busy, does the launcher end it and write in its place.
    assert station.outcome()["cause"] == "interrupted by SIGINT" or took > ContainerProcess.grace_seconds
    assert station.containers() == []


@pytest.fixture
def corpus(station) -> Path:
    """Below the station's home: `corpus.jsonl` of 6 MB behind a link, and a tokenizer of 256 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    real, folder = station.home / "disk", station.home / "corpus"
    real.mkdir(), folder.mkdir()
    lines = [json.dumps({"text": f"document {number}: " + "caf\u00e9 " * 500}) for number in range(1200)]
    (real / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "corpus.jsonl").symlink_to(real / "corpus.jsonl")
    words = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = Tokenizer(models.BPE(vocab={**words, "<end>": 256}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    (station.home / "words").mkdir()
    fast.save(str(station.home / "words" / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
    (station.home / "words" / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


def make_data(station: Station, *flags: str) -> subprocess.Popen[str]:
    """`make data RUNTIME=container` in the station's home, as UID, in a process group of its own like a shell's."""
    words = [sys.executable, str(HERE / "launcher.py"), "data", "--runtime", "container", "--tag"]
    process = subprocess.Popen(
        [*words, station.engine.image("training") if station.engine.own is None else "training", *flags],
        cwd=station.home,
        env=station.environment(PLAYBOOK_TEST_UID=str(UID)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    station.started.append(process)
    return process


@pytest.mark.skipif(shutil.which("docker") is None, reason="make data in a container is a docker command")
def test_make_data_inside(station, with_packages, corpus: Path) -> None:
    """Ctrl-C and again: the user's dataset, of every document. A broken line is told by number and fails."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    out, building = station.home / "out" / "words", station.home / "out" / "words.building"
    flags = ("--input", "corpus/*.jsonl", "--tokenizer", "words", "--out", "out/words", "--workers", "1")
    running = make_data(station, *flags)
    tokens = building / "tokens"
    wait_for(lambda: running.poll() is not None or (tokens.exists() and tokens.stat().st_size), seconds=SECONDS)
    assert running.poll() is None, running.communicate()[0]
    os.killpg(running.pid, signal.SIGINT)  # as a terminal's Ctrl-C
    printed, _ = running.communicate(timeout=30)
    assert running.returncode == 130 and "data: interrupted; the same command goes on from here" in printed, printed
    assert not list(out.parent.glob("*.idx")) and station.containers() == []

    printed, _ = (again := make_data(station, *flags)).communicate(timeout=SECONDS)
    assert again.returncode == 0 and "of an earlier run" in printed and "1,200 documents" in printed, printed
    assert sorted(path.name for path in out.parent.iterdir()) == ["words.bin", "words.idx", "words.manifest.json"]
    assert {path.stat().st_uid for path in out.parent.iterdir()} == {UID}
    dataset = IndexedDataset(str(out))
    assert len(dataset) == 1200 and {int(dataset[number][-1]) for number in range(1200)} == {256}
    assert {len(dataset[number]) for number in range(100, 1000)} == {len("document 100: ") + 500 * len("caf__ ") + 1}

    (corpus / "corpus.jsonl").resolve().write_text('{"text": "whole"}\n{"text": "torn\n')
    printed, _ = (broken := make_data(station, *flags[:-4], "--out", "out/broken")).communicate(timeout=SECONDS)
    assert broken.returncode == 1 and f"{corpus / 'corpus.jsonl'}:2: not JSON" in printed, printed
