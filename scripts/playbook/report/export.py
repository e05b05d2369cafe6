"""The comparison for other programs and for issue trackers: long-form CSV, and Markdown."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields

from playbook.compare.model import Comparison, Contrast, Figured, RunResult
from playbook.compare.stats import Figure
from playbook.report import wording
from playbook.report.page import title

HEADER = ("arm", "label", "run", "figure", "value", "unit", "low", "high", "spread", "count")


def as_csv(comparison: Comparison) -> str:
    """One figure a row: of an arm, of one of its runs (counted from 1), or of an arm against the baseline.

    Values are not rounded, memory is in GB (1e9 bytes), and what is not known has no row.
    """
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(HEADER)
    for arm in comparison.arms:
        rows.writerows(_rows(arm.name, arm.label, "", _figures(arm)))
        for number, run in enumerate(arm.runs, 1):
            rows.writerows(_rows(arm.name, arm.label, number, _of_run(run)))
    for contrast in comparison.contrasts:
        who = f"{contrast.candidate} against {comparison.baseline}"
        found = [(each.label.lower(), each.figure) for each in wording.against(contrast)]
        rows.writerows(_rows(who, comparison.arm(contrast.candidate).label, "", found))
    return file.getvalue()


def _figures(result: Figured) -> Iterator[tuple[str, Figure]]:
    return ((name, figure) for name, figure in result.figures.items() if figure)


def _of_run(run: RunResult) -> Iterator[tuple[str, Figure]]:
    yield from _figures(run)
    for name, figure in run.memory.items():
        yield f"peak memory, {name}", figure
    if times := run.step_times:
        for each in fields(times):
            if each.name not in ("outliers", "count"):
                yield f"step_time {each.name}", Figure(getattr(times, each.name), "s", count=times.count)
        yield "step_time outliers", Figure(times.outliers, "", count=times.count)


def _rows(arm: str, label: str, run: int | str, figures: Iterable[tuple[str, Figure]]) -> Iterator[Iterable]:
    for name, figure in figures:
        row = (arm, label, run, name, figure.value, figure.unit, figure.low, figure.high, figure.spread, figure.count)
        yield map(_cell, row)


def _cell(value: object) -> object:
    """A value of which no spreadsheet takes a text for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r\n") else value


def as_markdown(comparison: Comparison, plots: Sequence[tuple[str, str]]) -> str:
    """The comparison as GitHub shows it; `plots` are title and path of each picture, the path relative to the file."""
    parts = [f"<!-- {comparison.kind} -->\n# {escaped(title(comparison))}", f"**{escaped(comparison.verdict)}**"]
    if comparison.forced:
        parts.append(f"## {escaped(comparison.doubt.rstrip('.'))}")
        parts.append("\n".join(f"- {escaped(found)}" for found in comparison.differences if found.void))
    for contrast in comparison.contrasts:
        parts += [f"## {against(comparison, contrast)}", *contrasted(contrast)]
    parts += ["## What this can and cannot show", *map(escaped, (comparison.scope, *comparison.bands))]
    if warnings := wording.warnings(comparison):
        parts += ["## Warnings", "\n".join(f"- {escaped(warning)}" for warning in warnings)]
    parts += ["## Figures", figures(comparison)]
    parts += [f"![{escaped(name)}]({path})" for name, path in plots]
    if comparison.reproduce:
        parts += ["## Reproduce", f"    {on_one_line(comparison.reproduce)}"]
    return "\n\n".join(parts) + "\n"


def against(comparison: Comparison, contrast: Contrast) -> str:
    """ "B nvfp4 against A bf16"."""
    arms = (comparison.arm(name) for name in (contrast.candidate, comparison.baseline))
    return " against ".join(escaped(wording.name(arm)) for arm in arms)


def contrasted(contrast: Contrast) -> list[str]:
    """An arm against the baseline: the table, then what is said beside its figures."""
    return [
        as_table([["", "", "interval", ""], *map(_against, wording.against(contrast))]),
        *(escaped(wording.sentence(each)) for each in wording.sentences(contrast)),
    ]


def figures(comparison: Comparison, more: Sequence[wording.Row] = ()) -> str:
    """The table of figures, a column an arm; `more` rows below."""
    names = [wording.name(arm) for arm in comparison.arms]
    return as_table([["", *names], *map(_row, [*wording.rows(comparison), *more])])


def _against(each: wording.Against) -> list[str]:
    value, ends = (say(each.figure, signed=each.signed) for say in (wording.value, wording.interval))
    return [each.label, value, ends, each.figure.spread]


def _row(row: wording.Row) -> list[str]:
    cells = [f"{cell.value} ({'; '.join(cell.small)})" if cell.small else cell.value for cell in row.cells]
    return [f"{row.label} ({row.note})" if row.note else row.label, *cells]


def as_table(rows: Sequence[Sequence[object]], *, left: bool = False) -> str:
    """A Markdown table of plain texts, the header first; all columns but the first stand right, or all `left`."""
    header, *others = [list(map(escaped, row)) for row in rows]
    below = ["---"] + ["---" if left else "---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, below, *others))


def escaped(value: object) -> str:
    """As it is, nothing of it Markdown or HTML, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", on_one_line(value))


def wrapped(text: str) -> str:
    """A paragraph in lines of 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def on_one_line(value: object) -> str:
    """As it is, but for line ends and what a terminal would take for orders."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "", " ".join(str(value).split()))
