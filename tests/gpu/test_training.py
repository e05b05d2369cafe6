"""Whole trainings on a GPU: this project's emulation against Transformer Engine's reference quantizer.

Run by `make test-gpu`; skipped where there is no GPU or no Transformer Engine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)
pytest.importorskip("transformer_engine.pytorch", reason="no Transformer Engine")

PROJECT = Path(__file__).resolve().parents[2]
STEPS = 20


TINY = ("--model", "tiny", "--global-batch-size", "64")  # two micro batches
# Adam changes the tiny model's weights by a tenth a step, and within ten steps the last bit of any sum decides the
# third digit of its loss. A wide model with its own learning rate can be followed for longer.
WIDE = ("--model", "llama32-1b", "--num-layers", "2", "--bf16-tail-layers", "0", "--data", "python-stdlib")
WIDE += ("--seq-length", "128", "--global-batch-size", "8", "--micro-batch-size", "8")


def train(folder, *flags, **switches):
    """The run's precision and its losses, in one process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "--master-port", "29617"]
    command += [str(PROJECT / "assets" / "pretrain_llama.py"), "--train-iters", str(STEPS)]
    command += ["--run-dir", str(folder), "--cache-dir", str(folder.parent / "cache"), "--precision", "nvfp4", *flags]
    environment = os.environ | {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "HF_HUB_OFFLINE": "1"} | switches
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == STEPS
    return json.loads((folder / "environment.json").read_text())["precision"], losses


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return train(tmp_path_factory.mktemp("reference") / "run", *WIDE, "--emulate", "reference")


def test_losses_are_the_reference_quantizers_at_every_step(reference, tmp_path):
    precision, losses = train(tmp_path / "run", *WIDE, "--emulate", NVFP4_STOCHASTIC="0")
    facts, expected = reference
    assert (facts["emulator"], precision["emulator"]) == ("reference", "triton")
    assert facts["ingredients"] == precision["ingredients"] == {"rht": True, "stochastic": False, "two_d": True}
    assert losses[-1] < 0.9 * losses[0], "it must have trained"
    print("largest relative difference", max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True)))
    assert losses == pytest.approx(expected, rel=1e-3)


def test_a_run_with_stochastic_rounding_repeats(tmp_path):
    once = train(tmp_path / "once", *TINY, "--emulate")
    again = train(tmp_path / "again", *TINY, "--emulate")
    assert once == again and once[0]["ingredients"]["stochastic"]
