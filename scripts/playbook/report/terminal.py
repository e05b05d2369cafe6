"""Renders a comparison to a terminal of 80 columns, or to a pipe, in about 35 lines."""

from __future__ import annotations

import textwrap
from typing import TextIO

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from playbook.common.tables import empty_table
from playbook.compare.comparison import NotComparable
from playbook.compare.model import Arm, Comparison, Contrast
from playbook.compare.parity import NO_ITERATIONS
from playbook.compare.stats import Figure
from playbook.report import wording

WIDTH = 80  # numbers never wrap at this width; a narrower terminal wraps the lines itself
CELL = 24  # characters; the table fits where no cell is longer
FORCE = "Or add --force to compare them all the same; the result will say so."
FORCE_BY_MAKE = "Or FORCE=1 compares them all the same; the result will say so."
NO_FIGURE = "-"  # in ASCII
SPREADS = {"interquartile range": "IQR", "standard deviation": "± sd", "range": "range"}
COLUMNS = ("step_time", "tokens_per_second", "model_tflops_per_gpu", "peak_memory", "training_loss")  # of many arms


def print_comparison(comparison: Comparison, file: TextIO | None = None) -> None:
    """Print the table, the conclusions and the warnings to `file`, standard output unless given."""
    console = Console(file=file, highlight=False)
    console.width = max(WIDTH, min(console.width, 120))
    out = _Lines(console)
    void = [found for found in comparison.differences if found.void]
    if comparison.forced:
        out.line(f"{comparison.doubt.replace('Forced', 'FORCED')} They differ in:", style="bold red")
        for found in void:
            out.line(str(found), indent=2, style="red")
    elif comparison.doubt:
        out.line(comparison.doubt, style="bold red")
    for arm in comparison.arms:
        for index, run in enumerate(arm.runs):
            console.print(Text(f"{arm.run_label(index):<2} {run.path}"), soft_wrap=True)
    console.print()
    if len(comparison.arms) == 2:
        _print_fitting(console, [_two_arms(comparison, stacked=stacked) for stacked in (False, True)])
    else:
        _print_fitting(console, [_many_arms(comparison)])
    console.print()
    out.line(comparison.verdict, style="bold")
    for contrast in comparison.contrasts:
        _print_contrast(out, comparison, contrast)
    out.item("Scope", comparison.scope)
    if len(comparison.arms) > 2 and any(arm.precision not in wording.WHOLE for arm in comparison.arms):
        out.item("BF16 layers", "; ".join(f"{arm.name} {wording.bf16_layers(arm)}" for arm in comparison.arms))
    if kinds := dict.fromkeys((arm.peak_memory_kind, arm.name) for arm in comparison.arms if arm.peak_memory):
        of = {kind: [name for other, name in kinds if other == kind] for kind, _ in kinds}
        several = len(of) > 1
        said = ", ".join(f"{kind}{' in ' + ' and '.join(names) if several else ''}" for kind, names in of.items())
        out.item("Peak memory", said)
    for index, peak in enumerate(dict.fromkeys(arm.mfu_peak for arm in comparison.arms if arm.mfu_peak)):
        of = " and ".join(arm.name for arm in comparison.arms if arm.mfu_peak == peak)
        out.item("" if index else "MFU", f"{of} of {peak}")
    for index, band in enumerate(comparison.bands):
        out.item("" if index else "Published", band)
    for found in comparison.differences:
        if not found.void:
            out.item("Differs", f"{found}; it does not void the comparison", style="yellow")
    for warning in [*wording.run_warnings(comparison.arms), *comparison.warnings]:
        out.item("Note", warning, style="yellow")


def print_refusal(refusal: NotComparable, file: TextIO, *ways_out: str) -> None:
    """Print why runs are not compared: each difference, then the ways out, `FORCE` and its kin where they help."""
    console = Console(file=file, highlight=False)
    console.width = max(WIDTH, console.width)
    out = _Lines(console)
    out.line("Not compared: the runs did not do the same work, or did not finish it.", style="bold red")
    name_width = max(len(found.name) for found in refusal.differences)
    for found in refusal.differences:
        line = f"  {found.name:<{name_width}}  {found.of[0]}: {found.a}  {found.of[1]}: {found.b}"
        console.print(Text(line), soft_wrap=True)
    for way_out in dict.fromkeys(found.way_out for found in refusal.differences):
        names = ", ".join(dict.fromkeys(found.name for found in refusal.differences if found.way_out == way_out))
        out.line(f"To mend {names}: {way_out}.")
    empty = any(found.name == NO_ITERATIONS for found in refusal.differences)
    for way_out in ways_out:
        if not (empty and way_out in (FORCE, FORCE_BY_MAKE)):
            out.line(way_out)


class _Lines:
    """Prints text wrapped at words with a hanging indent, which Rich does not do."""

    LABEL = 18

    def __init__(self, console: Console) -> None:
        self.console = console

    def line(self, text: str, *, indent: int = 0, style: str = "") -> None:
        self._print(text, " " * indent, " " * (indent + 2 if indent else 0), style)

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


def _print_contrast(out: _Lines, comparison: Comparison, contrast: Contrast) -> None:
    several = len(comparison.contrasts) > 1
    against = f"{contrast.candidate} against {comparison.baseline}"
    if several:
        out.line(f"{against}:")
    if ratio := contrast.step_time:
        out.item(ratio.what.capitalize(), ratio.sentence, style="bold")
    if gap := contrast.training_loss_gap:
        of = "" if several else f" {against};"
        tokens = "not the same work" if comparison.forced else "the same tokens"
        tokens = "tokens not checked" if comparison.not_known else tokens
        said = f"{_gap(gap)};{of} last {contrast.gap_iterations} iterations, {tokens}"
        out.item("Loss gap", said, style="bold")
    if contrast.validation_loss_gap:
        out.item("Validation gap", _gap(contrast.validation_loss_gap), style="bold")
    out.item("", contrast.published_gap)
    for index, said in enumerate(contrast.equal_loss.said if contrast.equal_loss else ()):
        out.item("" if index else "Equal loss", said)
    for each in wording.of_metrics(contrast):
        out.item(each.label, f"{_against(each, comparison)}, {against}", style="bold")


def _against(each: wording.Against, comparison: Comparison) -> str:
    """ "+1.24 GB (+2.1 %)", "0.91 times"."""
    value = each.figure.value
    if not each.signed:
        return f"{value:.2f} times"
    base = comparison.arm(comparison.baseline).figures[each.name]
    share = f" ({100 * value / base.value:+.1f} %)" if base and base.value else ""
    return f"{value:+.2f} {each.figure.unit}{share}"


def _gap(gap: Figure) -> str:
    """With its interval, or why it has none."""
    ends = "" if gap.low is None or gap.high is None else f"{gap.low:+.2f} to {gap.high:+.2f}, "
    return f"{gap.value:+.2f} % ({ends}{gap.spread.partition(',')[0]})"


def _print_fitting(console: Console, tables: list[Table]) -> None:
    """Print the first of the tables that fits, or the last."""
    page = console.width
    for table in tables:
        width = Measurement.get(console, console.options.update(width=1000), table).maximum
        if width <= page:
            break
    console.width = max(page, width)  # Rich cuts what is too wide; a terminal wraps it
    console.print(table)
    console.width = page


def _two_arms(comparison: Comparison, *, stacked: bool = False) -> Table:
    """A column an arm; `stacked` breaks the cells that are too long, a figure's spread below it."""
    table = empty_table()
    table.add_column("", no_wrap=True)
    arms = comparison.arms
    for arm in arms:
        table.add_column(_head(arm), no_wrap=True)

    def row(label: str, cells: list[str]) -> None:
        if stacked and max(map(len, cells)) > CELL:
            cells = [cell.replace(" (", "\n(").replace("without ", "without\n") for cell in cells]
        if any(cell not in ("", NO_FIGURE) for cell in cells):
            table.add_row(label, *(Text(cell or "not known") for cell in cells))

    for each in wording.settings(arms):
        cells = [_cell(cell) for cell in each.cells]
        broken = [cell.replace(", ", ",\n").replace(" and ", "\nand ") for cell in cells]
        row(each.brief, broken if each.brief == "NVFP4 recipe" else cells)
    row("iterations timed", [_timed(arm) for arm in arms])
    for each in wording.rows(comparison):
        if each.unit:
            row(_label(each), [_cell(cell) for cell in each.cells])
    if comparison.bigram_entropy:
        row("bigram entropy of text", [f"{comparison.bigram_entropy.value:.4f} nats a byte", "the same text"])
    return table


def _label(row: wording.Row) -> str:
    """What a row has, its unit, and what its spread is, in brief."""
    unit = row.unit.removesuffix(" a token").removesuffix("/token")
    spread = next((f" ({brief})" for word, brief in SPREADS.items() if word in row.spread), "")
    return f"{row.brief}{'' if unit in row.brief else f', {unit}'}{spread}"


def _cell(cell: wording.Cell) -> str:
    """A value and its spread."""
    if cell.value in (wording.NOT_KNOWN, wording.NO_FIGURE):
        return {wording.NO_FIGURE: NO_FIGURE}.get(cell.value, cell.value)
    return f"{cell.value} ({cell.small[0].replace(' to ', '-')})" if cell.small else cell.value


def _many_arms(comparison: Comparison) -> Table:
    """A row an arm, the baseline first."""
    table = empty_table()
    for name in ("", "step", f"of {comparison.baseline}", "tokens/s", "TFLOP/s", "memory", "loss", "gap"):
        table.add_column(name, no_wrap=True, justify="left" if not name else "right")
    contrasts = {contrast.candidate: contrast for contrast in comparison.contrasts}
    base = comparison.arm(comparison.baseline)
    for arm in (base, *(arm for arm in comparison.arms if arm is not base)):
        contrast = contrasts.get(arm.name)
        gap = contrast and contrast.training_loss_gap
        speed = arm.step_time and base.step_time and arm.step_time.value / base.step_time.value
        step, tokens, tflops, memory, loss = map(arm.figures.get, COLUMNS)
        cells = [
            _head(arm),
            step and wording.value(step),
            f"{speed:.3f}x" if contrast and contrast.step_time and speed else "baseline" if arm is base else "",
            tokens and wording.bare(tokens),
            tflops and arm.computes_natively and wording.bare(tflops),
            memory and wording.value(memory),
            loss and wording.bare(loss),
            gap and wording.value(gap, signed=True),
        ]
        table.add_row(*(Text((cell or NO_FIGURE).replace("\N{NO-BREAK SPACE}", " ")) for cell in cells))
    return table


def _head(arm: Arm) -> str:
    """ "B: nvfp4, emulated ×3"; where a setting makes it long, in lines."""
    said = f"{arm.name}: {arm.label}" + (f" ×{len(arm.runs)}" if len(arm.runs) > 1 else "")
    return "\n   ".join(textwrap.wrap(said, CELL, break_on_hyphens=False)) if arm.setting else said


def _timed(arm: Arm) -> str:
    run = arm.runs[0]
    start = run.timed.last - run.iterations  # other than 0 where the run was resumed
    return f"{run.timed.first}-{run.timed.last} of {f'{start + 1}-' if start else ''}{run.timed.last}"
