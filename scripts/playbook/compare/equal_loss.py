"""Time to equal loss: the tokens that two arms need for the same loss, and what that leaves of a speed-up.

A training loss is smoothed over the second half of all tokens up to it. A window that grows with the tokens keeps the
ratio: where one curve is the other with r times the tokens, so are the smoothed ones, whatever their shape. The ratio
is that at the lowest smoothed loss that both arms come to.

Losses at one learning rate are compared so. Where the rate decays, the arm that gets there first is met in the middle
of its schedule, and not where a schedule of so many tokens would have brought it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from playbook.compare import loss_gap, stats
from playbook.compare.figures import Measured
from playbook.compare.model import Arm, EqualLoss, Ratio
from playbook.compare.published import SpeedUp
from playbook.compare.stats import Figure

FEWEST = 10  # losses in a window: with fewer there is no smoothed loss; two windows make a curve
FEWEST_EVALUATIONS = 3  # of a curve of validation losses
SURE = 4  # standard errors by which a loss has to fall within a window, or its place on the curve is not known

Pair = tuple[Measured, Measured]  # the arm's run and the baseline's, of one seed


class _NotMet(Exception):
    """Why there is no number of tokens, in one sentence."""


@dataclass(frozen=True)
class _Curve:
    """A loss that falls with the tokens.

    Attributes:
        tokens, loss: [points]; tokens rise.
        noise: standard error of the fall of the loss while the tokens double, up to each point; 0 where not known.
        fall: that fall; infinite where not known.
    """

    tokens: np.ndarray
    loss: np.ndarray
    noise: np.ndarray
    fall: np.ndarray


def between(
    arms: tuple[Arm, Arm], runs: Sequence[Measured], base_runs: Sequence[Measured], ratio: Ratio | None,
    given: SpeedUp | None,
) -> EqualLoss:  # fmt: skip
    """Set an arm's curve against the baseline's.

    Args:
        arms: the arm and the baseline; their `runs` are of real data, because a loss of mock data means nothing.
        ratio: of their step times.
        given: a speed-up to project with.
    """
    names = (arms[0].name, arms[1].name)
    misplaced = given is not None and given.is_published and (arms[0].precision, arms[1].precision) != ("nvfp4", "bf16")
    given = None if misplaced else given
    ours, theirs = loss_gap.by_seed(runs), loss_gap.by_seed(base_runs)
    seeds = [list(zip(ours[seed], theirs[seed], strict=False)) for seed in ours if seed in theirs]
    held = [loss_gap.holds_rate(each) for each in (*runs, *base_runs)]
    holds = False if False in held else None if None in held else True
    logs, loss, said = _attempt(seeds, _training_curve, names, "training")
    validation = np.empty(0)
    if all(len(_evaluated(each)) >= FEWEST_EVALUATIONS for pairs in seeds for pair in pairs for each in pair):
        validation, _, more = _attempt(seeds, _validation_curve, names, "validation")
        said += more
    effective = None
    if len(logs):
        effective = _effective(logs, seeds, ratio, given)
        said += [_of_the_rate(holds), _of_the_speed(effective, ratio, given)]
    if misplaced:
        said.append("SPEEDUP=published is NVFP4's over BF16, and these are another pair: give a number.")
    return EqualLoss(
        _figure(logs), _figure(validation), loss, effective, given is not None, holds, list(filter(None, said))
    )


def _attempt(
    seeds: list[list[Pair]], curve: Callable[[Measured], _Curve], names: tuple[str, str], of: str
) -> tuple[np.ndarray, float | None, list[str]]:
    """For each seed the logarithm of the ratio, repeats of it being one; the mean loss; what there is to say."""
    if not seeds:
        return np.empty(0), None, ["Tokens to equal loss: the arms have no seed in common."]
    try:
        found = [[_ratio(curve(new), curve(base), names) for new, base in pairs] for pairs in seeds]
    except _NotMet as refusal:
        return np.empty(0), None, [f"Tokens to equal {of} loss cannot be said: {refusal}."]
    logs = np.array([np.mean([log for log, _ in each]) for each in found])
    loss = float(np.mean([loss for each in found for _, loss in each]))
    return logs, loss, [_said(_figure(logs), loss, names, of)]


def _figure(logs: np.ndarray) -> Figure | None:
    if not len(logs):
        return None
    if len(logs) < stats.FEWEST:
        return Figure(math.exp(logs.mean()), "x", count=len(logs))
    return stats.over(logs).as_ratio(stats.OVER_SEEDS.format(len(logs)), len(logs))


def _training_curve(of: Measured) -> _Curve:
    """The smoothed training loss, where a window is whole and has losses enough; linear in the number of lines."""
    lines = of.lines.where(np.isfinite(of.lines.column("loss")))
    at, loss = _tokens(of, lines.iterations), lines.column("loss")
    if len(at) < 4 * FEWEST:
        raise _NotMet(f"{len(at)} iterations are too few to smooth a loss; {4 * FEWEST} are needed")
    sums, steps = (np.concatenate([[0.0], np.cumsum(each)]) for each in (loss, np.diff(loss, prepend=loss[0]) ** 2))
    end = np.arange(1, len(at) + 1)
    first = np.searchsorted(at, at / 2, side="right")
    count = end - first
    smooth = (sums[end] - sums[first]) / count
    variance = (steps[end] - steps[first]) / (2 * count)  # of one loss: neighbours differ by their noise
    before = np.maximum(first - 1, 0)  # where half of the tokens are seen
    started = at[0] - (at[1] - at[0])
    known = (count >= FEWEST) & (at / 2 >= started)
    if not known.any():
        began = f"the record begins at iteration {lines.iterations[0]:.0f}"
        raise _NotMet(f"{began}, and half of the tokens of a loss are before that")
    whole = known[before]
    fall = np.where(whole, smooth[before] - smooth, np.inf)
    noise = np.sqrt(variance * (1 / count + 1 / np.maximum(count[before], 1)))
    return _Curve(at[known], smooth[known], noise[known], fall[known])


def _validation_curve(of: Measured) -> _Curve:
    at, loss = (np.array(each, dtype=float) for each in zip(*sorted(_evaluated(of).items()), strict=True))
    return _Curve(_tokens(of, at), loss, np.zeros(len(at)), np.full(len(at), np.inf))


def _evaluated(of: Measured) -> dict[int, float]:
    """The validation loss at each iteration after which it was evaluated."""
    return {
        line["iteration"]: line["loss"]
        for line in of.run.evaluations
        if line.get("split") == "validation" and line.get("loss") is not None and line["iteration"] > 0
    }


def _tokens(of: Measured, iterations: np.ndarray) -> np.ndarray:
    return of.tokens_at(iterations) if of.tokens_per_step else iterations  # where not known both count iterations


def _ratio(new: _Curve, base: _Curve, names: tuple[str, str]) -> tuple[float, float]:
    """The logarithm of the ratio of tokens, and the loss: the lowest that both come to."""
    lowest = [float(curve.loss.min()) for curve in (new, base)]
    target, slower = max(lowest), int(np.argmax(lowest))
    if (new, base)[slower].fall[-1] < SURE * (new, base)[slower].noise[-1]:
        raise _NotMet(f"the loss of {names[slower]} no longer falls by more than its noise")
    new_at, base_at = (_reached(curve, target, name, names) for curve, name in zip((new, base), names, strict=True))
    return math.log(new_at / base_at), target


def _reached(curve: _Curve, target: float, name: str, names: tuple[str, str]) -> float:
    """The tokens at which a loss is reached: between the first time at it and the last above it, which noise parts."""
    end = int(np.argmin(curve.loss)) + 1
    above = np.flatnonzero(curve.loss[:end] > target)
    if not len(above) or above[0] != 0:
        other = names[1 - names.index(name)]
        raise _NotMet(f"the curves never meet: {other} comes down to {target:.4f}, and {name} lay below from the start")
    if above[-1] == end - 1:
        return float(curve.tokens[end - 1])
    first = int(np.argmax(curve.loss[:end] <= target)) - 1
    return math.sqrt(_crossing(curve, first, target) * _crossing(curve, int(above[-1]), target))


def _crossing(curve: _Curve, index: int, target: float) -> float:
    """Between a point above the target and the next one, linear in the logarithm of the tokens."""
    (high, low), (left, right) = curve.loss[index : index + 2], np.log(curve.tokens[index : index + 2])
    return math.exp(left + (right - left) * (high - target) / (high - low))


def _effective(logs: np.ndarray, seeds: list[list[Pair]], ratio: Ratio | None, given: SpeedUp | None) -> Figure | None:
    """The speed-up over the ratio of tokens, paired by seed."""
    if given:
        return _figure(math.log(given.value) - logs)
    if ratio is None or ratio.what != "speed-up":
        return None
    speeds = [[math.log(np.median(base.times) / np.median(new.times)) for new, base in pairs] for pairs in seeds]
    return _figure(np.array([np.mean(each) for each in speeds]) - logs)


def _said(figure: Figure, loss: float, names: tuple[str, str], of: str) -> str:
    new, base = names
    more = 100 * (figure.value - 1)
    needs = f"{abs(more):.1f} % {'fewer' if more < 0 else 'more'} tokens than {base}"
    over = _over(figure, lambda low, high: f"{100 * (low - 1):+.1f} to {100 * (high - 1):+.1f} %")
    return f"For the same {of} loss ({loss:.4f}), {new} needs {needs} ({over})."


def _over(figure: Figure, ends: Callable[[float, float], str]) -> str:
    """What a figure rests on, and its interval as `ends` says it, where it has one."""
    if figure.low is None or figure.high is None:
        return f"{'one seed' if figure.count == 1 else f'{figure.count} seeds'}: how seeds differ is unknown"
    return f"95 % interval {ends(figure.low, figure.high)} over {figure.count} seeds"


def _of_the_rate(holds: bool | None) -> str:
    if holds:
        return ""
    if holds is None:
        return "Whether the learning rate was held is not recorded; where it decays, this ratio is not exact."
    return (
        "The learning rate decays: curves of unfinished schedules are not comparable, and this ratio is too near to 1 "
        "(ARGS='scheduler.lr_decay_style=constant' holds the rate and makes it exact)."
    )


def _of_the_speed(figure: Figure | None, ratio: Ratio | None, given: SpeedUp | None) -> str:
    if figure is None:
        emulated = ratio is not None and ratio.what == "cost of emulation"
        return "An emulation has no speed to set against that; SPEEDUP=published, or a number, projects." * emulated
    speed = f"{given.value:.3g}x, {given.source}" if given else "these runs' own"
    kind = "Effective speed-up, projected" if given else "Effective speed-up"
    over = _over(figure, "{:.2f} to {:.2f}".format)
    return f"{kind}: {figure.value:.2f}x, the speed-up ({speed}) over the ratio of tokens ({over})."
