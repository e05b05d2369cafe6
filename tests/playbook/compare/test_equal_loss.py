"""Time to equal loss: synthetic curves whose ratio of tokens is known."""

import argparse
import time
from pathlib import Path

import numpy as np
import pytest

from playbook.compare import comparison, equal_loss, published
from playbook.compare.comparison import make_arm
from playbook.compare.figures import Measured, measure
from playbook.compare.model import EqualLoss, Ratio
from playbook.compare.stats import Figure
from playbook.record.columns import Lines
from pretraining.record.run_folder import Run, Verdict

HELD = {"decay_style": "constant", "learning_rate": 1e-3, "min_learning_rate": 0.0}
COSINE = HELD | {"decay_style": "cosine"}
TOKENS = 4096
EMULATED = Ratio("cost of emulation", Figure(1.01, "x"), "1.01 times the BF16 step", differs=True)
NATIVE = Ratio("speed-up", Figure(2.0, "x"), "2.00x", differs=True)


def power_law(tokens: np.ndarray, floor: float = 1.7, scale: float = 8.0, exponent: float = 0.3) -> np.ndarray:
    """A loss that falls as trainings of language models do, nats."""
    return floor + scale * tokens**-exponent


def run(
    loss: np.ndarray, *, facts: dict | None = None, step: float = 1.0, seed: int = 1, start: int = 0,
    validation: dict[int, float] | None = None, precision: str = "bf16", mock: bool = False,
) -> Measured:  # fmt: skip
    """A run with these losses from iteration `start` + 1 on."""
    count = len(loss)
    columns = {
        "iteration": np.arange(start + 1.0, start + count + 1),
        "loss": loss,
        "step_time_s": np.full(count, step),
    }
    environment = {
        "precision": {"name": precision, "arithmetic": "native"},
        "tokens_per_step": TOKENS,
        "mock_data": mock,
        "parity": (HELD if facts is None else facts) | {"seed": seed, "start_iteration": start},
    }
    evaluations = [
        {"kind": "eval", "split": "validation", "iteration": at, "loss": each}
        for at, each in (validation or {}).items()
    ]
    return measure(
        Run(Path(precision), environment=environment, outcome={"verdict": Verdict.SUCCEEDED, "iterations": count},
            train=Lines(columns), evaluations=evaluations)
    )  # fmt: skip


def pairs(ratio: float, *, seeds: int = 1, count: int = 4000, noise: float = 0.04, shared: float = 0.0, **more):
    """An arm's runs and the baseline's; the arm needs `ratio` times the tokens at each loss.

    Args:
        shared: of the noise, as that of the same tokens is.
    """
    generator = np.random.default_rng(20261127)
    at = np.arange(1, count + 1.0)
    arms: tuple[list[Measured], list[Measured]] = ([], [])
    for seed in range(seeds):
        both = shared * generator.standard_normal(count)
        for arm, each, precision in ((arms[0], ratio, "nvfp4"), (arms[1], 1.0, "bf16")):
            own = np.sqrt(1 - shared**2) * generator.standard_normal(count)
            arm.append(run(power_law(at / each) + noise * (both + own), seed=seed, precision=precision, **more))
    return arms


def between(new, base, ratio: Ratio | None = None, given: str = "") -> EqualLoss:
    arms = tuple(make_arm(name, runs) for name, runs in (("B", new), ("A", base)))
    return equal_loss.between(arms, new, base, ratio, published.speed_up(given) if given else None)


@pytest.mark.parametrize("shared", [0.0, 0.9])
@pytest.mark.parametrize("ratio", [0.8, 0.97, 1.0, 1.02, 1.1, 1.3, 2.0])
def test_the_ratio_of_tokens_is_found_within_two_per_cent(ratio: float, shared: float) -> None:
    found = between(*pairs(ratio, shared=shared))
    assert found.tokens.value == pytest.approx(ratio, rel=0.02)
    assert found.holds_rate and len(found.said) == 1
    slower = power_law(np.array([4000.0 / max(ratio, 1.0)])).item()
    assert slower < found.loss < slower + 0.2  # smoothed: the mean of the second half lies above its end
    assert (found.tokens.low, found.tokens.high) == (None, None)
    assert "one seed: how seeds differ is unknown" in found.said[0]


@pytest.mark.parametrize(
    ("count", "noise", "ratio", "floor", "scale", "exponent"),
    [
        (20_000, 0.10, 1.03, 0.0, 12.0, 0.076),
        (5_000, 0.02, 1.10, 1.7, 5.0, 0.1),
        (1_000, 0.02, 1.20, 2.0, 20.0, 0.5),
        (400, 0.01, 1.50, 1.7, 8.0, 0.3),
        (200, 0.005, 0.90, 1.0, 5.0, 0.5),
    ],
)
def test_whatever_the_shape_of_the_curve(count, noise, ratio, floor, scale, exponent) -> None:
    generator = np.random.default_rng(3)
    at = np.arange(1, count + 1.0)
    losses = [power_law(at / each, floor, scale, exponent) for each in (ratio, 1.0)]
    new, base = (run(loss + noise * generator.standard_normal(count)) for loss in losses)
    assert between([new], [base]).tokens.value == pytest.approx(ratio, rel=0.02)


def test_seeds_give_an_interval_that_holds_the_ratio() -> None:
    found = between(*pairs(1.05, seeds=5))
    assert found.tokens.low < 1.05 < found.tokens.high < found.tokens.low + 0.06
    assert (found.tokens.spread, found.tokens.count) == ("95 % t-interval over 5 seeds", 5)
    assert "over 5 seeds" in found.said[0]


def test_repeats_of_one_seed_are_no_seeds() -> None:
    new, base = pairs(1.05, seeds=1)
    found = between(new * 5, base * 5)
    assert (found.tokens.low, found.tokens.count) == (None, 1)


def test_runs_are_paired_by_seed_and_not_by_their_order() -> None:
    """Seeds that start far apart, and the same within a pair: in another order nothing changes."""
    at = np.arange(1, 2001.0)
    new, base = (
        [run(power_law(at / each, floor=1.5 + 0.1 * seed), seed=seed) for seed in range(3)] for each in (1.1, 1.0)
    )
    found = between(new[::-1], base)
    assert found.tokens.value == pytest.approx(1.1, rel=0.005)
    assert found.tokens.high - found.tokens.low < 0.005


def test_an_emulation_has_a_ratio_and_with_a_number_a_projection() -> None:
    arms = pairs(1.05, seeds=3)
    plain, given = between(*arms, EMULATED), between(*arms, EMULATED, "1.68")
    assert plain.effective_speed_up is None and not plain.projected
    assert "SPEEDUP=published" in plain.said[-1]
    assert given.projected
    effective = given.effective_speed_up
    assert effective.value == pytest.approx(1.68 / given.tokens.value)
    assert effective.low == pytest.approx(1.68 / given.tokens.high)
    assert "Effective speed-up, projected: 1.6" in given.said[-1] and "(1.68x, given)" in given.said[-1]
    published = between(*arms, EMULATED, "published")
    assert published.effective_speed_up.value == pytest.approx(9.05 / 5.39 / given.tokens.value)
    assert "DGX Station" in published.said[-1]
    other = between(*(arms[1], arms[0]), EMULATED, "published")
    assert other.effective_speed_up is None and not other.projected
    assert "SPEEDUP=published is NVFP4's over BF16" in other.said[-1]


def test_native_runs_have_their_own_speed_up() -> None:
    new, base = pairs(1.05, seeds=3, count=1000)
    faster = [run(each.lines.column("loss"), seed=seed, step=0.5) for seed, each in enumerate(new)]
    found = between(faster, base, NATIVE)
    assert found.effective_speed_up.value == pytest.approx(2 / found.tokens.value)
    assert "projected" not in found.said[-1] and not found.projected


@pytest.mark.parametrize(
    ("facts", "holds", "said"),
    [
        (HELD, True, None),
        (COSINE | {"min_learning_rate": 1e-3}, True, None),
        (COSINE, False, "The learning rate decays: curves of unfinished schedules are not comparable"),
        ({}, None, "Whether the learning rate was held is not recorded"),
    ],
)
def test_what_a_decaying_rate_does_to_it_is_said(facts: dict, holds: bool | None, said: str | None) -> None:
    found = between(*pairs(1.05, facts=facts))
    assert found.holds_rate is holds
    assert any(said in each for each in found.said) if said else len(found.said) == 1


def test_a_validation_loss_on_the_way_has_a_ratio_of_its_own() -> None:
    at = np.arange(500, 4001, 500.0)
    curves = [dict(zip(map(int, at), power_law(at / each), strict=True)) for each in (1.1, 1.0)]
    (new, *_), (base, *_) = pairs(1.05, noise=0.01)
    new, base = (
        run(each.lines.column("loss"), validation=curve) for each, curve in zip((new, base), curves, strict=True)
    )
    found = between([new], [base])
    assert found.validation_tokens.value == pytest.approx(1.1, rel=0.01)
    assert found.tokens.value == pytest.approx(1.05, rel=0.02)
    assert "For the same validation loss" in found.said[1]


@pytest.mark.parametrize(
    ("new", "base", "said"),
    [
        (power_law(np.arange(1, 1001.0)) + 30, power_law(np.arange(1, 1001.0)), "the curves never meet: B comes down"),
        (np.full(1000, 3.0), power_law(np.arange(1, 1001.0)), "the loss of B no longer falls"),
        (power_law(np.arange(1, 16.0)), power_law(np.arange(1, 16.0)), "15 iterations are too few"),
        (np.full(1000, np.nan), power_law(np.arange(1, 1001.0)), "0 iterations are too few"),
    ],
)
def test_where_there_is_no_ratio_a_sentence_says_why(new: np.ndarray, base: np.ndarray, said: str) -> None:
    generator = np.random.default_rng(1)
    found = between(*([run(each + 0.01 * generator.standard_normal(len(each)))] for each in (new, base)))
    assert found.tokens is None and found.effective_speed_up is None
    assert len(found.said) == 1 and said in found.said[0]


def test_the_end_of_a_resumed_run_is_no_curve() -> None:
    new, base = (run(power_law(np.arange(1001, 1501.0)), start=1000) for _ in range(2))
    assert "the record begins at iteration 1001" in between([new], [base]).said[0]


def test_arms_without_a_seed_in_common() -> None:
    found = between([run(power_law(np.arange(1, 101.0)), seed=1)], [run(power_law(np.arange(1, 101.0)), seed=2)])
    assert found.tokens is None and "no seed in common" in found.said[0]


@pytest.mark.parametrize("mock", [True, False])
def test_nothing_is_said_on_mock_data(mock: bool) -> None:
    (new,), (base,) = pairs(1.05, mock=mock)
    contrast = comparison.compare([[base.run], [new.run]]).contrasts[0]
    assert (contrast.equal_loss is None) is mock


def test_a_million_iterations_take_a_second_or_two() -> None:
    arms = pairs(1.05, count=1_000_000)
    began = time.process_time()
    assert between(*arms).tokens.value == pytest.approx(1.05, rel=0.02)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "fast", ""])
def test_a_speed_up_that_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"a number above 0 is needed, such as 1.68, or published"):
        published.speed_up(text)
