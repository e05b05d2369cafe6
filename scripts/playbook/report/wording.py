"""Figures in words: the same digits in the page, its plots and the Markdown."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from playbook.compare.model import Arm, Comparison, Contrast
from playbook.compare.stats import Figure
from playbook.report.terminal import joined, run_warnings
from pretraining.record.run_folder import Peak

NOT_KNOWN = "not known"
NO_FIGURE = "–"  # one that would mean nothing
LOSS_DIGITS = 4  # behind the point
SMALLER = {"s": "ms", "J/token": "mJ/token"}


@dataclass(frozen=True)
class Cell:
    """A figure in words, without its unit.

    Attributes:
        small: what stands below it: its interval, the same in another unit.
    """

    value: str
    small: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One kind of figure, of each arm in order.

    Attributes:
        unit: of all its cells, and what their intervals are.
        cells: `NOT_KNOWN` where it is missing, `NO_FIGURE` where it would say nothing of the arm.
    """

    label: str
    unit: str
    cells: list[Cell]


@dataclass(frozen=True)
class Against:
    """One figure of an arm against the baseline.

    Attributes:
        signed: whether it is a difference, which has a sign also where it is positive.
    """

    label: str
    figure: Figure
    signed: bool


def rows(comparison: Comparison) -> list[Row]:
    """The table of figures: one row for each kind that any arm has."""
    arms = comparison.arms
    kinds = dict.fromkeys(arm.peak_memory_kind for arm in arms if arm.peak_memory and arm.peak_memory_kind)
    on_gpus = any((run.facts.get("world_size") or 1) > 1 and run.device != "cpu" for arm in arms for run in arm.runs)
    wanted = [
        ("Step time", "step_time", False),
        ("Tokens a second", "tokens_per_second", False),
        *([("Tokens a second and GPU", "tokens_per_second_per_gpu", True)] if on_gpus else []),
        ("Model FLOP/s a GPU", "model_tflops_per_gpu", True),
        ("MFU", "mfu", True),
        (", ".join(["Peak memory", *kinds]), "peak_memory", False),
        ("Energy a step", "energy_per_step", False),
        ("Energy a token", "joules_per_token", False),
        ("Training loss, last tenth", "training_loss", False),
        ("Validation loss", "validation_loss", False),
        ("Test loss", "test_loss", False),
    ]
    found = []
    for label, name, of_a_gpu in wanted:
        said = [not of_a_gpu or arm.computes_natively for arm in arms]
        figures = [getattr(arm, name) for arm in arms]
        if any(figure and means for figure, means in zip(figures, said, strict=True)):
            found.append(_row(label, figures, said))
    return found


def allocator_rows(comparison: Comparison) -> list[Row]:
    """The peaks of PyTorch's allocator where all runs have them: of each arm that of its first run."""
    first = [arm.runs[0] for arm in comparison.arms]
    of = " of the first run" if any(len(arm.runs) > 1 for arm in comparison.arms) else ""
    kinds = [kind for kind in first[0].memory if kind.startswith((Peak.ALLOCATED, Peak.RESERVED))]
    shown = [kind for kind in kinds if all(kind in run.memory for run in first)]
    return [_row(f"Peak{of}, {kind}", [run.memory[kind] for run in first], [True] * len(first)) for kind in shown]


def _row(label: str, figures: list[Figure | None], said: list[bool]) -> Row:
    """One unit and as many digits for all, so that they can be read down and across."""
    known = [figure for figure in figures if figure]
    unit, small = known[0].unit, all(abs(each.value) < 1 for each in known)
    shown = [figure and _in_thousandths(figure) if small else figure for figure in figures]
    unit = SMALLER.get(unit, unit) if small else unit
    digits = max(_digits(figure) for figure in shown if figure)
    spreads = dict.fromkeys(figure.spread for figure in known if figure.low is not None)
    cells = [_cell(figure, digits) if means else Cell(NO_FIGURE) for figure, means in zip(shown, said, strict=True)]
    return Row(label, "; ".join(filter(None, (unit, " or ".join(spreads)))), cells)


def _cell(figure: Figure | None, digits: int) -> Cell:
    if figure is None:
        return Cell(NOT_KNOWN)
    ends = "" if figure.low is None or figure.high is None else _ends(figure, digits)
    return Cell(_fixed(figure.value, digits), tuple(filter(None, (ends, _gibibytes(figure)))))


def against(contrast: Contrast) -> list[Against]:
    """What is known of an arm against the baseline, the speed first."""
    ratio, equal = contrast.step_time, contrast.equal_loss
    effective = "Effective speed-up, projected" if equal and equal.projected else "Effective speed-up"
    found = [
        ratio and Against(ratio.what.capitalize(), ratio.figure, False),
        contrast.peak_memory and Against("Peak memory", contrast.peak_memory, True),
        contrast.joules_per_token and Against("Energy a token", contrast.joules_per_token, False),
        contrast.training_loss_gap and Against("Training loss gap", contrast.training_loss_gap, True),
        contrast.validation_loss_gap and Against("Validation loss gap", contrast.validation_loss_gap, True),
        equal and equal.tokens and Against("Tokens to equal loss", equal.tokens, False),
        equal
        and equal.validation_tokens
        and Against("Tokens to equal validation loss", equal.validation_tokens, False),
        equal and equal.effective_speed_up and Against(effective, equal.effective_speed_up, False),
    ]
    return [each for each in found if each]


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
    return f"{_fixed(shown.value, _digits(shown), signed=signed)}{_unit(shown.unit)}"


def interval(figure: Figure, *, signed: bool = False) -> str:
    """Both ends of the spread with the value's digits, "" where it has none."""
    shown = _readable(figure)
    return "" if shown.low is None or shown.high is None else _ends(shown, _digits(shown), signed=signed)


def sentence(text: str) -> str:
    """With a capital in front and a full stop behind."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def _ends(figure: Figure, digits: int, *, signed: bool = False) -> str:
    return " to ".join(_fixed(end, digits, signed=signed) for end in (figure.low, figure.high))


def _gibibytes(figure: Figure) -> str:
    return f"{_fixed(figure.value * 1e9 / 2**30, 2)} GiB" if figure.unit == "GB" else ""


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
        return min(4, max(2, math.ceil(-math.log10(width)))) if width > 0 else 2
    if figure.unit.startswith("nats"):
        return LOSS_DIGITS
    return _significant(figure.value)


def _significant(value: float) -> int:
    """How many digits behind the point make four significant ones."""
    return max(0, 3 - math.floor(math.log10(abs(value)))) if value and math.isfinite(value) else 0


def _fixed(value: float, digits: int, *, signed: bool = False) -> str:
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    return text.replace("-", "−")


def _unit(unit: str) -> str:
    return {"": "", "x": "×"}.get(unit, f"\N{NO-BREAK SPACE}{unit}")


def warnings(comparison: Comparison) -> list[str]:
    """What each run's figures need to be read with, then what the comparison's do."""
    harmless = [f"{found}; it does not void the comparison" for found in comparison.differences if not found.void]
    return [*run_warnings(comparison.arms), *comparison.warnings, *harmless]


def mfu_peaks(comparison: Comparison) -> list[str]:
    """What the MFU of which arms is a share of, a sentence for each peak."""
    arms = [arm for arm in comparison.arms if arm.mfu and arm.mfu_peak and arm.computes_natively]
    peaks = dict.fromkeys(arm.mfu_peak for arm in arms)
    of = {peak: joined([arm.name for arm in arms if arm.mfu_peak == peak]) for peak in peaks}
    return [f"MFU of {names}: of {peak}." for peak, names in of.items()]
