"""Step times of two arms against each other: the ratio, its 95 % interval, and whether that is a difference.

Two sources of chance make two runs differ. Runs differ from each other (clocks, temperature, where memory lies), which
only repeats can show; and iterations differ within a run, and are not independent: a slow one follows a slow one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from playbook.compare import soundness, stats
from playbook.compare.figures import Measured
from playbook.compare.model import UNKNOWN, Arm, Ratio
from playbook.compare.stats import Figure

# Relative. Two runs of the same differ by some tenths of a per cent; half of one is no reason to choose.
SMALLEST = 0.005
# Without enough repeats how runs differ is not seen at all. 2 % is four times what well-kept GPUs show; on a machine
# whose iterations differ by more, its runs do too.
SMALLEST_WITHIN = 0.02
DRAWS = 2000
SEED = 20250929  # the same data give the same interval
OVER_REPEATS = "95 % t-interval over {} repeats"
MOST_BLOCKS = 1000  # more change nothing but the time it takes
NORMAL = NormalDist().inv_cdf(1 - stats.LEVEL / 2)
FEWEST_ITERATIONS = 5  # fewer cannot be cut into blocks


def step_time(new: Arm, base: Arm, new_runs: list[Measured], base_runs: list[Measured]) -> Ratio | None:
    """How the step times compare; None where an arm has none, or some that are unusable."""
    if not (new.step_time and base.step_time) or new.unusable or base.unusable:
        return None
    emulated = "emulated" in (new.arithmetic, base.arithmetic)
    same = new.precision == base.precision and new.arithmetic == base.arithmetic
    unknown = new.precision == base.precision == UNKNOWN
    speed_up = not emulated and (unknown or not same)
    found = measure(base_runs, new_runs) if speed_up else measure(new_runs, base_runs)
    value = found.figure.value
    times = f"{value:.3g}" if value >= 100 else f"{value:.2f}"
    if unknown:
        inverse = f"{1 / value:.3g}" if value <= 0.01 else f"{1 / value:.2f}"
        faster = f"{times} times as fast" if value >= 1 else f"slower, at {times} of the speed"
        step = f"{inverse} of the step" if value >= 1 else f"{inverse} times the step"
        kind, sentence = "speed ratio", f"{faster} ({step})"
    elif same:
        kind, sentence = "step-time ratio", f"{times} times the step of {base.name}"
        if new.ingredients != base.ingredients or _tail(new) != _tail(base):
            sentence += f", another {base.precision} recipe"
        if new.emulator != base.emulator:
            sentence += ", another emulator"
    elif emulated:
        kind = "cost of emulation"
        name = f"{'native ' * (new.precision == base.precision)}{base.precision.upper()} {base.setting}".rstrip()
        sentence = f"{times} times the {name} step; an emulation shows no speed"
    else:
        kind = "speed-up"
        sentence = f"{times}x{'' if value >= 1 else ' (slower)'}, {new.label} over {base.label}"
    return replace(found, what=kind, sentence=sentence)


def measure(top: list[Measured], bottom: list[Measured]) -> Ratio:
    """The ratio of two configurations' step times, of whatever they are, and whether it is a difference.

    Three repeats can lie together by luck, so the smallest difference that they call one is no smaller than what their
    iterations leave open.
    """
    tops, bottoms = ([run.times for run in runs] for runs in (top, bottom))
    medians = [[float(np.median(times)) for times in arm] for arm in (tops, bottoms)]
    within, shown = ratio_within_runs(tops, bottoms), None
    repeats = min(len(top), len(bottom))
    if repeats >= stats.FEWEST:
        over = ratio_over_repeats(*medians)
        figure = over.as_ratio(OVER_REPEATS.format(repeats), repeats)
        smallest = max(SMALLEST, math.sqrt(within.high / within.low) - 1 if within else 0.0)
        shown = math.expm1(over.smallest_shown(least=math.log1p(smallest)))
    else:
        figure = within or Figure(math.exp(np.subtract(*(np.mean(np.log(each)) for each in medians))), "x")
        smallest = max(SMALLEST_WITHIN, *(soundness.distribution(times).spread for times in (*tops, *bottoms)))
    differs = None
    if figure.low is not None and figure.high is not None:
        differs = not figure.low <= 1 <= figure.high and abs(math.log(figure.value)) > math.log1p(smallest)
    return Ratio("step-time ratio", figure, "", differs, smallest, shown)


def _tail(arm: Arm) -> tuple[int | None, int | None]:
    return arm.bf16_head_layers, arm.bf16_tail_layers


def verdict(ratio: Ratio, arm: Arm, base: Arm) -> str:
    """What it comes to, in a sentence."""
    pair = f"{arm.name} ({arm.label}) and {base.name} ({base.label})"
    interval = stats.between(ratio.figure)
    repeats = min(len(arm.runs), len(base.runs))
    few = f"; {'one run' if repeats == 1 else 'two runs'} cannot tell how runs differ: REPEAT={stats.FEWEST}"
    more = "" if repeats >= stats.FEWEST else few
    if ratio.what == "step-time ratio":
        if ratio.differs:
            return f"A difference in speed: {arm.name} takes {ratio.sentence} {interval}{more}."
        ends = [end for end in (ratio.figure.low, ratio.figure.high) if end is not None]
        least = f"above {100 * max([ratio.smallest, *(abs(end - 1) for end in ends)]):.1f} %"
        more += _power(ratio, repeats)
        return f"No difference in speed {least}: {arm.name} takes {ratio.sentence} {interval}{more}."
    if ratio.what == "cost of emulation":
        took, _, remark = ratio.sentence.partition("; ")
        return f"{arm.name} ({arm.label}) takes {took} {interval}; {remark}."
    if ratio.differs and ratio.what == "speed ratio":
        return f"{arm.name} is {ratio.sentence} {interval}{more}."
    if not ratio.differs:
        more += _power(ratio, repeats)
        return f"No difference in speed is shown between {pair}: {ratio.sentence} {interval}{more}."
    value = ratio.figure.value
    faster = f"{value:.2f} times as fast as" if value >= 1 else f"slower, at {value:.2f} of the speed of"
    return f"{arm.called} is {faster} {base.called} {interval}{more}."


def _power(ratio: Ratio, repeats: int) -> str:
    """How large a difference such repeats would have shown; "" of too few to know."""
    if ratio.shown is None:
        return ""
    return f"; {repeats} repeats that spread so show {100 * ratio.shown:.2g} % eight times in ten"


def ratio_over_repeats(top: Sequence[float], bottom: Sequence[float]) -> stats.Difference:
    """The logarithm of the ratio of two configurations' step times, from the medians of their repeats; all positive.

    As many of each, in the order in which they ran: by the pairs' ratios, so that what both runs of a pair share (a
    warm room) does not widen it. Otherwise Welch's.
    """
    a, b = np.log(top), np.log(bottom)
    if len(a) == len(b):
        return stats.over(a - b)
    parts = [values.var(ddof=1) / len(values) for values in (a, b)]
    spread = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    freedom = sum(parts) ** 2 / spread if spread else len(a) + len(b) - 2.0
    return stats.Difference(a.mean() - b.mean(), math.sqrt(sum(parts)), freedom)


def ratio_within_runs(top: Sequence[np.ndarray], bottom: Sequence[np.ndarray]) -> Figure | None:
    """The ratio of two configurations' median step times, as far as iterations within these runs can tell.

    That is of the geometric means of the runs' medians, with a block bootstrap over iterations; None where a run has
    too few of them. Of each run the step times are given in order, all positive.
    """
    fewest = min(map(len, (*top, *bottom)))
    if fewest < FEWEST_ITERATIONS:
        return None
    generator = np.random.default_rng(SEED)
    middle = _mean_log_median(top) - _mean_log_median(bottom)
    series, draws = len(top) + len(bottom), np.zeros(DRAWS)
    for runs, sign in ((top, 1), (bottom, -1)):
        for times in runs:
            draws += sign * _median_draws(times, generator, series) / len(runs)
    low, high = np.quantile(draws, [stats.LEVEL / 2, 1 - stats.LEVEL / 2])
    value, low, high = (math.exp(middle + end) for end in (0.0, min(low, 0.0), max(high, 0.0)))
    these = "this run" if series == 2 else "these runs"
    return Figure(value, "x", low, high, f"95 % interval within {these} only, block bootstrap over iterations", fewest)


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


def _mean_draws(deviations: np.ndarray, generator: np.random.Generator, series: int) -> np.ndarray:
    """Resampled means of a centred series in moving blocks, [DRAWS], spread as Student's t of as many blocks is.

    The interval will rest on `series` of them with about as many blocks.
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
    few_blocks = float(stats.quantile(series * (blocks - 1.0), 1 - stats.LEVEL / 2)) / NORMAL
    cut_apart = math.sqrt(1 + lasts / length)  # the covariance between blocks, which resampling loses
    return (draws - block_means.mean()) * few_blocks * cut_apart
