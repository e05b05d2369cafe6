import numpy as np
import pytest

from playbook.compare import soundness

STEADY = 1 + 0.001 * np.tile([-1.0, 0.0, 1.0, 0.5, -0.5], 20)


def test_the_distribution() -> None:
    found = soundness.distribution(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (found.median, found.mean, found.first_quartile, found.third_quartile) == (2.5, 2.5, 1.75, 3.25)
    assert (found.minimum, found.maximum, found.count) == (1.0, 4.0, 4)
    assert found.standard_deviation == pytest.approx(np.std([1, 2, 3, 4], ddof=1))
    assert soundness.distribution(np.array([2.0])).standard_deviation == 0.0


def test_outliers_by_modified_z_score() -> None:
    times = np.concatenate([np.tile([0.9, 0.95, 1.0, 1.05, 1.1], 20), [0.0, 0.0]])  # median distance 0.05
    times[-2:] = 1 + 0.05 / 0.6745 * np.array([3.45, 3.55])
    assert np.flatnonzero(soundness.outliers(times)).tolist() == [101]
    equal = np.ones(20)
    assert not soundness.outliers(equal).any()
    equal[3] = 1.5  # more than half are equal, so their median distance is 0
    assert np.flatnonzero(soundness.outliers(equal)).tolist() == [3]


def test_steady_times_are_nothing_to_warn_of() -> None:
    assert soundness.of_times(STEADY) == []


@pytest.mark.parametrize(
    ("times", "said", "what_to_do"),
    [
        (np.concatenate([np.full(10, 1.2), STEADY[:90]]), "slow start: the first 10", "ITERS="),
        (STEADY * np.linspace(1, 1.06, 100), "drift: the last third", "nvidia-smi dmon"),
        (np.tile([0.93, 1.0, 1.07], 30), "system fluctuation: the interquartile range is 14% ", "REPEAT=3"),
        (np.tile([0.8, 1.0, 1.2], 30), "unusable: their interquartile range is 40% ", "train again"),
    ],
)
def test_each_warning_says_what_to_do(times: np.ndarray, said: str, what_to_do: str) -> None:
    (warning,) = soundness.of_times(times)
    assert said in warning
    assert what_to_do in warning


def test_a_few_iterations_have_no_trend() -> None:
    assert soundness.of_times(np.linspace(1, 1.05, 10)) == []


@pytest.mark.parametrize(("printed", "said"), [(1.01, ""), (1.03, "3.0% more"), (0.9, "10.0% less")])
def test_a_disagreement_with_what_megatron_printed(printed: float, said: str) -> None:
    at = np.arange(20.0, 120.0)
    found = soundness.disagreement(at, STEADY, at[50:], printed * STEADY[50:])
    assert said in found and bool(said) == bool(found)


def test_printed_means_of_several_iterations_are_not_held_against_single_ones() -> None:
    at = np.arange(20.0, 120.0)
    assert soundness.disagreement(at, STEADY, at[::10], 2 * STEADY[::10]) == ""
    assert soundness.disagreement(at, STEADY, np.array([]), np.array([])) == ""
