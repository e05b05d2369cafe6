"""Differences that were found several times over, as between two arms with each of several seeds: Student's t.

Arrays may have leading axes, a study each; seeds are the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

FEWEST = 3  # of two, the interval is wider than anything that it could tell
LEVEL = 0.05  # how often a difference may be called that is none, and an equivalence
POWER = 0.8
OVER_SEEDS = "95 % t-interval over {} seeds"
_ROUNDING = 1e-12  # no spread, and no mean, is known better than this share of the values

Array = Any  # np.ndarray, or a float of one study


@dataclass(frozen=True)
class Difference:
    """A mean difference with its standard error.

    Attributes:
        freedom: degrees of freedom of the error.
    """

    value: Array
    error: Array
    freedom: float

    def ends(self, level: float = LEVEL) -> tuple[Array, Array]:
        """The interval that misses the truth in `level` of all studies."""
        half = stdtrit(self.freedom, 1 - level / 2) * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> Array:
        """How often chance alone makes a difference so large, either way."""
        return 2 * stdtr(self.freedom, -np.abs(self.value) / self.error)

    def within(self, margin: float) -> Array:
        """Whether it is shown to be smaller than the margin, either way: two one-sided tests (Schuirmann 1987)."""
        low, high = self.ends(2 * LEVEL)
        return (-margin < low) & (high < margin)

    def smallest_shown(self, tests: int = 1, *, least: float = 0.0) -> Array:
        """The difference that so many tests at once call one in `POWER` of all studies with this spread.

        Args:
            least: what none of them calls a difference.
        """
        called = np.maximum(stdtrit(self.freedom, 1 - LEVEL / (2 * tests)) * self.error, least)
        return called + stdtrit(self.freedom, POWER) * self.error


def over(values: Array) -> Difference:
    """The mean of the differences of pairs, [..., pairs]; of two or more."""
    values = np.asarray(values, dtype=float)
    count = values.shape[-1]
    error = values.std(axis=-1, ddof=1) / np.sqrt(count)
    return Difference(values.mean(axis=-1), np.maximum(error, _least(values)), count - 1.0)


def within_blocks(values: Array, pairs: list[tuple[int, int]]) -> Difference:
    """Differences between arms that were all run with the same seeds.

    What a seed does to all arms alike cancels, and the arms share one error, which few seeds know well: that of a
    randomised block design. A pair that spreads more than that has its own.

    Args:
        values: [..., arms, seeds].
        pairs: of each difference the arm that is taken away and the arm that it is taken from.

    Returns:
        The differences, [..., pairs].
    """
    values = np.asarray(values, dtype=float)
    arms, seeds = values.shape[-2:]
    rest = values - values.mean(axis=-1, keepdims=True) - values.mean(axis=-2, keepdims=True)
    rest = rest + values.mean(axis=(-2, -1), keepdims=True)
    freedom = max(1.0, (arms - 1.0) * (seeds - 1.0))  # one arm has no pairs
    shared = np.sqrt(2 * (rest**2).sum(axis=(-2, -1)) / freedom / seeds)
    taken, whence = ([pair[end] for pair in pairs] for end in (0, 1))
    each = over(values[..., whence, :] - values[..., taken, :])
    return Difference(each.value, np.maximum(each.error, shared[..., None]), freedom)


def holm(p: Array) -> Array:
    """Which of several tests, [..., tests], call a difference, so that chance makes any call in `LEVEL` of studies.

    Holm 1979: the smallest probability stands against all tests, the next against the rest, up to the first failure.
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, axis=-1)
    called = np.take_along_axis(p, order, axis=-1) <= LEVEL / (p.shape[-1] - np.arange(p.shape[-1]))
    found = np.zeros(p.shape, dtype=bool)
    np.put_along_axis(found, order, np.logical_and.accumulate(called, axis=-1), axis=-1)
    return found


def _least(values: np.ndarray) -> np.ndarray:
    """What rounding alone leaves of a spread, so that equal values are equal and not certain to the last bit."""
    return _ROUNDING * (1 + np.abs(values).max(axis=-1))
