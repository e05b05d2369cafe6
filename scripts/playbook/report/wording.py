"""Figures in words: the same digits in the page, its plots and the Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from playbook.compare import figures
from playbook.compare.model import Arm, Comparison, Contrast
from playbook.compare.stats import Figure
from pretraining.record.run_folder import Peak

NOT_KNOWN = "not known"
NO_FIGURE = "–"  # one that would mean nothing
LOSS_DIGITS = 4  # behind the point
WHOLE = {"bf16": "all", "fp16": "none", "fp32": "none"}  # layers in BF16
SMALLER = {"s": "ms", "J/token": "mJ/token"}


@dataclass(frozen=True)
class Cell:
    """A figure in words, without its unit; below it stand its interval and the same in another unit."""

    value: str
    small: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One kind of figure, of each arm in order; `brief` is its name in a terminal, `spread` what the intervals are.

    A cell is `NOT_KNOWN` where it is missing, `NO_FIGURE` where it would say nothing of the arm.
    """

    label: str
    brief: str
    unit: str
    spread: str
    cells: list[Cell]

    @property
    def note(self) -> str:
        """Unit and spread."""
        return "; ".join(filter(None, (self.unit, self.spread)))


@dataclass(frozen=True)
class Against:
    """One figure of an arm against the baseline; one of a metric has its `name`, and a difference is signed."""

    label: str
    figure: Figure
    signed: bool
    name: str = ""


def rows(comparison: Comparison) -> list[Row]:
    """The table of figures: what precision each arm computes in, then one row for each figure that any arm has."""
    arms = comparison.arms
    found = [*settings(arms)]
    for metric in figures.METRICS:
        said = [metric.means(arm) for arm in arms]
        values = [arm.figures[metric.name] for arm in arms]
        known = [arm for arm, value, means in zip(arms, values, said, strict=True) if value and means]
        if known:
            kinds = dict.fromkeys(filter(None, map(metric.kind, known)))
            found.append(_row(", ".join([metric.label, *kinds]), metric.brief, values, said))
    return found


def settings(arms: Sequence[Arm]) -> list[Row]:
    """Which layers are kept in BF16, and how much of the NVFP4 recipe is on, where the arms are not all wholly BF16."""
    found = []
    if any(arm.precision not in WHOLE for arm in arms):
        found.append(Row("Layers in BF16", "BF16 layers", "", "", [Cell(bf16_layers(arm)) for arm in arms]))
    if any(arm.recipe for arm in arms):
        recipes = [Cell(arm.recipe or NO_FIGURE) for arm in arms]
        found.append(Row("NVFP4 recipe", "NVFP4 recipe", "", "", recipes))
    return found


def bf16_layers(arm: Arm) -> str:
    """ "all", "none", or "first 0, last 4"."""
    if arm.precision in WHOLE:
        return WHOLE[arm.precision]
    if arm.bf16_head_layers is None or arm.bf16_tail_layers is None:
        return NOT_KNOWN
    return f"first {arm.bf16_head_layers}, last {arm.bf16_tail_layers}"


def allocator_rows(comparison: Comparison) -> list[Row]:
    """The peaks of PyTorch's allocator where all runs have them: of each arm that of its first run."""
    first = [arm.runs[0] for arm in comparison.arms]
    of = " of the first run" if any(len(arm.runs) > 1 for arm in comparison.arms) else ""
    kinds = [kind for kind in first[0].memory if kind.startswith((Peak.ALLOCATED, Peak.RESERVED))]
    shown = [kind for kind in kinds if all(kind in run.memory for run in first)]
    return [_row(f"Peak{of}, {kind}", kind, [run.memory[kind] for run in first], [True] * len(first)) for kind in shown]


def _row(label: str, brief: str, values: list[Figure | None], said: list[bool]) -> Row:
    """One unit and as many digits for all, so that they can be read down and across."""
    known = [figure for figure in values if figure]
    unit, small = known[0].unit, all(abs(each.value) < 1 for each in known)
    shown = [figure and _in_thousandths(figure) if small else figure for figure in values]
    unit = SMALLER.get(unit, unit) if small else unit
    digits = max(_digits(figure) for figure in shown if figure)
    spreads = dict.fromkeys(figure.spread for figure in known if figure.low is not None)
    cells = [_cell(figure, digits) if means else Cell(NO_FIGURE) for figure, means in zip(shown, said, strict=True)]
    return Row(label, brief, unit, " or ".join(spreads), cells)


def _cell(figure: Figure | None, digits: int) -> Cell:
    if figure is None:
        return Cell(NOT_KNOWN)
    ends = "" if figure.low is None or figure.high is None else _ends(figure, digits)
    gibibytes = f"{_fixed(figure.value * 1e9 / 2**30, 2)} GiB" if figure.unit == "GB" else ""
    return Cell(_fixed(figure.value, digits), tuple(filter(None, (ends, gibibytes))))


def against(contrast: Contrast) -> list[Against]:
    """What is known of an arm against the baseline, the speed first."""
    ratio, equal = contrast.step_time, contrast.equal_loss
    effective = "Effective speed-up, projected" if equal and equal.projected else "Effective speed-up"
    found = [
        ratio and Against(ratio.what.capitalize(), ratio.figure, False),
        *of_metrics(contrast),
        contrast.training_loss_gap and Against("Training loss gap", contrast.training_loss_gap, True),
        contrast.validation_loss_gap and Against("Validation loss gap", contrast.validation_loss_gap, True),
        equal and equal.tokens and Against("Tokens to equal loss", equal.tokens, False),
        equal
        and equal.validation_tokens
        and Against("Tokens to equal validation loss", equal.validation_tokens, False),
        equal and equal.effective_speed_up and Against(effective, equal.effective_speed_up, False),
    ]
    return [each for each in found if each]


def of_metrics(contrast: Contrast) -> list[Against]:
    """Its figures of `METRICS`."""
    return [
        Against(metric.label, figure, metric.against == "difference", metric.name)
        for metric in figures.METRICS
        if (figure := contrast.figures.get(metric.name))
    ]


def sentences(contrast: Contrast) -> list[str]:
    """What is said of an arm against the baseline, beside its figures."""
    equal = contrast.equal_loss.said if contrast.equal_loss else ()
    return [each for each in (contrast.published_gap, *equal) if each]


def name(arm: Arm) -> str:
    """ "B nvfp4, emulated"."""
    return f"{arm.name} {arm.label}"


def number(value: float) -> str:
    """At least four significant digits, never in powers of ten."""
    return _fixed(value, _significant(value))


def value(figure: Figure, *, signed: bool = False) -> str:
    """The value with its unit."""
    shown = _readable(figure)
    unit = {"": "", "x": "×"}.get(shown.unit, f"\N{NO-BREAK SPACE}{shown.unit}")
    return f"{_fixed(shown.value, _digits(shown), signed=signed)}{unit}"


def bare(figure: Figure) -> str:
    """The value alone."""
    return _fixed(figure.value, _digits(figure))


def interval(figure: Figure, *, signed: bool = False) -> str:
    """Both ends of the spread with the value's digits, "" where it has none."""
    shown = _readable(figure)
    return "" if shown.low is None or shown.high is None else _ends(shown, _digits(shown), signed=signed)


def sentence(text: str) -> str:
    """With a capital in front and a full stop behind."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def _ends(figure: Figure, digits: int, *, signed: bool = False) -> str:
    return " to ".join(_fixed(end, digits, signed=signed) for end in (figure.low, figure.high))


def _readable(figure: Figure) -> Figure:
    return _in_thousandths(figure) if abs(figure.value) < 1 else figure


def _in_thousandths(figure: Figure) -> Figure:
    """Seconds as milliseconds and so on, where that has a unit."""
    if figure.unit not in SMALLER:
        return figure
    low, high = (None if end is None else end * 1000 for end in (figure.low, figure.high))
    return replace(figure, value=figure.value * 1000, unit=SMALLER[figure.unit], low=low, high=high)


def _digits(figure: Figure) -> int:
    """Behind the point: a loss has four, a ratio two or as many as tell the ends of its interval apart; so have per
    cent and GB; anything else four significant ones."""
    if figure.unit in ("x", "%", "GB"):
        width = 0.0 if figure.low is None or figure.high is None else figure.high - figure.low
        least = 3 if figure.unit == "x" and width < 0.05 else 2  # as `stats.between` says it in a sentence
        return min(4, max(least, math.ceil(-math.log10(width)))) if width > 0 else 2
    if figure.unit.startswith("nats"):
        return LOSS_DIGITS
    return _significant(figure.value)


def _significant(value: float) -> int:
    """How many digits behind the point make four significant ones."""
    return max(0, 3 - math.floor(math.log10(abs(value)))) if value and math.isfinite(value) else 0


def _fixed(value: float, digits: int, *, signed: bool = False) -> str:
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    return text.replace("-", "−")


def warnings(comparison: Comparison) -> list[str]:
    """What each run's figures need to be read with, then what the comparison's do."""
    harmless = [f"{found}; it does not void the comparison" for found in comparison.differences if not found.void]
    return [*run_warnings(comparison.arms), *comparison.warnings, *harmless]


def run_warnings(arms: Iterable[Arm]) -> list[str]:
    """Each run's warnings with the runs they are of, equal ones together: "A and B2: resumed at iteration 10"."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        for index, run in enumerate(arm.runs):
            for warning in run.warnings:
                found.setdefault(warning, []).append(arm.run_label(index))
    return [f"{joined(names)}: {warning}" for warning, names in found.items()]


def joined(texts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def mfu_peaks(comparison: Comparison) -> list[str]:
    """What the MFU of which arms is a share of, a sentence for each peak."""
    arms = [arm for arm in comparison.arms if arm.mfu and arm.mfu_peak and arm.computes_natively]
    peaks = dict.fromkeys(arm.mfu_peak for arm in arms)
    of = {peak: joined([arm.name for arm in arms if arm.mfu_peak == peak]) for peak in peaks}
    return [f"MFU of {names}: of {peak}." for peak, names in of.items()]
