"""How far two runs' losses lie apart, and what such a gap can and cannot show."""

from __future__ import annotations

from playbook import stats
from playbook.stats import Figure
from pretraining.record import Run

PUBLISHED = (
    "published: under 1 % in the stable phase, about 1.5 % at the end of decay (arXiv 2509.25149, 1T tokens and more)"
)
LARGEST_PUBLISHED = 1.5  # %
SCALE_TOKENS = 1e11  # below a tenth of the smallest published training, a gap says nothing about convergence


def training(new: Run, base: Run) -> Figure | None:
    """Relative loss gap over the last tenth of the iterations both have, paired: the same tokens."""
    if not (new.train and base.train):
        return None
    last = min(new.train[-1]["iteration"], base.train[-1]["iteration"])
    new_part, base_part = (stats.last_part(stats.up_to(run.train, last)) for run in (new, base))
    losses = {line["iteration"]: line.get("loss") for line in base_part}
    pairs = [(line.get("loss"), losses.get(line["iteration"])) for line in new_part]
    return stats.relative_gap([(loss, reference) for loss, reference in pairs if None not in (loss, reference)])


def published(new: Run, base: Run) -> str:
    """The published gap, "" where it was not measured of such two: it is NVFP4's against BF16 or an FP8."""
    candidate, baseline = (run.precision.get("name", "") for run in (new, base))
    return PUBLISHED if candidate == "nvfp4" and (baseline == "bf16" or "fp8" in baseline) else ""


def beyond(gap: Figure | None, a: Run, b: Run) -> str:
    """What to make of a gap over the published ones and twice its own standard deviation; "" of a smaller one."""
    if gap is None or gap.high is None or _tokens(a, b) >= SCALE_TOKENS:
        return ""
    if abs(gap.value) <= max(LARGEST_PUBLISHED, 2 * (gap.high - gap.value)):
        return ""
    return "short, small runs exceed the published band; repeats with several seeds tell luck from effect"


def scope(a: Run, b: Run) -> str:
    """One sentence on what a gap between these two can and cannot show."""
    iterations = _iterations(a, b)
    tokens = _tokens(a, b)
    size = f"{iterations:,} iterations" + (f" ({_short(tokens)} tokens)" if tokens else "")
    if any(run.environment.get("mock_data") for run in (a, b)):
        return f"{size} of mock data show whether the arithmetic trains; they say nothing about convergence."
    if tokens >= SCALE_TOKENS:
        return f"{size} are within reach of the published trainings; the gap still moves with the learning rate."
    return f"{size} show whether the two learn alike at first; they say nothing about convergence at scale."


def _iterations(*runs: Run) -> int:
    return min((run.train[-1]["iteration"] if run.train else 0) for run in runs)


def _tokens(*runs: Run) -> int:
    """Tokens that both have seen; 0 where not known."""
    return _iterations(*runs) * min((run.environment.get("tokens_per_step") or 0) for run in runs)


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"
