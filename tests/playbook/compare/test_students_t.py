"""Do verdicts on losses hold? Simulated trainings of known truth, with fixed seeds.

A training has the luck of its seed, some of which both arms of a seed share, and losses that wander around it (AR(1)).
Bounds of "at most 5 %" leave two standard errors of the simulation itself.
"""

import math

import numpy as np
import pytest

from playbook.compare import stats

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
    for at in range(1, ITERATIONS):
        shocks[..., at] += 0.7 * shocks[..., at - 1]
    return own + common + shocks.mean(axis=-1)


def gaps(seeds: int, shared: float, truth: float = 0.0) -> stats.Difference:
    found = losses(np.random.default_rng(1000 * seeds + int(10 * shared)), 2, seeds, shared=shared)
    return stats.over(found[:, 1] - found[:, 0] + truth)


@pytest.mark.parametrize("shared", [0.0, 0.8])
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_the_interval_over_seeds_holds_another_seed_s_truth(seeds: int, shared: float) -> None:
    low, high = gaps(seeds, shared, truth=0.7).ends()
    assert 0.93 <= np.mean((low <= 0.7) & (high >= 0.7)) <= 0.97
    assert np.mean(stats.holm(gaps(seeds, shared).p[:, None])) <= AT_MOST  # A against A


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
    assert np.mean(stats.among(found, ABLATION).called.any(axis=-1)) <= AT_MOST
    found[:, [0, 4]] += 2  # those that do differ are no licence for the rest
    judged = stats.among(found, ABLATION)
    alike = [at for at, pair in enumerate(judged.pairs) if {*pair} <= {0, 4} or not {*pair} & {0, 4}]
    assert np.mean(judged.called[:, alike].any(axis=-1)) <= AT_MOST


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("arms", [[3], [1], [1, 2, 3]], ids=["a variant", "the whole recipe", "three"])
@pytest.mark.parametrize("seeds", [5, 8])
def test_arms_that_spread_more_than_the_rest_are_no_discovery(seeds: int, arms: list[int], times: int) -> None:
    found = losses(np.random.default_rng(seeds), 7, seeds, shared=0.5)
    found[:, arms] *= times
    assert np.mean(stats.among(found, ABLATION).called.any(axis=-1)) <= 0.06


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
    error = stats.among(losses(np.random.default_rng(1), arms, seeds, shared=0.5), ABLATION).differences.error[:, 0]
    spread = float(np.sqrt(np.mean(error**2)))
    said = float(stats.shown_among(stats.Difference(0.0, spread, (arms - 1) * (seeds - 1)), arms, seeds))
    assert 0.77 <= found_of(seeds, 0.5, said, arms) <= 0.9  # eight times in ten, or a little more


def found_of(seeds: int, shared: float, difference: float, arms: int = 7) -> float:
    """How often the last variant, so far above all others, is told from the whole recipe."""
    found = losses(np.random.default_rng(seeds), arms, seeds, shared=shared)
    found[:, arms - 1] += difference
    judged = stats.among(found, ABLATION)
    return float(np.mean(judged.called[:, judged.pairs.index((1, arms - 1))]))


def test_what_is_called_lies_outside_its_interval_of_no_difference() -> None:
    found = losses(np.random.default_rng(2), 5, 4, shared=0.3)
    found[:, 3] += 1.5
    judged = stats.among(found, ABLATION)
    low, high = judged.differences.ends()
    assert not np.any(judged.called & (low <= 0) & (high >= 0)) and 0.2 < np.mean(judged.called[:, 2]) < 0.8


def test_with_one_reference_and_one_arm_it_is_the_paired_t_test() -> None:
    values = np.array([[1.0, 2.0, 3.5], [1.4, 2.1, 4.1]])
    judged = stats.among(values, (0,))
    alone = stats.over(values[1] - values[0])
    assert judged.pairs == [(0, 1)] and judged.differences.value == pytest.approx(alone.value)
    assert judged.differences.error == pytest.approx(alone.error) and float(judged.differences.freedom[0]) == 2.0
    assert judged.called.tolist() == [alone.p <= stats.LEVEL]


def test_what_is_said_to_show_shows_eight_times_in_ten() -> None:
    error = float(np.sqrt(np.mean(gaps(5, 0.5).error ** 2)))
    shown = float(stats.Difference(0.0, error, 4.0).smallest_shown())
    assert np.mean(gaps(5, 0.5, truth=shown).p <= stats.LEVEL) == pytest.approx(stats.POWER, abs=0.03)


def test_holm_stops_at_the_first_that_fails() -> None:
    assert stats.holm([0.04, 0.001, 0.013]).tolist() == [True, True, True]
    assert stats.holm([0.04, 0.001, 0.03]).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("freedom", "share", "scipy"),  # what scipy.special.stdtrit 1.17.1 gives
    [
        (1.0, 0.8, 1.3763819204711738),
        (1.0, 0.975, 12.706204736174694),
        (1.0, 1 - 0.05 / 22, 140.053969918342),
        (1.3, 0.8, 1.2162502631131107),
        (1.3, 0.975, 7.500529325562029),
        (1.3, 1 - 0.05 / 22, 47.812245750897695),
        (2.0, 0.8, 1.0606601717798214),
        (2.0, 0.975, 4.302652729749462),
        (2.0, 1 - 0.05 / 22, 14.781784024675773),
        (4.0, 0.8, 0.9409645772351816),
        (4.0, 0.975, 2.7764451051977934),
        (4.0, 1 - 0.05 / 22, 5.746507143822628),
        (7.3, 0.8, 0.8936713571802273),
        (7.3, 0.975, 2.345066736547703),
        (7.3, 1 - 0.05 / 22, 4.035634991791707),
        (30.0, 0.8, 0.8537672614712979),
        (30.0, 0.975, 2.0422724563012378),
        (30.0, 1 - 0.05 / 22, 3.067452584156977),
        (1996.0, 0.8, 0.8418013512580934),
        (1996.0, 0.975, 1.9611532059576329),
        (1996.0, 1 - 0.05 / 22, 2.840817458538632),
    ],
)
def test_quantiles_are_student_s(freedom: float, share: float, scipy: float) -> None:
    assert stats.quantile(freedom, share) == pytest.approx(scipy, rel=1e-10)
    assert stats.beyond(scipy, freedom) == pytest.approx(2 * (1 - share), rel=1e-10)


@pytest.mark.parametrize(
    ("a", "b", "x", "scipy"),  # what scipy.special.betainc 1.17.1 gives
    [
        (1, 1, 0.25, 0.25),
        (2, 5, 0.9, 0.999945),
        (0.5, 0.5, 0.01, 0.06376856085851985),
        (4, 20, 0.2, 0.7034685890151187),
        (3.5, 2, 1.0, 1.0),
        (3.5, 2, 0.0, 0.0),
        (1000, 0.5, 0.999, 0.15724727426672383),
        (2.5, 12.5, 0.4, 0.980785619455427),
        (40, 3, 0.5, 2.0554580260068178e-10),
    ],
)
def test_the_beta_distribution(a: float, b: float, x: float, scipy: float) -> None:
    assert stats.beta(a, b, x) == pytest.approx(scipy, rel=1e-10)


def test_equal_differences_are_equal_and_none_is_none() -> None:
    assert stats.over([0.0, 0.0, 0.0]).p == pytest.approx(1.0)
    assert stats.over([0.5, 0.5, 0.5]).p < 1e-6
    assert stats.over([0.1, 0.2, 0.3]).ends() == pytest.approx((-0.0484, 0.4484), abs=1e-4)  # t of 2: 4.303
