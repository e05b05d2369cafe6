"""How far two arms' losses lie apart, and what such a gap can and cannot show.

A gap is found once for each seed: both arms begin with the same weights and read the same tokens in the same order. Two
runs of one seed share one trajectory, and its iterations, or repeats of it, do not tell how another seed would end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from playbook.compare import published, stats
from playbook.compare.figures import Measured
from playbook.compare.model import Arm
from playbook.compare.stats import Figure
from pretraining.units import amount

SCALE_TOKENS = 1e11  # below a tenth of the smallest published training, a gap says nothing about convergence

OfPair = Callable[[Measured, Measured], float | None]


@dataclass(frozen=True)
class Gap:
    """A relative loss gap, per cent, of each seed (None is one that is not known).

    Attributes:
        repeats: the lowest and the highest where one seed was run several times: what last bits alone do.
    """

    by_seed: Mapping[int | None, float]
    repeats: tuple[float, float] | None = None

    @property
    def over_seeds(self) -> stats.Difference | None:
        """Their mean with its error; None of too few seeds to judge."""
        if None in self.by_seed or len(self.by_seed) < stats.FEWEST:
            return None
        return stats.over(list(self.by_seed.values()))

    @property
    def figure(self) -> Figure:
        """Their mean, with an interval where there are seeds enough; else `spread` says why there is none."""
        found, count = self.over_seeds, len(self.by_seed)
        if found is None:
            return Figure(float(np.mean(list(self.by_seed.values()))), "%", spread=self.unjudged, count=count)
        low, high = found.ends()
        return Figure(float(found.value), "%", float(low), float(high), stats.OVER_SEEDS.format(count), count)

    @property
    def unjudged(self) -> str:
        """Why nothing can be said of it but the number; "" where something can."""
        if None in self.by_seed:
            return "no verdict: which seed is not known, or not the same"
        if len(self.by_seed) >= stats.FEWEST:
            return ""
        seeds = "one seed" if len(self.by_seed) == 1 else f"{len(self.by_seed)} seeds"
        return f"no verdict: {seeds}, how seeds differ is unknown"


def training(new: Sequence[Measured], base: Sequence[Measured]) -> Gap | None:
    """Over the last tenth of the iterations that both runs of a pair have; None on mock data and without losses."""
    return _of_pairs(new, base, _last_tenth)


def validation(new: Sequence[Measured], base: Sequence[Measured]) -> Gap | None:
    """Of the validation losses; None on mock data, or where not all were evaluated at one iteration."""
    if len({run.result.validated_at for run in (*new, *base)}) > 1:
        return None
    return _of_pairs(new, base, _of_validations)


def called(found: Sequence[Gap | None]) -> list[bool | None]:
    """Which of several gaps to one baseline are differences, by Holm's correction; None where nothing judges."""
    judged = [gap.over_seeds if gap else None for gap in found]
    known = iter(stats.holm([each.p for each in judged if each]) if any(judged) else [])
    return [bool(next(known)) if each else None for each in judged]


def by_seed(runs: Sequence[Measured]) -> dict[int | None, list[Measured]]:
    """The runs of each seed, in the order given; those whose seed was not recorded under None."""
    found: dict[int | None, list[Measured]] = {}
    for each in runs:
        found.setdefault(each.run.parity.get("seed"), []).append(each)
    return found


def _of_pairs(new: Sequence[Measured], base: Sequence[Measured], gap: OfPair) -> Gap | None:
    if on_mock((*new, *base)):
        return None
    ours, theirs = by_seed(new), by_seed(base)
    shared = {seed: (ours[seed], theirs[seed]) for seed in ours if seed in theirs}
    if len(ours) != len(shared) or len(theirs) != len(shared):  # of a forced comparison
        shared = {None: (list(new), list(base))}
    found = {seed: [each for each in map(gap, *runs) if each is not None] for seed, runs in shared.items()}
    means = {seed: float(np.mean(each)) for seed, each in found.items() if each}
    if not means or len(means) < len(found):
        return None
    (first, *others) = found.values()
    return Gap(means, None if others or len(first) < 2 else (min(first), max(first)))


def iterations_of(new: Measured, base: Measured) -> int:
    """How many iterations the training loss gap of these two rests on."""
    return len(_gaps(new, base)) * new.paired.every


def _last_tenth(new: Measured, base: Measured) -> float | None:
    gaps = _gaps(new, base)
    return float(gaps.mean()) if len(gaps) else None


def _gaps(new: Measured, base: Measured) -> np.ndarray:
    """The relative gap at each iteration of the last tenth that both have a loss for, per cent."""
    last = min(new.paired.last, base.paired.last)
    ends = []
    for each in (new, base):
        lines = each.paired.between(0, last)
        ends.append(lines[len(lines) - stats.last_part(len(lines), each.paired.every) :] if len(lines) else lines)
    _, at_new, at_base = np.intersect1d(ends[0].iterations, ends[1].iterations, return_indices=True)
    loss, reference_loss = ends[0].column("loss")[at_new], ends[1].column("loss")[at_base]
    known = np.isfinite(loss) & np.isfinite(reference_loss) & (reference_loss != 0)
    return 100 * (loss[known] - reference_loss[known]) / reference_loss[known]


def _of_validations(new: Measured, base: Measured) -> float | None:
    ours, theirs = new.result.validation_loss, base.result.validation_loss
    return 100 * (ours.value / theirs.value - 1) if ours and theirs and theirs.value else None


def published_gaps(new: Measured, base: Measured) -> str:
    """Published gaps to set beside these two's; "" where they are not NVFP4 against BF16 or FP8."""
    precisions = [each.run.precision.get("name", "") for each in (new, base)]
    if precisions[0] != "nvfp4" or not (precisions[1] == "bf16" or "fp8" in precisions[1]):
        return ""
    return published_at(new)


def published_at(run: Measured) -> str:
    """Published gaps of runs that ended where this one did in its schedule; "" on mock data and of fine-tuning."""
    if on_mock([run]) or "finetune" in run.run.parity:
        return ""
    where = position(run)
    if not (found := published.gaps(where)):
        return f"published gaps are of held learning rates and of finished decays, and not of {where}" if where else ""
    return f"published, of {where}: {'; '.join(found)}"


def position(of: Measured) -> str:
    """Where in its learning-rate schedule a run ended, as `published.toml` says it; "" where not known."""
    facts = of.run.parity
    held, ends = holds_rate(of), facts.get("decay_iters") or facts.get("train_iters")
    if held is None or not ends:
        return ""
    if held:
        return published.HELD
    return published.DECAYED if of.lines.last >= ends else "an unfinished decay"


def holds_rate(of: Measured) -> bool | None:
    """Whether a run holds its learning rate after the warm-up; None where it does not say."""
    style, peak, least = map(of.run.parity.get, ("decay_style", "learning_rate", "min_learning_rate"))
    return style == "constant" or (peak is not None and peak == least) if style else None


def scope(runs: Sequence[Measured]) -> str:
    """One sentence on what a gap between these runs can and cannot show."""
    seen = tokens(runs)
    size = f"{iterations(runs):,} iterations" + (f" ({amount(seen)} tokens)" if seen else "")
    if on_mock(runs):
        return f"{size} of mock data show whether the arithmetic trains; they say nothing about convergence."
    if seen >= SCALE_TOKENS:
        return f"{size} are within reach of the published trainings; the gap still moves with the learning rate."
    return f"{size} show whether the two learn alike at first; they say nothing about convergence at scale."


def on_mock(runs: Sequence[Measured]) -> bool:
    """Whether any of them trained on mock data."""
    return any(each.run.environment.get("mock_data") for each in runs)


def iterations(runs: Sequence[Measured]) -> int:
    """Iterations that all have done."""
    return min(each.lines.last for each in runs)


def tokens(runs: Sequence[Measured]) -> int:
    """Tokens that all have seen; 0 where not known."""
    return int(min(each.tokens_at(np.array([iterations(runs)]))[0] for each in runs))


def verdict(gap: Gap, arm: Arm, base: Arm, *, differs: bool | None, tests: int, margin: float | None) -> str:
    """What a gap in training loss shows, and what would show more.

    Args:
        differs: whether it is a difference; None where nothing judges it.
        tests: how many gaps were judged at once.
        margin: the smallest difference that matters, per cent, where one was asked for.
    """
    new, old = (arm.name, base.name) if arm.label == base.label else (arm.called, base.called)
    figure, over = gap.figure, gap.over_seeds
    if differs is None or over is None:
        said = f"The training loss of {new} lies {figure.value:+.2f} % from {old}, {gap.unjudged or 'no verdict'}"
        if gap.repeats:
            said += f" (repeats of one seed, {gap.repeats[0]:+.2f} to {gap.repeats[1]:+.2f} %, show what last bits do)"
        return said + ("; SEEDS='1 2 3' judges it." if gap.unjudged else ".")
    if differs:
        said = f"The training loss of {new} lies {figure.value:+.2f} % from {old} {stats.between(figure)}."
    else:
        shown = f"{figure.count} seeds that spread so show {over.smallest_shown(tests):.2g} % eight times in ten"
        said = f"No difference in training loss is shown between {new} and {old}: {figure.value:+.2f} % "
        said += f"{stats.between(figure)}; {shown}."
    if margin is None:
        return said
    low, high = over.ends(2 * stats.LEVEL)
    equal = "They are equal" if over.within(margin) else "They are not shown to be equal"
    return f"{said} {equal} within {margin:g} % (two one-sided tests; 90 % interval {low:+.2f} to {high:+.2f})."
