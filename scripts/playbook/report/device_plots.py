"""Plots of what the sampler saw of the device: memory and power over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from playbook.compare.model import Comparison
from playbook.report import series
from playbook.report.canvas import Look, Plot, Runs, numbers, raw, single
from playbook.report.series import Array
from pretraining.record.run_folder import Run


def memory(_comparison: Comparison, runs: Runs, looks: Sequence[Look]) -> Plot | None:
    """Memory over time, of the device or of the training's processes."""
    drawn = [run for look in looks for run in runs[look.arm.name] if len(series.memory(run)[0])]
    of = {series.is_of_device(run) for run in drawn}
    what = "the device used" if of == {True} else "the training's processes used" if of == {False} else "used"

    def gigabytes(run: Run) -> tuple[Array, Array]:
        seconds, used = series.memory(run)
        return seconds, used / 1e9

    caption = "Largest of each second; every run from when its sampling began."
    return _over_time("memory", f"Memory {what}, GB", gigabytes, runs, looks, caption)


def power(_comparison: Comparison, runs: Runs, looks: Sequence[Look]) -> Plot | None:
    """Power over time, of all devices of a run together."""
    return _over_time(
        "power", "Power, W", series.power, runs, looks, "Mean of each second, all GPUs of the run together."
    )


def _over_time(
    name: str,
    title: str,
    measure: Callable[[Run], tuple[Array, Array]],
    runs: Runs,
    looks: Sequence[Look],
    caption: str,
) -> Plot | None:
    drawn = [(look, *measure(run)) for look in looks for run in runs[look.arm.name]]
    drawn = [(look, x, y) for look, x, y in drawn if np.isfinite(y).any()]
    if not drawn:
        return None
    shown = list({look.arm.name: look for look, _, _ in drawn}.values())
    canvas, axes = single(title, height=230, legend=shown)
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
        return raw(axes, x, y, look, faint=False)
    axes.plot(x, y, color=look.colour, linestyle=look.dashes, linewidth=1.4)
    return False


def _clock(seconds: float) -> tuple[float, str]:
    """What to multiply seconds by for a time of that length, and the unit."""
    for size, unit in ((7200, "hours"), (180, "minutes")):
        if seconds >= size:
            return (1 / 3600 if unit == "hours" else 1 / 60), unit
    return 1, "seconds"
