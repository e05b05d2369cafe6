"""How far two arms' losses lie apart, and what such a gap can and cannot show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from playbook.compare import intervals, stats
from playbook.compare.model import Arm
from playbook.compare.run_figures import Measured
from playbook.compare.stats import Figure

PUBLISHED = (
    "published: under 1 % in the stable phase, about 1.5 % at the end of decay (arXiv 2509.25149, 1T tokens and more)"
)
STABLE, LARGEST_PUBLISHED = 1.0, 1.5  # %
SCALE_TOKENS = 1e11  # below a tenth of the smallest published training, a gap says nothing about convergence


def training(new: Sequence[Measured], base: Sequence[Measured]) -> Figure | None:
    """Relative loss gap, per cent, over the last tenth of the iterations that all have, paired: the same tokens.

    With a block bootstrap over iterations, because neighbouring losses are alike; over three repeats and more whose
    gaps differ, with a t-interval where that is wider.
    """
    gaps = [gap for gap in map(_gaps, new, base) if len(gap)]
    if not gaps:
        return None
    length = min(map(len, gaps))
    means = [float(gap.mean()) for gap in gaps]
    pooled = np.mean([gap[-length:] for gap in gaps], axis=0)
    found = intervals.mean_within_run(pooled)
    if len(gaps) >= intervals.FEWEST_REPEATS and np.ptp(means) > 0:
        over = intervals.mean_over_repeats(means)
        # Repeats share seed and tokens: how they differ is the noise of last bits, not that of another seed.
        if found is None or over.high - over.low > found.high - found.low:
            return Figure(over.value, "%", over.low, over.high, intervals.OVER_REPEATS.format(len(means)), length)
    if found is None:
        return Figure(float(pooled.mean()), "%", count=length)
    return Figure(found.value, "%", found.low, found.high, intervals.within(len(gaps)), length)


def _gaps(new: Measured, base: Measured) -> np.ndarray:
    """The relative gap at each iteration of the last tenth that both have a loss for, per cent."""
    last = min(new.lines.last, base.lines.last)
    ends = []
    for each in (new, base):
        lines = each.lines.between(0, last)
        ends.append(lines[len(lines) - stats.last_part(len(lines)) :] if len(lines) else lines)
    _, at_new, at_base = np.intersect1d(ends[0].iterations, ends[1].iterations, return_indices=True)
    loss, reference = ends[0].column("loss")[at_new], ends[1].column("loss")[at_base]
    known = np.isfinite(loss) & np.isfinite(reference) & (reference != 0)
    return 100 * (loss[known] - reference[known]) / reference[known]


def validation(new: Arm, base: Arm) -> Figure | None:
    """Relative gap of the validation losses, per cent; None where not all were evaluated at one iteration."""
    at = {run.validated_at for arm in (new, base) for run in arm.runs}
    if not (new.validation_loss and base.validation_loss and len(at) == 1 and base.validation_loss.value):
        return None
    return Figure(100 * (new.validation_loss.value / base.validation_loss.value - 1), "%")


def published(new: Arm, base: Arm) -> str:
    """The published gap, "" where it was not measured of such two: pretraining's, NVFP4 against BF16 or FP8."""
    tuned = any("finetune" in run.facts for arm in (new, base) for run in arm.runs)
    applies = new.precision == "nvfp4" and (base.precision == "bf16" or "fp8" in base.precision)
    return PUBLISHED if applies and not tuned else ""


def placed(gap: Figure | None, runs: Sequence[Measured]) -> str:
    """One sentence that places a gap against the published band and says what to do; "" without one."""
    if gap is None:
        return ""
    if on_mock(runs):
        return "on mock data no gap between losses means anything, whatever its size."
    size = abs(gap.value)
    if gap.low is not None and gap.high is not None and gap.low <= 0 <= gap.high:
        where = "the gap cannot be told from zero"
    elif size <= STABLE:
        where = "the gap lies within the published band of the stable phase"
    elif size <= LARGEST_PUBLISHED:
        where = "the gap lies within the published band at the end of decay"
    else:
        where = "the gap lies outside the published band"
    if tokens(runs) >= SCALE_TOKENS:
        return f"{where}."
    if "outside" in where:
        return (
            f"{where}; short, small runs exceed the published band, and repeats with several seeds tell luck from "
            "effect."
        )
    return f"{where}; a run this short neither confirms nor contradicts it."


def scope(runs: Sequence[Measured]) -> str:
    """One sentence on what a gap between these runs can and cannot show."""
    seen = tokens(runs)
    size = f"{iterations(runs):,} iterations" + (f" ({_short(seen)} tokens)" if seen else "")
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
    return iterations(runs) * min(each.tokens_per_step for each in runs)


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"
