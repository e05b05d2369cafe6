"""Renders a comparison to a terminal of 80 columns, or to a pipe, in about 30 lines."""

from __future__ import annotations

import math
import textwrap
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from playbook.comparison import Comparison, NotComparable, Side
from playbook.parity import NO_ITERATIONS
from playbook.stats import Figure

WIDTH = 80  # numbers never wrap at this width; a narrower terminal wraps the lines itself
CELL = 25  # characters; the table fits where no cell is longer
FORCE = "Or add --force to compare them all the same; the result will say so."
NO_FIGURE = "-"  # one that would mean nothing; "not known" is one that is missing


def print_comparison(comparison: Comparison, file: TextIO | None = None) -> None:
    """Print the table, the conclusions and the warnings to `file`, standard output unless given."""
    console = Console(file=file, highlight=False)
    console.width = max(WIDTH, min(console.width, 120))
    out = _Lines(console)
    if comparison.forced:
        out.line("FORCED: these runs did not do the same work. They differ in:", style="bold red")
        for found in comparison.differences:
            out.line(f"{found.name}: A {found.a}, B {found.b}", indent=2, style="red")
    for name in ("a", "b"):
        side = comparison.side(name)
        console.print(Text(f"{name.upper()}  {side.path}"), soft_wrap=True)
    console.print()
    _print_table(console, comparison)
    console.print()
    ratio, gap = comparison.step_time_ratio, comparison.training_loss_gap
    if ratio:
        out.item(ratio.what.capitalize(), ratio.sentence, style="bold")
        if ratio.figure.low is not None and ratio.figure.high is not None:
            out.item("", f"{ratio.figure.low:.2f} to {ratio.figure.high:.2f} between the quartiles of the two")
    if gap:
        of = f"{comparison.candidate.upper()} against {comparison.baseline.upper()}, the baseline"
        tokens = "not the same work" if comparison.forced else "the same tokens"
        out.item("Loss gap", f"{_gap(gap)}, {of}; last {gap.count} iterations, {tokens}", style="bold")
    if comparison.validation_loss_gap:
        out.item("Validation gap", _gap(comparison.validation_loss_gap), style="bold")
    out.item("", comparison.published_gap)
    out.item("", comparison.beyond_published)
    out.item("", comparison.scope)
    if kinds := dict.fromkeys(side.peak_memory_kind for side in (comparison.a, comparison.b) if side.peak_memory):
        out.item("Peak memory", " in A, ".join(kinds) + (" in B" if len(kinds) > 1 else ""))
    for warning in comparison.warnings:
        out.item("Note", warning, style="yellow")


def print_refusal(refusal: NotComparable, file: TextIO, *, last_way_out: str = FORCE) -> None:
    """Print why two runs are not compared: each difference on its own line, then the ways out.

    Args:
        last_way_out: the sentence to end with. `FORCE` is left out where it would not help.
    """
    console = Console(file=file, highlight=False)
    console.width = max(WIDTH, console.width)
    out = _Lines(console)
    out.line("Not compared: the two runs did not do the same work, or did not finish it.", style="bold red")
    name_width = max(len(found.name) for found in refusal.differences)
    for found in refusal.differences:
        line = f"  {found.name:<{name_width}}  A: {found.a}  B: {found.b}"
        console.print(Text(line), soft_wrap=True)
    for way_out in dict.fromkeys(found.way_out for found in refusal.differences):
        names = ", ".join(found.name for found in refusal.differences if found.way_out == way_out)
        out.line(f"To mend {names}: {way_out}.")
    if last_way_out != FORCE or not any(found.name == NO_ITERATIONS for found in refusal.differences):
        out.line(last_way_out)


class _Lines:
    """Prints text wrapped at words with a hanging indent, which Rich does not do."""

    LABEL = 18

    def __init__(self, console: Console) -> None:
        self.console = console

    def line(self, text: str, *, indent: int = 0, style: str = "") -> None:
        self._print(text, " " * indent, " " * (indent + 2), style)

    def item(self, label: str, text: str, *, style: str = "") -> None:
        self._print(text, f"{label:<{self.LABEL}}", " " * self.LABEL, style)

    def _print(self, text: str, first: str, rest: str, style: str) -> None:
        lines = textwrap.wrap(
            text, self.console.width, initial_indent=first, subsequent_indent=rest, break_long_words=False
        )
        for index, line in enumerate(lines):
            printed = Text(line)
            if not first.strip():
                printed.stylize(style)
            elif index == 0:
                printed.stylize(style, 0, len(first))
            self.console.print(printed, soft_wrap=True)


def _print_table(console: Console, comparison: Comparison) -> None:
    page = console.width
    for stacked in (False, True):
        table = _table(comparison, stacked=stacked)
        width = Measurement.get(console, console.options.update(width=1000), table).maximum
        if width <= page:
            break
    console.width = max(page, width)  # Rich cuts what is too wide; a terminal wraps it
    console.print(table)
    console.width = page


def _table(comparison: Comparison, *, stacked: bool = False) -> Table:
    """The table; `stacked` breaks the cells that are too long, a figure's spread below it."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("a", "b"):
        table.add_column(f"{name.upper()}: {comparison.side(name).label}", no_wrap=True)
    a, b = comparison.a, comparison.b

    def row(label: str, cells: list[str]) -> None:
        if stacked and max(map(len, cells)) > CELL:
            cells = [cell.replace(" (", "\n(").replace("without ", "without\n") for cell in cells]
        if any(cell not in ("", NO_FIGURE) for cell in cells):
            table.add_row(label, *(Text(cell or "not known") for cell in cells))

    row("BF16 layers", [_bf16_layers(side) for side in (a, b)])
    row("NVFP4 recipe", [_recipe(side) for side in (a, b)])
    row("iterations timed", [_timed(side) for side in (a, b)])
    row("step time (IQR)", [_step_time(side.step_time) for side in (a, b)])
    row("tokens/s (IQR)", [_figure(side.tokens_per_second) for side in (a, b)])
    if any(side.facts.get("world_size", 1) > 1 and side.device != "cpu" for side in (a, b)):
        row("tokens/s/GPU (IQR)", [_figure(side.tokens_per_second_per_gpu) for side in (a, b)])
    tflops = [_figure(side.model_tflops_per_gpu) if side.computes_natively else NO_FIGURE for side in (a, b)]
    row("MODEL_TFLOP/s/GPU (IQR)", tflops)
    row("training loss ± sd", [_loss(side.training_loss) for side in (a, b)])
    row("validation loss", [_evaluated(side.validation_loss, side.validated_at) for side in (a, b)])
    row("test loss", [_loss(side.test_loss) for side in (a, b)])
    if comparison.bigram_entropy:
        row("bigram entropy of text", [f"{comparison.bigram_entropy.value:.4f} nats a byte", "the same text"])
    row("peak memory", [_memory(side.peak_memory) for side in (a, b)])
    return table


def _number(value: float) -> str:
    """At least four significant digits, never in powers of ten."""
    if not value:
        return "0"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def _figure(figure: Figure | None, scale: float = 1, unit: str = "") -> str:
    """Value, unit and spread in one cell; the spread's digits are the value's."""
    if figure is None:
        return ""
    value = figure.value * scale
    unit = f" {unit}" if unit else ""
    if figure.low is None or figure.high is None:
        return f"{_number(value)}{unit}"
    digits = len(_number(value).partition(".")[2])
    return f"{_number(value)}{unit} ({figure.low * scale:,.{digits}f}-{figure.high * scale:,.{digits}f})"


def _step_time(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return _figure(figure, 1, "s") if figure.value >= 10 else _figure(figure, 1000, "ms")


def _loss(figure: Figure | None) -> str:
    if figure is None:
        return ""
    sd = f" ± {figure.high - figure.value:.4f}" if figure.high is not None else ""
    return f"{figure.value:.4f}{sd} nats"


def _evaluated(figure: Figure | None, iteration: int | None) -> str:
    return f"{figure.value:.4f} nats (at {iteration})" if figure else ""


def _gap(gap: Figure) -> str:
    sd = f" ± {gap.high - gap.value:.2f}" if gap.high is not None else ""
    return f"{gap.value:+.2f}{sd} %"


def _memory(figure: Figure | None) -> str:
    return f"{figure.value:.2f} GB ({figure.value * 1e9 / 2**30:.2f} GiB)" if figure else ""


def _recipe(side: Side) -> str:
    return side.recipe.replace(", ", ",\n") if side.precision == "nvfp4" else NO_FIGURE


def _timed(side: Side) -> str:
    start = side.timed.last - side.iterations  # other than 0 where the run was resumed
    return f"{side.timed.first}-{side.timed.last} of {f'{start + 1}-' if start else ''}{side.timed.last}"


def _bf16_layers(side: Side) -> str:
    if side.bf16_head_layers is None or side.bf16_tail_layers is None:
        return ""
    if side.precision in ("bf16", "fp16", "fp32"):
        return "all" if side.precision == "bf16" else "none"
    return f"first {side.bf16_head_layers}, last {side.bf16_tail_layers}"
