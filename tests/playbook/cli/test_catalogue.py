"""`make models` and `make precisions`: every row, on one screen."""

import re

import pytest

from playbook.cli import catalogue, train
from pretraining.errors import UsageError
from pretraining.request.models import MODELS
from pretraining.request.precisions import PRECISIONS
from pretraining.request.recipe import nvfp4_recipe


def printed(capsys: pytest.CaptureFixture[str], *flags: str) -> list[str]:
    """The lines of `make models`."""
    assert catalogue.models(train.parser("x").parse_args(list(flags))) == 0
    return capsys.readouterr().out.splitlines()


def row(lines: list[str], name: str) -> list[str]:
    return next(line.split() for line in lines if line.startswith(name))


def test_every_model_is_listed_on_one_screen(capsys) -> None:
    lines = printed(capsys)
    assert {line.split()[0] for line in lines if line} >= set(MODELS)
    assert max(map(len, lines)) <= 120 and len(lines) <= 24
    assert row(lines, "llama31-8b")[1:7] == ["8.03B", "48.25", "1", "x", "1", "1"]
    assert row(lines, "llama31-405b")[1:7] == ["406B", "2473", "8", "x", "8", "64"]


def test_one_model_is_taken_apart(capsys) -> None:
    lines = printed(capsys, "--model", "llama31-8b", "--nproc", "8")
    assert "8,030,261,248 parameters" in lines[0] and "On 8 GPUs (tensor 1 x pipeline 1 x data 8)" in lines[1]
    weights, gradients, optimizer, activations, total = map(float, row(lines, "bf16")[1:])
    assert total == pytest.approx(weights + gradients + optimizer + activations, abs=0.3)
    assert optimizer == pytest.approx(12 * 8.03 / 8, abs=0.1)  # shared among the replicas
    halved = printed(capsys, "--model", "llama31-8b", "--nproc", "8", "--micro-batch-size", "2")
    assert float(row(halved, "bf16")[4]) == pytest.approx(activations / 2, abs=0.1)


def test_processes_that_do_not_hold_the_model() -> None:
    with pytest.raises(UsageError, match="NPROC=6: llama31-70b is split over 16 processes"):
        catalogue.models(train.parser("x").parse_args(["--model", "llama31-70b", "--nproc", "6"]))


def test_every_precision_is_listed(capsys) -> None:
    assert catalogue.precisions() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(PRECISIONS)]] == list(PRECISIONS)
    assert max(map(len, lines)) <= 120
    nvfp4 = next(line for line in lines if line.startswith("nvfp4"))
    assert "last eighth" in nvfp4 and "FP4 from 0.4.2" in nvfp4 and "10.0 10.3 10.7* 12.0* 12.1*" in nvfp4


WHERE = {  # word: natively, and by the reference quantizer
    "rht=off": ("yes", "no"),
    "stochastic=off": ("yes", "always"),
    "weights=1x16": ("yes", "no"),
    "scale=4over6": ("from Transformer Engine 2.18 with rht=off", "no"),
    "scale=4over6:weights": ("from Transformer Engine 2.18", "no"),
    "scale=4over6:activations": ("from Transformer Engine 2.18 with rht=off", "no"),
    "error=mse": ("from Transformer Engine 2.18", "no"),
    "activations=rows": ("from Transformer Engine 2.19 with rht=off bf16=proj", "no"),
    "switch=0.82:forward": ("from Transformer Engine 2.19", "no"),
    "bf16": ("yes", "yes"),
    "primary=bf16": ("yes", "always"),
}


def test_every_word_of_the_recipe_says_what_computes_it(capsys) -> None:
    catalogue.precisions()
    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    found = {line[0]: line[1:] for line in lines if re.fullmatch(r"\w+=\S+", line[0]) and len(line) == 5}
    assert {name.partition("=")[0] for name in found} == set(nvfp4_recipe.WORDS)
    for name, (native, reference) in WHERE.items():
        (row,) = [row for word, row in found.items() if word == name or word.startswith(f"{name}=")]
        ours = "always" if name.startswith("primary") else "yes"
        assert row == [native, ours, reference, ours], name
