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
# Adam changes the tiny model's weights by a tenth a step: there, 20 steps after a change of 6e-7 in each product, the
# losses of two CPU trainings differ by 1.6e-3. A wide model with a low learning rate can be followed for longer.
WIDE = ("--model", "llama32-1b", "--num-layers", "2", "--bf16-tail-layers", "0", "--data", "python-stdlib")
WIDE += ("--seq-length", "128", "--global-batch-size", "8", "--micro-batch-size", "8", "--warmup-iters", str(STEPS - 1))

TRAININGS = {
    "reference": ((*WIDE, "--emulate", "reference"), {}),
    "nearest": ((*WIDE, "--emulate"), {"NVFP4_STOCHASTIC": "0"}),
    "stochastic": ((*TINY, "--emulate"), {}),
    "stochastic again": ((*TINY, "--emulate"), {}),
}


def start(folder, port, flags, switches):
    """A training in one process, started."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "--master-port", str(port)]
    command += [str(PROJECT / "assets" / "pretrain_llama.py"), "--train-iters", str(STEPS), "--precision", "nvfp4"]
    command += ["--run-dir", str(folder / "run"), "--cache-dir", str(folder / "cache"), *flags]
    environment = os.environ | {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "HF_HUB_OFFLINE": "1"} | switches
    folder.mkdir()
    with (folder / "printed").open("w") as printed:
        return subprocess.Popen(command, env=environment, stdout=printed, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(name)`: the precision's facts and the losses of one of `TRAININGS`, which run side by side."""
    root = tmp_path_factory.mktemp("trainings")
    started = {}
    try:
        for number, (name, how) in enumerate(TRAININGS.items()):
            started[name] = start(root / name, 29617 + number, *how)
        codes = {name: process.wait(timeout=280) for name, process in started.items()}
    finally:
        for process in started.values():
            process.kill()

    def read(name):
        folder = root / name
        assert codes[name] == 0, (folder / "printed").read_text()[-3000:]
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if line["kind"] == "train"]
        assert len(losses) == STEPS
        return json.loads((folder / "run" / "environment.json").read_text())["precision"], losses

    return read


def test_losses_follow_the_reference_quantizers(trained):
    (facts, expected), (precision, losses) = trained("reference"), trained("nearest")
    assert (facts["emulator"], precision["emulator"]) == ("reference", "triton")
    assert facts["ingredients"] == precision["ingredients"] == {"rht": True, "stochastic": False, "two_d": True}
    assert losses[-1] < 0.9 * losses[0], "it must have trained"
    differences = [abs(a / b - 1) for a, b in zip(losses, expected, strict=True)]
    print("relative differences:", *(f"{each:.1e}" for each in differences))
    print("losses:", *(f"{each:.4f}" for each in losses))
    # The last bit of a sum can move a tensor's largest element and with it every scale; see overview.md. That nothing
    # but such bits differs is what test_te_layers.py and test_cpu_layers.py show.
    assert max(differences[:5]) < 1e-3 and max(differences) < 2e-2


def test_a_run_with_stochastic_rounding_repeats(trained):
    once, again = trained("stochastic"), trained("stochastic again")
    assert once == again and once[0]["ingredients"]["stochastic"]
    assert once[1][-1] < 0.9 * once[1][0], "it must have trained"
