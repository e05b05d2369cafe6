"""95 % confidence intervals of a ratio of step times: how far it can be trusted.

Two sources of chance make two runs differ. Runs differ from each other (clocks, temperature, where memory lies), which
only repeats can show; and iterations differ within a run, and are not independent: a slow one follows a slow one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from playbook.compare import paired

CONFIDENCE = 1 - paired.LEVEL
DRAWS = 2000
SEED = 20250929  # the same data give the same interval
OVER_REPEATS = "95 % t-interval over {} repeats"
FEWEST_REPEATS = paired.FEWEST  # fewer say too little of how runs differ
MOST_BLOCKS = 1000  # more change nothing but the time it takes
FEWEST_ITERATIONS = 5  # fewer cannot be cut into blocks


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def within(repeats: int) -> str:
    """What an interval is called that sees how iterations differ, and not how runs do."""
    runs = "this run" if repeats == 1 else "these runs"
    return f"95 % interval within {runs} only, block bootstrap over iterations"


def ratio_over_repeats(top: Sequence[float], bottom: Sequence[float]) -> paired.Difference:
    """The logarithm of the ratio of two configurations' step times, from the medians of their repeats; all positive.

    As many of each, in the order in which they ran: by the pairs' ratios, so that what both runs of a pair share (a
    warm room) does not widen it. Otherwise Welch's.
    """
    a, b = np.log(top), np.log(bottom)
    if len(a) == len(b):
        return paired.over(a - b)
    parts = [values.var(ddof=1) / len(values) for values in (a, b)]
    spread = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    freedom = sum(parts) ** 2 / spread if spread else len(a) + len(b) - 2.0
    return paired.Difference(a.mean() - b.mean(), math.sqrt(sum(parts)), freedom)


def ratio_within_runs(top: Sequence[np.ndarray], bottom: Sequence[np.ndarray]) -> Interval | None:
    """The ratio of two configurations' median step times, as far as iterations within these runs can tell.

    Args:
        top, bottom: for each run its step times in order, all positive.

    Returns:
        The ratio of the geometric means of the runs' medians with a block bootstrap over iterations; None where a
        run has too few of them.
    """
    if min(map(len, (*top, *bottom))) < FEWEST_ITERATIONS:
        return None
    generator = np.random.default_rng(SEED)
    middle = _mean_log_median(top) - _mean_log_median(bottom)
    series, draws = len(top) + len(bottom), np.zeros(DRAWS)
    for runs, sign in ((top, 1), (bottom, -1)):
        for times in runs:
            draws += sign * _median_draws(times, generator, series) / len(runs)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(math.exp(middle), math.exp(middle + min(low, 0.0)), math.exp(middle + max(high, 0.0)))


def lasting(values: np.ndarray) -> float:
    """How many iterations a deviation lasts: 0 where each is independent of the one before.

    The sum of the autocovariances, each times its lag, over their sum, up to the lag from which they are not told from
    zero and with the flat-topped weights of Politis and White (2004).
    """
    count = len(values)
    centred = values - values.mean()
    longest = min(count // 4, 2 * math.ceil(math.sqrt(math.log10(count)) * 10))
    covariance = np.array([centred[: count - lag] @ centred[lag:] for lag in range(longest + 1)]) / count
    if covariance[0] == 0:
        return 0.0
    correlated = np.abs(covariance[1:] / covariance[0]) > 2 * math.sqrt(math.log10(count) / count)
    lags = min(longest, 2 * (int(np.flatnonzero(correlated)[-1]) + 1 if correlated.any() else 1))
    lag = np.arange(lags + 1)
    weighted = np.clip(2 * (1 - lag / lags), 0, 1) * np.where(lag == 0, 1, 2) * covariance[: lags + 1]
    total = float(weighted.sum())
    return max(0.0, float(weighted @ lag) / total) if total > 0 else 0.0


def block_length(count: int, lasts: float) -> int:
    """How many neighbouring iterations to keep together, of `count` whose deviations last `lasts` iterations.

    Three times what Politis and White find for blocks of one length: they want the least error of a variance, and an
    interval that holds wants less bias. Never less than the cube root of the count, because a short series hides its
    memory.
    """
    least = math.ceil(max(count ** (1 / 3), count / MOST_BLOCKS))
    automatic = math.ceil(3 * (1.5 * lasts**2 * count) ** (1 / 3))
    return max(1, min(max(least, automatic), count // 4))


def _mean_log_median(runs: Sequence[np.ndarray]) -> float:
    return float(np.mean([math.log(np.median(times)) for times in runs]))


def _median_draws(times: np.ndarray, generator: np.random.Generator, series: int) -> np.ndarray:
    """Resampled deviations of the logarithm of the median, [DRAWS].

    The share of iterations above the median is resampled in blocks, and the quantile function turns it into time
    (Woodruff 1952): to first order the same as resampling the median itself, in a thousandth of the time for a
    million iterations, and steadier, because outliers count no more than others.
    """
    middle = np.median(times)
    above = np.sign(times - middle) / 2
    share = 0.5 + _mean_draws(above - above.mean(), generator, series)
    return np.log(np.quantile(times, np.clip(share, 0, 1))) - math.log(middle)


def _mean_draws(deviations: np.ndarray, generator: np.random.Generator, series: int = 1) -> np.ndarray:
    """Resampled means of a centred series in moving blocks, [DRAWS], spread as Student's t of as many blocks is.

    Args:
        series: how many series of about as many blocks the interval will rest on.
    """
    count, lasts = len(deviations), lasting(deviations)
    length = block_length(count, lasts)
    sums = np.concatenate([[0.0], np.cumsum(deviations)])
    block_means = (sums[length:] - sums[:-length]) / length
    blocks = max(2, count // length)
    draws = np.empty(DRAWS)
    for start in range(0, DRAWS, 100):  # a million iterations have many blocks
        chosen = generator.integers(0, len(block_means), (100, blocks))
        draws[start : start + 100] = block_means[chosen].mean(axis=1)
    few_blocks = float(stdtrit(series * (blocks - 1.0), (1 + CONFIDENCE) / 2) / stdtrit(math.inf, (1 + CONFIDENCE) / 2))
    cut_apart = math.sqrt(1 + lasts / length)  # the covariance between blocks, which resampling loses
    return (draws - block_means.mean()) * few_blocks * cut_apart
