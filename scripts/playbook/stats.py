"""The statistics of a comparison: which iterations count, and the middle and spread of what was measured."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeVar

T = TypeVar("T")

WARMUP = 20  # iterations 20 to the end are timed, as in the playbook's published figures
FEWEST_LOSSES = 5  # a tenth of a short run is too few to have a spread


@dataclass(frozen=True)
class Figure:
    """A number with its unit and spread.

    Attributes:
        low, high: the ends of the spread, or None where one value has none.
        spread: what they are, such as "interquartile range" or "standard deviation".
        count: how many values it rests on.
    """

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    spread: str = ""
    count: int = 1


@dataclass(frozen=True)
class Window:
    """The iterations that are timed, both ends included; `first` > `last` where there are none."""

    first: int
    last: int
    reason: str


def timing_window(start: int, last: int) -> Window:
    """The iterations to time of a training that began after iteration `start` and got to `last`.

    Iterations 20 to the end; of a run too short for that, its second half. Never the first one, which pays for
    compilation, allocation and autotuning.
    """
    done = last - start
    half = done // 2 + 1
    first = max(2, min(WARMUP, half))
    reason = "iterations 20 to the end" if first == WARMUP else "the second half, as the run is short"
    return Window(start + first, last, reason)


def median(values: Sequence[float]) -> float:
    """The median. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    return statistics.median(values)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile, by linear interpolation as NumPy does.

    Raises ValueError without values.
    """
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; the latter is None of fewer than two values.

    `statistics.stdev` is exact in fractions and 20 times slower than this sum of rounded squares needs to be.
    Raises ValueError without values.
    """
    if not values:
        raise ValueError("no values")
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def median_figure(values: Sequence[float], unit: str) -> Figure:
    """The median with its interquartile range. Raises ValueError without values."""
    low, middle, high = quartiles(values)
    if len(values) == 1:
        return Figure(middle, unit)
    return Figure(middle, unit, low, high, "interquartile range", len(values))


def mean_figure(values: Sequence[float], unit: str) -> Figure:
    """The mean, give or take one standard deviation. Raises ValueError without values."""
    mean, sd = mean_sd(values)
    if sd is None:
        return Figure(mean, unit)
    return Figure(mean, unit, mean - sd, mean + sd, "standard deviation", len(values))


def timed_lines(lines: Sequence[dict[str, Any]], window: Window) -> Sequence[dict[str, Any]]:
    """The metric lines, in order of `iteration`, that lie in the window.

    The first line never does: where training prints every tenth iteration, it contains iteration 1.
    """
    return lines[max(1, bisect_left(lines, window.first, key=itemgetter("iteration"))) :]


def up_to(lines: Sequence[dict[str, Any]], last: int) -> Sequence[dict[str, Any]]:
    """The metric lines, in order of `iteration`, up to iteration `last`."""
    return lines[: bisect_right(lines, last, key=itemgetter("iteration"))]


def last_part(values: Sequence[T]) -> Sequence[T]:
    """The last tenth of `values`, or the last five where a tenth is fewer."""
    return values[-max(FEWEST_LOSSES, math.ceil(len(values) / 10)) :]


def relative_gap(losses: Sequence[tuple[float, float]]) -> Figure | None:
    """How far the first loss of each pair lies above the second, in per cent; the mean and its standard deviation.

    Each pair is one iteration of both runs, hence the same tokens: their common noise cancels. None where no pair
    has a second loss other than 0.
    """
    gaps = [100 * (loss - base) / base for loss, base in losses if base]
    return mean_figure(gaps, "%") if gaps else None
