import statistics

import pytest

from playbook.compare import model, stats
from playbook.compare.stats import Figure
from playbook.record.columns import Lines


@pytest.mark.parametrize(
    ("start", "last", "window"),
    [
        (0, 50, (20, 50)),
        (0, 39, (20, 39)),
        (0, 38, (20, 38)),
        (0, 30, (16, 30)),
        (0, 10, (6, 10)),
        (0, 2, (2, 2)),
        (100, 150, (120, 150)),
    ],
)
def test_the_window_is_20_to_the_end_or_the_second_half(start: int, last: int, window: tuple[int, int]) -> None:
    found = model.timing_window(start, last)
    assert (found.first, found.last) == window


def at(*iterations: int) -> Lines:
    return Lines.of([{"iteration": number} for number in iterations])


@pytest.mark.parametrize("last", range(0, 60))
def test_the_first_iteration_is_never_timed(last: int) -> None:
    window = model.timing_window(0, last)
    assert window.first > 1
    assert stats.first_timed(at(*range(1, last + 1)), window.first) >= 1


def test_a_first_line_that_contains_iteration_1_is_not_timed() -> None:
    assert stats.first_timed(at(10, 20, 30, 40), model.timing_window(0, 40).first) == 1
    assert stats.first_timed(at(20), model.timing_window(0, 20).first) == 1  # beyond the end: none is


def test_quartiles_are_interpolated() -> None:
    assert stats.median_figure([4.0, 1.0, 3.0, 2.0]) == Figure(2.5, "", 1.75, 3.25, "interquartile range", 4)
    assert stats.median_figure([7.0]) == Figure(7.0, "")


def test_mean_and_sd_agree_with_the_standard_library_far_from_zero() -> None:
    values = [1e9 + step / 7 for step in range(100)]
    found = stats.mean_figure(values)
    assert found.value == pytest.approx(statistics.mean(values))
    assert found.high - found.value == pytest.approx(statistics.stdev(values), rel=1e-6)  # of what 1e9 leaves
    assert stats.mean_figure([3.0]) == Figure(3.0, "")


@pytest.mark.parametrize(("count", "part"), [(3, 3), (10, 5), (50, 5), (51, 6), (200, 20)])
def test_the_last_part_is_a_tenth_but_not_fewer_than_five(count: int, part: int) -> None:
    assert stats.last_part(count) == part
