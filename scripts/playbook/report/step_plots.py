"""Plots of the step times: how they are spread, and in which order they came."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from playbook.compare.figures import measure
from playbook.compare.model import Comparison
from playbook.report import series, wording
from playbook.report.canvas import (
    Look,
    Plot,
    Runs,
    line,
    numbers,
    panel_title,
    panels,
    raw,
    same_axis_where_near,
    time_unit,
)
from playbook.report.series import Array
from playbook.report.svg import BAND, INK

NARROWEST, WIDEST = 0.03, 0.5  # of the median, on either side: what a trace shows at least and at most
MEDIANS = 100  # of a trace that is too long to draw
MOST_MARKS = 60
TITLE_ROOM = 0.06  # of a panel: a tick above it would touch the name


def distribution(_comparison: Comparison, runs: Runs, looks: Sequence[Look]) -> Plot | None:
    """How the timed step times of each arm are spread, over all its runs."""
    timed = _timed(runs, looks)
    if not timed:
        return None
    title = "Distribution of the timed steps"
    canvas, axes = panels(title, [look for look, _ in timed], height=84, below=30)
    said, beyond = [], 0
    for panel, (look, steps) in zip(axes, timed, strict=True):
        middle = float(np.median(steps))
        scale, unit = time_unit(middle)
        found = series.histogram(steps)
        panel.stairs(found.counts, found.edges * scale, fill=True, color=look.colour, alpha=0.3)
        panel.stairs(found.counts, found.edges * scale, color=look.colour, linewidth=1.2)
        panel.axvline(middle * scale, color=INK, linewidth=1.2)
        panel.set_ylim(0, found.counts.max() * 1.1)
        numbers(panel.xaxis, 5)
        numbers(panel.yaxis, 3)
        text = f"median {wording.number(middle * scale)} {unit} of {len(steps):,} steps"
        panel_title(panel, look, text)
        said.append(f"{look.label}: {text}")
        beyond += found.below + found.above
    own = "" if same_axis_where_near(axes) else " Each panel has its own axis."
    caption = f"How many of all timed steps took how long; line: median.{own}"
    if beyond:
        caption += f" {beyond:,} outlying steps lie beyond the axes."
    return Plot("step-times", canvas, title, "; ".join(said), caption)


def trace(_comparison: Comparison, runs: Runs, looks: Sequence[Look]) -> Plot | None:
    """Step time against iteration: a panel for each arm, all as tall in parts of their median."""
    timed = _timed(runs, looks)
    if not timed:
        return None
    title = "Step time over the run"
    canvas, axes = panels(title, [look for look, _ in timed], height=84, below=30)
    lowest, highest = _range([steps / np.median(steps) for _, steps in timed])
    said, above, is_thinned = [], 0, False
    for panel, (look, steps) in zip(axes, timed, strict=True):
        middle = float(np.median(steps))
        scale, unit = time_unit(middle)
        bottom, top = lowest * middle * scale, highest * middle * scale
        for run, result in zip(runs[look.arm.name], look.arm.runs, strict=True):
            panel.axvspan(result.timed.first, result.timed.last, color=BAND, linewidth=0, zorder=0)
            x, y = series.column(run.train, "iteration"), series.column(run.train, "step_time_s") * scale
            if raw(panel, x, np.clip(y, bottom, top), look, faint=False):
                is_thinned = True
                line(panel, *series.medians(x, y, MEDIANS), look)
            longer = x[y > top]
            above += len(longer)
            marks = longer[series.thinned(len(longer), MOST_MARKS)]
            panel.plot(marks, np.full(len(marks), top), linestyle="none", marker="^", markersize=4,
                       color=look.colour, clip_on=False)  # fmt: skip
        panel.set_ylim(bottom, top)
        panel.margins(x=0.01)
        numbers(panel.xaxis, 5)
        numbers(panel.yaxis, 4)
        panel.set_yticks([tick for tick in panel.get_yticks() if bottom <= tick <= top - TITLE_ROOM * (top - bottom)])
        panel_title(panel, look, unit)
        said.append(f"{look.label}: around {wording.number(middle * scale)} {unit}")
    parts = ["Against the iteration. Shaded: what is timed. All panels span the same part of their median."]
    if is_thinned:
        parts.append(
            "Area: the shortest and the longest step under each pixel; line: medians of hundredths of the run."
        )
    if above:
        parts.append(f"Triangles: {above:,} steps longer than the panel shows.")
    return Plot("step-trace", canvas, title, "; ".join(said), " ".join(parts))


def _timed(runs: Runs, looks: Sequence[Look]) -> list[tuple[Look, Array]]:
    """The timed steps of all runs of each arm that has any, seconds."""
    found = [(look, np.concatenate([measure(run).times for run in runs[look.arm.name]])) for look in looks]
    return [(look, steps) for look, steps in found if len(steps)]


def _range(relative: Sequence[Array]) -> tuple[float, float]:
    """What the panels show, as parts of the median: all that is timed where that is near enough."""
    lowest, highest = min(float(each.min()) for each in relative), max(float(each.max()) for each in relative)
    room = 0.08 * (min(highest, 1 + WIDEST) - max(lowest, 1 - WIDEST))
    lowest, highest = min(lowest - room, 1 - NARROWEST), max(highest + room, 1 + NARROWEST)
    return max(lowest, 1 - WIDEST), min(highest, 1 + WIDEST)
