"""Step times of two arms against each other: the ratio, its interval, and whether that is a difference."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from playbook.compare import intervals, timing
from playbook.compare.figures import Measured
from playbook.compare.intervals import Interval
from playbook.compare.model import UNKNOWN, Arm, Ratio
from playbook.compare.stats import Figure

# Relative. Two runs of the same differ by some tenths of a per cent; half of one is no reason to choose.
SMALLEST = 0.005
# Without enough repeats how runs differ is not seen at all. 2 % is four times what well-kept GPUs show; on a machine
# whose iterations differ by more, its runs do too.
SMALLEST_WITHIN = 0.02


def step_time(new: Arm, base: Arm, new_runs: list[Measured], base_runs: list[Measured]) -> Ratio | None:
    """How the step times compare; None where an arm has none, or some that are unusable."""
    if not (new.step_time and base.step_time) or unusable(new, base):
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
        name = base.precision.upper() if new.precision != base.precision else f"native {base.precision.upper()}"
        sentence = f"{times} times the {name} step; an emulation shows no speed"
    else:
        kind = "speed-up"
        sentence = f"{times}x{'' if value >= 1 else ' (slower)'}, {new.precision} over {base.precision}"
    return replace(found, what=kind, sentence=sentence)


def unusable(*arms: Arm) -> list[str]:
    """The labels of the runs whose step times spread too far for any statement of speed."""
    runs = [(arm.run_label(at), run.step_times) for arm in arms for at, run in enumerate(arm.runs)]
    return [label for label, times in runs if times and times.spread > timing.UNUSABLE]


def measure(top: list[Measured], bottom: list[Measured]) -> Ratio:
    """The ratio of two configurations' step times, of whatever they are, and whether it is a difference."""
    figure, smallest, shown = _figure(top, bottom)
    return Ratio("step-time ratio", figure, "", _differs(figure, smallest), smallest, shown)


def _tail(arm: Arm) -> tuple[int | None, int | None]:
    return arm.bf16_head_layers, arm.bf16_tail_layers


def _figure(top: list[Measured], bottom: list[Measured]) -> tuple[Figure, float, float | None]:
    """The ratio with its interval, the smallest difference that it calls one, and the one that it usually shows.

    Three repeats can lie together by luck, so theirs is no smaller than what their iterations leave open.
    """
    tops, bottoms = ([run.times for run in runs] for runs in (top, bottom))
    medians = [[float(np.median(times)) for times in arm] for arm in (tops, bottoms)]
    within = intervals.ratio_within_runs(tops, bottoms)
    repeats = min(len(top), len(bottom))
    if repeats >= intervals.FEWEST_REPEATS:
        over = intervals.ratio_over_repeats(*medians)
        found = Interval(*(math.exp(each) for each in (over.value, *over.ends())))
        smallest = max(SMALLEST, math.sqrt(within.high / within.low) - 1 if within else 0.0)
        shown = math.expm1(over.smallest_shown(least=math.log1p(smallest)))
        return _with(found, intervals.OVER_REPEATS.format(repeats), repeats), smallest, shown
    smallest = max(SMALLEST_WITHIN, *(timing.distribution(times).spread for times in (*tops, *bottoms)))
    if within is None:
        return Figure(math.exp(np.subtract(*(np.mean(np.log(each)) for each in medians))), "x"), smallest, None
    spread = intervals.within(max(len(top), len(bottom)))
    return _with(within, spread, min(map(len, (*tops, *bottoms)))), smallest, None


def _with(found: Interval, spread: str, count: int) -> Figure:
    return Figure(found.value, "x", found.low, found.high, spread, count)


def _differs(figure: Figure, smallest: float) -> bool | None:
    """Whether the interval leaves 1 out, and the ratio is further from it than the smallest difference."""
    if figure.low is None or figure.high is None:
        return None
    return not figure.low <= 1 <= figure.high and abs(math.log(figure.value)) > math.log1p(smallest)
