"""Do verdicts on losses hold? Simulated trainings of known truth, with fixed seeds.

A training has the luck of its seed, some of which both arms of a seed share, and losses that wander around it (AR(1)).
Bounds of "at most 5 %" leave two standard errors of the simulation itself.
"""

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from playbook.campaign import ablation
from playbook.compare import paired

STUDIES = 10_000
ITERATIONS = 20  # of the last tenth
SEED_SPREAD = 1.0  # per cent: how a run's mean loss differs from seed to seed
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
    assert np.mean(ablated(found).any(axis=-1)) <= AT_MOST


@pytest.mark.parametrize("seeds", [5, 8])
def test_a_variant_that_spreads_more_than_the_rest_is_no_discovery(seeds: int) -> None:
    found = losses(np.random.default_rng(seeds), 7, seeds, shared=0.5)
    found[:, 3] *= 3
    assert np.mean(ablated(found).any(axis=-1)) <= AT_MOST


def test_more_seeds_always_find_more() -> None:
    shares = []
    for seeds in (3, 5, 8):
        found = losses(np.random.default_rng(seeds), 7, seeds, shared=0.6)
        found[:, 4] += 2
        shares.append(np.mean(ablated(found)[:, 6 + 2]))  # the fourth arm against the whole recipe
    assert shares[0] < 0.8 <= shares[1] < shares[2]


def ablated(found: np.ndarray) -> np.ndarray:
    """What is called, [STUDIES, 11]: six variants against BF16, then five against the first of them."""
    to_bf16, to_whole = ablation.differences(found[:, 1:] - found[:, :1], 0)
    return paired.holm(np.concatenate([to_bf16.p, to_whole.p], axis=-1))


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
