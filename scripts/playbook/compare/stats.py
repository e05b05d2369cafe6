"""The statistics of a comparison: which iterations count, and the middle and spread of what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from playbook.compare.timed import Window
from playbook.record.columns import Lines

FEWEST_LOSSES = 5  # iterations; a tenth of a short run is too few to have a spread


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


def quartiles(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """First quartile, median, third quartile, by linear interpolation. Raises ValueError without values."""
    if not len(values):
        raise ValueError("no values")
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def mean_sd(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Mean and sample standard deviation; the latter is None of fewer than two values.

    Raises ValueError without values.
    """
    if not len(values):
        raise ValueError("no values")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def median_figure(values: Sequence[float] | np.ndarray, unit: str = "") -> Figure:
    """The median with its interquartile range. Raises ValueError without values."""
    low, middle, high = quartiles(values)
    if len(values) == 1:
        return Figure(middle, unit)
    return Figure(middle, unit, low, high, "interquartile range", len(values))


def mean_figure(values: Sequence[float] | np.ndarray, unit: str = "") -> Figure:
    """The mean, give or take one standard deviation. Raises ValueError without values."""
    mean, sd = mean_sd(values)
    if sd is None:
        return Figure(mean, unit)
    return Figure(mean, unit, mean - sd, mean + sd, "standard deviation", len(values))


def first_timed(lines: Lines, window: Window) -> int:
    """The index of the first line in the window, len(lines) where there is none.

    It is never the first line: where training prints every tenth iteration, that one contains iteration 1.
    """
    return max(1, int(np.searchsorted(lines.iterations, window.first)))


def last_part(count: int, every: int = 1) -> int:
    """How many of `count` lines, of `every` iterations each, are the last tenth: five iterations where it is fewer."""
    return min(count, max(math.ceil(FEWEST_LOSSES / every), math.ceil(count / 10)))
