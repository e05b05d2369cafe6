"""Do verdicts on losses hold? Simulated trainings of known truth, with fixed seeds.

A training has the luck of its seed, some of which both arms of a seed share, and losses that wander around it (AR(1)).
Bounds of "at most 5 %" leave two standard errors of the simulation itself.
"""

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from playbook.compare import paired

STUDIES = 6_000
ITERATIONS = 20  # of the last tenth
SEED_SPREAD = 1.0  # per cent: how a run's mean loss differs from seed to seed
ABLATION = (1, 0)  # set against the whole recipe, and against BF16
AT_MOST = 0.05 + 2 * math.sqrt(0.05 * 0.95 / STUDIES)


def losses(generator: np.random.Generator, arms: int, seeds: int, *, shared: float) -> np.ndarray:
    """Mean losses of the last tenth, per cent, [STUDIES, arms, seeds].

    Args:
        shared: the part of a seed's variance that all arms have alike.
    """
    own = generator.normal(scale=SEED_SPREAD * math.sqrt(1 - shared), size=(STUDIES, arms, seeds))
    common = generator.normal(scale=SEED_SPREAD * math.sqrt(shared), size=(STUDIES, 1, seeds))
    shocks = generator.normal(scale=0.3, size=(STUDIES, arms, seeds, ITERATIONS))
    return own + common + lfilter([1.0], [1.0, -0.7], shocks, axis=-1).mean(axis=-1)


def gaps(seeds: int, shared: float, truth: float = 0.0) -> paired.Difference:
    found = losses(np.random.default_rng(1000 * seeds + int(10 * shared)), 2, seeds, shared=shared)
    return paired.over(found[:, 1] - found[:, 0] + truth)


@pytest.mark.parametrize("shared", [0.0, 0.8])
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_the_interval_over_seeds_holds_another_seed_s_truth(seeds: int, shared: float) -> None:
    low, high = gaps(seeds, shared, truth=0.7).ends()
    assert 0.93 <= np.mean((low <= 0.7) & (high >= 0.7)) <= 0.97
    assert np.mean(paired.holm(gaps(seeds, shared).p[:, None])) <= AT_MOST  # A against A


@pytest.mark.parametrize("shared", [0.0, 0.8])
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_equivalence_is_claimed_wrongly_in_at_most_one_of_twenty(seeds: int, shared: float) -> None:
    for truth in (1.0, -1.0, 1.5):
        assert np.mean(gaps(seeds, shared, truth).within(1.0)) <= AT_MOST
    assert np.mean(gaps(8, 0.8).within(1.0)) > 0.7


@pytest.mark.parametrize("shared", [0.0, 0.5])
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_an_ablation_of_seven_calls_any_difference_in_at_most_one_of_twenty(seeds: int, shared: float) -> None:
    found = losses(np.random.default_rng(seeds), 7, seeds, shared=shared)
    assert np.mean(paired.among(found, ABLATION).called.any(axis=-1)) <= AT_MOST
    found[:, [0, 4]] += 2  # those that do differ are no licence for the rest
    judged = paired.among(found, ABLATION)
    alike = [at for at, pair in enumerate(judged.pairs) if {*pair} <= {0, 4} or not {*pair} & {0, 4}]
    assert np.mean(judged.called[:, alike].any(axis=-1)) <= AT_MOST


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("arms", [[3], [1], [1, 2, 3]], ids=["a variant", "the whole recipe", "three"])
@pytest.mark.parametrize("seeds", [5, 8])
def test_arms_that_spread_more_than_the_rest_are_no_discovery(seeds: int, arms: list[int], times: int) -> None:
    found = losses(np.random.default_rng(seeds), 7, seeds, shared=0.5)
    found[:, arms] *= times
    assert np.mean(paired.among(found, ABLATION).called.any(axis=-1)) <= 0.06


@pytest.mark.parametrize(("shared", "least"), [(0.0, 0.65), (0.25, 0.8), (0.5, 0.9)])
def test_five_seeds_find_a_variant_two_spreads_away(shared: float, least: float) -> None:
    # Of independent arms a single pair alone, by a test that knew of no others, is found in 86 of 100.
    assert found_of(5, shared, 2.0) >= least


def test_more_seeds_always_find_more() -> None:
    few, some, many = (found_of(seeds, 0.5, 2.0) for seeds in (3, 5, 8))
    assert few < 0.8 < some < many


@pytest.mark.parametrize("arms", [4, 7])
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_the_power_of_an_ablation_is_as_said(seeds: int, arms: int) -> None:
    error = paired.among(losses(np.random.default_rng(1), arms, seeds, shared=0.5), ABLATION).differences.error[:, 0]
    spread = float(np.sqrt(np.mean(error**2)))
    said = float(paired.shown_among(paired.Difference(0.0, spread, (arms - 1) * (seeds - 1)), arms, seeds))
    assert 0.77 <= found_of(seeds, 0.5, said, arms) <= 0.9  # eight times in ten, or a little more


def found_of(seeds: int, shared: float, difference: float, arms: int = 7) -> float:
    """How often the last variant, so far above all others, is told from the whole recipe."""
    found = losses(np.random.default_rng(seeds), arms, seeds, shared=shared)
    found[:, arms - 1] += difference
    judged = paired.among(found, ABLATION)
    return float(np.mean(judged.called[:, judged.pairs.index((1, arms - 1))]))


def test_what_is_called_lies_outside_its_interval_of_no_difference() -> None:
    found = losses(np.random.default_rng(2), 5, 4, shared=0.3)
    found[:, 3] += 1.5
    judged = paired.among(found, ABLATION)
    low, high = judged.differences.ends()
    assert not np.any(judged.called & (low <= 0) & (high >= 0)) and 0.2 < np.mean(judged.called[:, 2]) < 0.8


def test_with_one_reference_and_one_arm_it_is_the_paired_t_test() -> None:
    values = np.array([[1.0, 2.0, 3.5], [1.4, 2.1, 4.1]])
    judged = paired.among(values, (0,))
    alone = paired.over(values[1] - values[0])
    assert judged.pairs == [(0, 1)] and judged.differences.value == pytest.approx(alone.value)
    assert judged.differences.error == pytest.approx(alone.error) and float(judged.differences.freedom[0]) == 2.0
    assert judged.called.tolist() == [alone.p <= paired.LEVEL]


def test_what_is_said_to_show_shows_eight_times_in_ten() -> None:
    error = float(np.sqrt(np.mean(gaps(5, 0.5).error ** 2)))
    shown = float(paired.Difference(0.0, error, 4.0).smallest_shown())
    assert np.mean(gaps(5, 0.5, truth=shown).p <= paired.LEVEL) == pytest.approx(paired.POWER, abs=0.03)


def test_holm_stops_at_the_first_that_fails() -> None:
    assert paired.holm([0.04, 0.001, 0.013]).tolist() == [True, True, True]
    assert paired.holm([0.04, 0.001, 0.03]).tolist() == [False, True, False]


def test_equal_differences_are_equal_and_none_is_none() -> None:
    assert paired.over([0.0, 0.0, 0.0]).p == pytest.approx(1.0)
    assert paired.over([0.5, 0.5, 0.5]).p < 1e-6
    assert paired.over([0.1, 0.2, 0.3]).ends() == pytest.approx((-0.0484, 0.4484), abs=1e-4)  # t of 2: 4.303
