"""A training under measurement: what it leaves, that it trains as it would, and what cannot be measured."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from playbook.sensitivity import findings
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.request import flags as training_flags
from pretraining.request import settings


@pytest.fixture(scope="module")
def trained(train) -> dict[str, Path]:
    """A run that is measured from the checkpoint of a BF16 run on, and one that is not, side by side."""
    first, _ = train("bf16", "--save", "3", "--train-iters", "3", "--micro-batch-size", "4")
    flags = (
        "--train-iters",
        "5",
        "--micro-batch-size",
        "4",
        "--seed",
        "7",
        "--nvfp4",
        "scale=4over6:weights bf16=fc2:0",
    )
    more = {"measured": ("--sensitivity", "2"), "plain": (), "resumed": ("--sensitivity", "2", "--resume", str(first))}
    with ThreadPoolExecutor() as pool:
        started = {name: pool.submit(train, "nvfp4", *flags, *of) for name, of in more.items()}
        return {name: future.result()[0] for name, future in started.items()}


@pytest.mark.slow
def test_it_trains_as_it_would_and_says_what_it_measured(trained) -> None:
    plain, measured = (run_folder.read_run(trained[name]) for name in ("plain", "measured"))
    assert [line["loss"] for line in measured.train] == [line["loss"] for line in plain.train]
    assert measured.environment["measured"] == [4, 5] and "profiled" not in measured.environment
    found = findings.load(trained["measured"])
    in_bf16 = {(cell.projection, cell.layer) for cell in found.cells if not cell.errors}
    assert in_bf16 == {("fc2", 0), *((name, 3) for name in ("qkv", "proj", "fc1", "fc2"))}  # named, and the tail
    assert len(found.cells) == 16 and all(0.01 < cell.error < 0.3 for cell in found.measured)
    assert {cell.projection: cell.parameters for cell in found.cells}["fc1"] == 128 * 2 * 384
    assert not (trained["plain"] / run_folder.SENSITIVITY).exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_precision_is_measured(trained) -> None:
    content = json.loads((trained["resumed"] / run_folder.SENSITIVITY).read_text())
    assert content["iterations"] == [4, 5] and content["recipe"]["bf16"] == "fc2:0"


@pytest.mark.slow
def test_on_a_gpu_a_layer_is_known_while_it_computes_forward(in_python) -> None:
    inside, after, measured = in_python("""
        import sys, torch
        from pathlib import Path
        from types import ModuleType, SimpleNamespace
        from pretraining.megatron import cpu
        cpu.enable()
        engine = sys.modules["pretraining.numerics.te_quantizer"] = ModuleType("te_quantizer")  # needs a GPU
        told, inside = [], []
        engine.measure = told.append
        from pretraining.run.sensitivity import Sensitivity
        watcher = Sensitivity(SimpleNamespace(watched=[1, 1]), Path(), on_gpu=True)

        class Linear(torch.nn.Module):
            def forward(self, x):
                inside.append(watcher._measurement.layer)
                return x

        module = Linear()
        undo = watcher._watch_on_gpu("a layer", module)
        module(torch.ones(1))
        after = watcher._measurement.layer
        for each in undo:
            each()
        module(torch.ones(1))
        answer = inside, after, [each is watcher._measurement for each in told] == [True, False]
    """)
    assert inside == ["a layer", None] and after is None and measured


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--precision", "bf16"), "measures NVFP4's rounding, and bf16 has none"),
        (("--sensitivity", "0"), "0 with 6 left to train: at least 1 is"),
        (("--sensitivity", "7"), "7 with 6 left to train"),
        (("--profile", "2"), "which nothing else watches"),
        (("--nvfp4", "switch=0.5"), "the late switch ends after 3 of 6"),
    ],
)
def test_what_cannot_be_measured(flags: tuple[str, ...], words: str) -> None:
    args = training_flags.parser("x").parse_args(["--train-iters", "6", "--sensitivity", "2", *flags])
    with pytest.raises(UsageError, match=words):
        settings.resolve(args, on_gpu=False, processes=1)


@pytest.mark.parametrize("flags", [(), ("--emulate", "reference")])
def test_on_a_gpu_the_emulation_is_measured(flags: tuple[str, ...]) -> None:
    args = training_flags.parser("x").parse_args(["--model", "llama32-1b", "--sensitivity", "2", *flags])
    with pytest.raises(UsageError, match="measures what the emulation rounds: add --emulate"):
        settings.resolve(args, on_gpu=True, processes=1)
