"""What is kept in BF16 for a budget, as a word that the recipe reads back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from playbook.sensitivity.advice import advise, budget
from playbook.sensitivity.findings import load
from pretraining.errors import UsageError
from pretraining.request.recipe import nvfp4_recipe


@pytest.mark.parametrize(
    ("text", "share"), [("15%", 0.15), ("15 %", 0.15), ("0.15", 0.15), (".5", 0.5), ("2.5%", 0.025)]
)
def test_a_budget(text: str, share: float) -> None:
    assert budget(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "0", "0%", "100%", "1", "15", "-5%", "abc", "1e-1", "15%%", "nan", "٣%"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(UsageError, match="it is a share of the linear layers' compute"):
        budget(text)


@pytest.mark.parametrize(
    ("errors", "in_bf16", "share", "words"),
    [
        ({("fc2", 3): 0.3, ("fc2", 0): 0.2}, (), 0.13, "bf16=fc2:0,3"),
        ({("fc2", 3): 0.3, ("fc2", 0): 0.2}, (), 0.125, "bf16=fc2:0,3"),  # it is exactly that
        ({("fc2", 3): 0.3, ("fc2", 0): 0.2}, (), 0.12, "bf16=qkv:0,fc2:3"),  # the next that fit, in their order
        ({("qkv", layer): 0.3 for layer in range(4)}, (), 0.17, "bf16=qkv"),
        ({(name, 2): 0.3 for name in ("qkv", "proj", "fc1", "fc2")}, (), 0.25, "bf16=layers:2"),
        ({("proj", 1): 0.3}, [("proj", 0)], 0.05, "bf16=proj:0,1"),
        ({}, (), 0.01, ""),
        ({}, [("fc1", 0)], 0.1, ""),
    ],
)
def test_the_largest_errors_that_fit(measured: Callable[..., Path], errors, in_bf16, share: float, words: str) -> None:
    kept = advise(load(measured(4, errors, in_bf16)), share)
    assert kept.words == words
    if words:
        assert kept.share <= share
        recipe = nvfp4_recipe.Nvfp4Recipe.of(nvfp4_recipe.words_in(kept.words))
        for cell in kept.cells:
            assert recipe.kept_in_bf16.holds(cell.projection, cell.layer)


def test_the_recipe_that_was_measured_goes_with_it(measured: Callable[..., Path]) -> None:
    found = load(measured(4, {("fc2", 3): 0.3}, recipe={"rht": "off", "stochastic": "on", "weights": "16x16"}))
    assert advise(found, 0.07).words == "rht=off bf16=fc2:3"
