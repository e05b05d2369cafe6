"""Fine-tuning with each supported Megatron-Bridge: every scheme, from a run and from a folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pretraining.inputs import finetuning
from pretraining.record import run_folder

pytestmark = pytest.mark.versions

SIZES = ("--seq-length", "64", "--warmup-iters", "1")


@pytest.fixture(scope="module")
def train_with(release, train) -> Callable[..., run_folder.Run]:
    """`train` with one version; gives the record of what succeeded."""

    def run(precision: str, *flags: str) -> run_folder.Run:
        return run_folder.read_run(train(precision, *flags, python=release.python, PYTHONPATH=release.path)[0])

    return run


@pytest.fixture(scope="module")
def bases(train_with, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run that has learned something, and its weights as Hugging Face's."""
    trained = str(train_with("bf16", "--train-iters", "20", "--save", "20", *SIZES).folder)
    exported = str(tmp_path_factory.mktemp("exported") / "huggingface")
    train_with("bf16", "--resume", trained, "--export", exported, *SIZES)
    return {"run": trained, "folder": exported}


@pytest.fixture(scope="module")
def tuned(train_with, bases: dict[str, str], instructions: Path) -> dict[tuple[str, str], list[float]]:
    """The losses by scheme and kind of base, two iterations and an evaluation each."""
    given = ("--data", str(instructions), "--tokenizer", str(instructions), "--train-iters", "2", "--save", "2", *SIZES)
    with ThreadPoolExecutor(2) as pool:
        started = {
            (scheme, kind): pool.submit(train_with, "nvfp4", "--finetune", scheme, "--from", base, *given)
            for scheme in finetuning.SCHEMES
            for kind, base in bases.items()
        }
    runs = {each: future.result() for each, future in started.items()}
    return {each: [line["loss"] for line in (*run.train, *run.evaluations)] for each, run in runs.items()}


def test_it_begins_with_the_weights_that_were_named(tuned) -> None:
    """Adapters begin as nothing, so one first loss; and not that of weights that know nothing."""
    assert len({losses[0] for losses in tuned.values()}) == 1
    assert abs(tuned["lora", "folder"][0] - math.log(257)) > 0.5


def test_a_run_and_a_folder_train_alike_and_every_scheme_in_its_own_way(tuned) -> None:
    assert {len(losses) for losses in tuned.values()} == {3}
    for scheme in finetuning.SCHEMES:
        assert tuned[scheme, "run"] == tuned[scheme, "folder"]
        assert tuned[scheme, "run"][-1] < tuned[scheme, "run"][0] - 0.1
    assert len({tuned[scheme, "run"][-1] for scheme in finetuning.SCHEMES}) == len(finetuning.SCHEMES)
