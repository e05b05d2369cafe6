"""Plots of how a run went: its step times, how they are spread and in which order they came, its memory and power."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from playbook.compare.figures import measure
from playbook.compare.model import Comparison
from playbook.report import canvas as drawing
from playbook.report import series, wording
from playbook.report.canvas import Look, Looks, Plot, Runs, numbers
from playbook.report.series import Array
from playbook.report.svg import BAND, INK
from pretraining.record.run_folder import Run

NARROWEST, WIDEST = 0.03, 0.5  # of the median, on either side: what a trace shows at least and at most
MEDIANS = 100  # of a trace that is too long to draw
MOST_MARKS = 60
TITLE_ROOM = 0.06  # of a panel: a tick above it would touch the name


def distribution(_comparison: Comparison, runs: Runs, looks: Looks) -> Plot | None:
    """How the timed step times of each arm are spread, over all its runs."""
    timed = _timed(runs, looks)
    if not timed:
        return None
    title = "Distribution of the timed steps"
    canvas, axes = drawing.panels(title, [look for look, _ in timed], height=84, below=30)
    said, beyond = [], 0
    for panel, (look, steps) in zip(axes, timed, strict=True):
        middle = look.arm.step_time.value
        scale, unit = drawing.time_unit(middle)
        counts, edges = series.histogram(steps)
        panel.stairs(counts, edges * scale, fill=True, color=look.colour, alpha=0.3)
        panel.stairs(counts, edges * scale, color=look.colour, linewidth=1.2)
        panel.axvline(middle * scale, color=INK, linewidth=1.2)
        panel.set_ylim(0, counts.max() * 1.1)
        numbers(panel.xaxis, 5)
        numbers(panel.yaxis, 3)
        several = len(look.arm.runs)
        of = f" of {several} runs" if several > 1 else ""
        text = f"median{of} {wording.number(middle * scale)} {unit}, {len(steps):,} steps"
        drawing.panel_title(panel, look, text)
        said.append(f"{look.label}: {text}")
        beyond += len(steps) - counts.sum()
    own = "" if drawing.same_axis_where_near(axes) else " Each panel has its own axis."
    caption = f"How many of all timed steps took how long; line: median.{own}"
    if beyond:
        caption += f" {beyond:,} outlying steps lie beyond the axes."
    return Plot("step-times", canvas, title, "; ".join(said), caption)


def trace(_comparison: Comparison, runs: Runs, looks: Looks) -> Plot | None:
    """Step time against iteration: a panel for each arm, all as tall in parts of their median."""
    timed = _timed(runs, looks)
    if not timed:
        return None
    title = "Step time over the run"
    canvas, axes = drawing.panels(title, [look for look, _ in timed], height=84, below=30)
    lowest, highest = _range([steps / np.median(steps) for _, steps in timed])
    said, above, is_thinned = [], 0, False
    for panel, (look, _) in zip(axes, timed, strict=True):
        middle = look.arm.step_time.value
        scale, unit = drawing.time_unit(middle)
        bottom, top = lowest * middle * scale, highest * middle * scale
        for run, result in zip(runs[look.arm.name], look.arm.runs, strict=True):
            panel.axvspan(result.timed.first, result.timed.last, color=BAND, linewidth=0, zorder=0)
            x, y = series.column(run.train, "iteration"), series.column(run.train, "step_time_s") * scale
            if drawing.raw(panel, x, np.clip(y, bottom, top), look, faint=False):
                is_thinned = True
                drawing.line(panel, *series.medians(x, y, MEDIANS), look)
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
        drawing.panel_title(panel, look, unit)
        said.append(f"{look.label}: around {wording.number(middle * scale)} {unit}")
    caption = "Against the iteration. Shaded: what is timed. All panels span the same part of their median."
    if is_thinned:
        caption += " Area: the shortest and the longest step under each pixel; line: medians of hundredths of the run."
    if above:
        caption += f" Triangles: {above:,} steps longer than the panel shows."
    return Plot("step-trace", canvas, title, "; ".join(said), caption)


def _timed(runs: Runs, looks: Looks) -> list[tuple[Look, Array]]:
    """The timed steps of all runs of each arm that has any, seconds."""
    found = [(look, np.concatenate([measure(run).times for run in runs[look.arm.name]])) for look in looks]
    return [(look, steps) for look, steps in found if len(steps) and look.arm.step_time]


def _range(relative: Sequence[Array]) -> tuple[float, float]:
    """What the panels show, as parts of the median: all that is timed where that is near enough."""
    lowest, highest = min(float(each.min()) for each in relative), max(float(each.max()) for each in relative)
    room = 0.08 * (min(highest, 1 + WIDEST) - max(lowest, 1 - WIDEST))
    lowest, highest = min(lowest - room, 1 - NARROWEST), max(highest + room, 1 + NARROWEST)
    return max(lowest, 1 - WIDEST), min(highest, 1 + WIDEST)


def memory(_comparison: Comparison, runs: Runs, looks: Looks) -> Plot | None:
    """Memory over time, of the device or of the training's processes."""
    drawn = [run for look in looks for run in runs[look.arm.name] if len(series.memory(run)[0])]
    of = {series.is_of_device(run) for run in drawn}
    what = "the device used" if of == {True} else "the training's processes used" if of == {False} else "used"
    caption = "Largest of each second; every run from when its sampling began."
    return _over_time("memory", f"Memory {what}, GB", series.memory, runs, looks, caption)


def power(_comparison: Comparison, runs: Runs, looks: Looks) -> Plot | None:
    """Power over time, of all devices of a run together."""
    caption = "Mean of each second, all GPUs of the run together."
    return _over_time("power", "Power, W", series.power, runs, looks, caption)


def _over_time(
    name: str,
    title: str,
    sampled: Callable[[Run], tuple[Array, Array]],
    runs: Runs,
    looks: Looks,
    caption: str,
) -> Plot | None:
    drawn = [(look, *sampled(run)) for look in looks for run in runs[look.arm.name]]
    drawn = [(look, x, y) for look, x, y in drawn if np.isfinite(y).any()]
    if not drawn:
        return None
    shown = list({look.arm.name: look for look, _, _ in drawn}.values())
    canvas, axes = drawing.single(title, height=230, legend=shown)
    scale, unit = _clock(max(float(x[-1]) for _, x, _ in drawn))
    peaks: dict[str, float] = {}
    is_thinned = False
    for look, x, y in reversed(drawn):  # the dashed baseline on top
        is_thinned |= _profile(axes, x * scale, y, look)
        peaks[look.label] = max(peaks.get(look.label, 0.0), float(np.nanmax(y)))
    axes.set_ylim(0, max(peaks.values()) * 1.08 or 1)
    axes.set_xlabel(unit)
    numbers(axes.xaxis, 5)
    numbers(axes.yaxis, 5)
    said = "; ".join(f"{label}: at most {peak:.1f}" for label, peak in sorted(peaks.items()))
    extremes = " Area: smallest and largest under each pixel." if is_thinned else ""
    return Plot(name, canvas, title, said, caption + extremes)


def _profile(axes: Axes, x: Array, y: Array, look: Look) -> bool:
    """The line in the arm's dashes, or the extremes of one that is too long. Returns whether it was the latter."""
    if len(x) > 2 * series.PIXELS:
        return drawing.raw(axes, x, y, look, faint=False)
    axes.plot(x, y, color=look.colour, linestyle=look.dashes, linewidth=1.4)
    return False


def _clock(seconds: float) -> tuple[float, str]:
    """What to multiply seconds by for a time of that length, and the unit."""
    if seconds >= 7200:
        return 1 / 3600, "hours"
    return (1 / 60, "minutes") if seconds >= 180 else (1, "seconds")
