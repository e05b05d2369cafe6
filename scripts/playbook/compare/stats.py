"""The statistics of a comparison: the middle and spread of what was measured, and Student's t for differences.

A difference was found several times over, as between two arms with each of several seeds. Arrays may have leading axes,
a study each; seeds are the last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from statistics import NormalDist
from typing import Any

import numpy as np

from playbook.record.columns import Lines

FEWEST = 3  # of two, the interval is wider than anything that it could tell
LEVEL = 0.05  # how often a difference may be called that is none, and an equivalence
POWER = 0.8
SHARE = 0.8  # of the level: what is asked of the first reference before the second
UNLIKE = 0.05  # how often arms that spread alike may be taken for others
OWN = 0.1  # what no pair's own test may leave to chance, where the shared error calls it
OVER_SEEDS = "95 % t-interval over {} seeds"
_ROUNDING = 1e-12  # no spread, and no mean, is known better than this share of the values
FEWEST_LOSSES = 5  # iterations; a tenth of a short run is too few to have a spread

Array = Any  # np.ndarray, or a float of one study


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


def median_figure(values: np.ndarray) -> Figure:
    """The median with its interquartile range, by linear interpolation; of one value or more."""
    low, middle, high = map(float, np.quantile(values, [0.25, 0.5, 0.75]))
    if len(values) == 1:
        return Figure(middle, "")
    return Figure(middle, "", low, high, "interquartile range", len(values))


def mean_figure(values: np.ndarray) -> Figure:
    """The mean, give or take one standard deviation of the sample; of one value or more."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return Figure(mean, "")
    deviation = float(np.std(values, ddof=1))
    return Figure(mean, "", mean - deviation, mean + deviation, "standard deviation", len(values))


def first_timed(lines: Lines, first: int) -> int:
    """The index of the first line from iteration `first` on, len(lines) where there is none.

    It is never the first line: where training prints every tenth iteration, that one contains iteration 1.
    """
    return max(1, int(np.searchsorted(lines.iterations, first)))


def last_part(count: int, every: int = 1) -> int:
    """How many of `count` lines, of `every` iterations each, are the last tenth: five iterations where it is fewer."""
    return min(count, max(math.ceil(FEWEST_LOSSES / every), math.ceil(count / 10)))


@dataclass(frozen=True)
class Difference:
    """A mean difference with its standard error, and the degrees of freedom of that."""

    value: Array
    error: Array
    freedom: Array

    def ends(self, level: float = LEVEL) -> tuple[Array, Array]:
        """The interval that misses the truth in `level` of all studies."""
        half = quantile(self.freedom, 1 - level / 2) * self.error
        return self.value - half, self.value + half

    def as_ratio(self, spread: str, count: int) -> Figure:
        """The ratio with its interval of which this is the logarithm, one study's."""
        return Figure(math.exp(self.value), "x", *map(math.exp, self.ends()), spread, count)

    @property
    def p(self) -> Array:
        """How often chance alone makes a difference so large, either way."""
        return beyond(self.value / self.error, self.freedom)

    def within(self, margin: float) -> Array:
        """Whether it is shown to be smaller than the margin, either way: two one-sided tests (Schuirmann 1987)."""
        low, high = self.ends(2 * LEVEL)
        return (-margin < low) & (high < margin)

    def smallest_shown(self, tests: float = 1, *, least: float = 0.0) -> Array:
        """The difference that so many tests at once call one in `POWER` of all studies with this spread.

        They call none that is below `least`.
        """
        called = np.maximum(quantile(self.freedom, 1 - LEVEL / (2 * tests)) * self.error, least)
        return called + quantile(self.freedom, POWER) * self.error


def over(values: Array) -> Difference:
    """The mean of the differences of pairs, [..., pairs]; of two or more."""
    values = np.asarray(values, dtype=float)
    count = values.shape[-1]
    error = values.std(axis=-1, ddof=1) / np.sqrt(count)
    return Difference(values.mean(axis=-1), np.maximum(error, _least(values)), count - 1.0)


@dataclass(frozen=True)
class Among:
    """Arms that were all run with the same seeds, set against one of them, or against two.

    Attributes:
        pairs: of each difference the arm that it is taken from and the arm that it is of.
        differences: [..., pairs].
        called: which of them are differences, [..., pairs]; chance makes any call in `LEVEL` of studies.
        shown: the difference of each pair that is called in `POWER` of studies, were it the only one, [..., pairs].
    """

    pairs: list[tuple[int, int]]
    differences: Difference
    called: np.ndarray
    shown: Array


def shown_among(of: Difference, arms: int, seeds: int) -> Array:
    """The difference to the first reference, of one arm among so many, that is called in `POWER` of studies.

    Simulated: it asks what half as many single tests with Bonferroni's correction do, and with the fewest seeds more.
    """
    return of.smallest_shown(arms * (0.5 if seeds > FEWEST else 2.0))


def among(values: Array, references: Sequence[int]) -> Among:
    """Set every arm against the references, the second of which is set against the first.

    What a seed does to all arms alike cancels. Where the arms' remaining spreads do not differ, they share one error,
    which few seeds know well (a randomised block design); else each pair has its own.

    A difference is called by closed testing (Marcus, Peritz and Gabriel 1976): it has to stand against every hypothesis
    that it is part of, that it and any others are none. Where k arms are supposed to be the reference's equals, they
    tell its value too. So they are tested by the k uncorrelated contrasts that lie nearest to their differences to it,
    each at Šidák's level (1967), and not by those differences. Where arms are supposed to equal one reference and
    others the second, the first's test has `SHARE` of the level. The pair's own test has to agree, loosely of arms that
    spread alike and by Holm's correction of others: an arm that spreads two or three times more than the rest is then
    called in some 5.5 % of studies by chance.

    Args:
        values: [..., arms, seeds].
        references: one arm or two, the more important first.
    """
    values = np.asarray(values, dtype=float)
    arms, seeds = values.shape[-2:]
    first, *second = references
    others = [arm for arm in range(arms) if arm not in references]
    pairs = [(first, arm) for arm in (*second, *others)] + [(reference, arm) for reference in second for arm in others]
    rest = values - values.mean(axis=-1, keepdims=True) - values.mean(axis=-2, keepdims=True)
    rest = rest + values.mean(axis=(-2, -1), keepdims=True)
    squares = (rest**2).sum(axis=-1)
    freedom = (arms - 1.0) * (seeds - 1.0)
    error = np.sqrt(squares.sum(axis=-1) / freedom / seeds)  # of an arm's mean, but for what its seeds share
    error = np.maximum(error, _least(values).max(axis=-1))
    alike = _spread_alike(squares, seeds)[..., None]
    own = over(np.stack([values[..., arm, :] - values[..., base, :] for base, arm in pairs], axis=-2))
    differences = Difference(
        own.value,
        np.where(alike, math.sqrt(2) * error[..., None], own.error),
        np.where(alike, freedom, own.freedom),
    )
    means = values.mean(axis=-1)

    @cache
    def p(base: int, *equals: int) -> np.ndarray:
        """Of the hypothesis that these arms equal that one."""
        gaps = means[..., list(equals)] - means[..., [base]]
        count = len(equals)
        uncorrelated = gaps - (1 - 1 / math.sqrt(count + 1)) * gaps.mean(axis=-1, keepdims=True)
        each = beyond(uncorrelated / error[..., None], freedom)
        return 1 - (1 - each.min(axis=-1)) ** count

    called = np.ones(own.value.shape, dtype=bool)
    for blocks in _hypotheses(references, others):
        shares = (SHARE, 1 - SHARE) if len(blocks) > 1 else (1.0,)
        rejected = [p(*block) <= LEVEL * share for block, share in zip(blocks, shares, strict=True)]
        part = [any({*pair} <= {*block} for block in blocks) for pair in pairs]
        called[..., part] &= np.logical_or.reduce(rejected)[..., None]
    called &= np.where(alike, own.p <= OWN, holm(own.p))
    return Among(pairs, differences, called, shown_among(differences, arms, seeds))


def _hypotheses(references: Sequence[int], others: Sequence[int]) -> Iterator[list[tuple[int, ...]]]:
    """Every way in which arms can equal references: blocks of equal arms, each begun by its reference."""
    for owner in product((None, *references), repeat=len(others)):
        blocks = [(base, *(arm for arm, of in zip(others, owner, strict=True) if of == base)) for base in references]
        if several := [block for block in blocks if len(block) > 1]:
            yield several
    if len(references) > 1:
        for count in range(len(others) + 1):
            for equals in combinations(others, count):
                yield [(*references, *equals)]


def _spread_alike(squares: np.ndarray, seeds: int) -> np.ndarray:
    """Whether no arm spreads more than the rest, by its share of the residual squares, [..., arms]: a beta variate."""
    arms = squares.shape[-1]
    if arms < 3:
        return np.ones(squares.shape[:-1], dtype=bool)
    total = squares.sum(axis=-1)
    share = squares.max(axis=-1) * arms / (arms - 1) / np.where(total > 0, total, 1)
    by_chance = arms * (1 - beta((seeds - 1) / 2, (arms - 2) * (seeds - 1) / 2, np.minimum(share, 1)))
    return by_chance > UNLIKE


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


def beyond(t: Array, freedom: Array) -> Array:
    """How often Student's t with so many degrees of freedom lies as far from 0 as `t`, either way."""
    return beta(np.asarray(freedom) / 2, 0.5, freedom / (freedom + np.square(t)))


@np.vectorize
@cache
def quantile(freedom: float, share: float) -> float:
    """What Student's t stays below with a probability of `share`, which is above 0.5."""
    half = freedom / 2
    density = math.exp(math.lgamma(half + 0.5) - math.lgamma(half)) / math.sqrt(math.pi * freedom)
    found = NormalDist().inv_cdf(share)
    for _ in range(100):  # Newton's method; the tail is convex, so that it comes from one side
        tail = float(beyond(found, freedom)) / 2
        step = (tail - (1 - share)) / density * math.exp((half + 0.5) * math.log1p(found**2 / freedom))
        found += step
        if abs(step) <= _ROUNDING * (1 + found):
            break
    return found


def beta(a: Array, b: Array, x: Array) -> Array:
    """The regularised incomplete beta function, by its continued fraction (DLMF 8.17.22; modified Lentz's method)."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    scale = _log_gamma(a + b) - _log_gamma(a) - _log_gamma(b)
    a, b, x = np.broadcast_arrays(a, b, np.asarray(x, dtype=float))
    turned = x > (a + 1) / (a + b + 2)  # where it converges fast the other way round
    a, b, x = np.where(turned, b, a), np.where(turned, a, b), np.where(turned, 1 - x, x)
    c, d = np.ones_like(x), 1 / (1 - (a + b) * x / (a + 1))
    fraction = d.copy()
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            fraction = fraction * d * c
        if np.all(np.abs(d * c - 1) < 1e-14):
            break
    with np.errstate(divide="ignore"):
        found = np.exp(a * np.log(x) + b * np.log1p(-x) + scale) * fraction / a
    return np.where(turned, 1 - found, found)


_log_gamma = np.vectorize(math.lgamma, otypes=[float])


def between(figure: Figure) -> str:
    """ "(95 % interval 1.62 to 1.74, 3 repeats)", with as many digits as tell its ends apart."""
    if figure.low is None or figure.high is None:
        return "(no interval: too few iterations)"
    if "t-interval" in figure.spread:
        over = figure.spread.partition(" over ")[2]
    else:
        over = "within these runs only" if "these runs" in figure.spread else "within this run only"
    sign = "+" if figure.unit == "%" else ""
    digits = 2 if figure.high - figure.low >= 0.05 else 3
    return f"(95 % interval {figure.low:{sign}.{digits}f} to {figure.high:{sign}.{digits}f}, {over})"


def _least(values: np.ndarray) -> np.ndarray:
    """What rounding alone leaves of a spread, so that equal values are equal and not certain to the last bit."""
    return _ROUNDING * (1 + np.abs(values).max(axis=-1))
