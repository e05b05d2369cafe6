"""What is drawn of a run: columns of its record, thinned to the pixels of a plot without hiding a spike.

A run of any length comes down to a few hundred points: the smallest and the largest value under each pixel, so that no
outlier is lost, and a smoothed line. Histograms count every value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playbook.record.columns import Lines
from pretraining.record.run_folder import Run

Array = NDArray[np.float64]

PIXELS = 360  # the width of a plot's axes: what lies between two of them cannot be seen
SMOOTHED_PART = 50  # a smoothed point is the mean of this part of the run
FEWEST_SMOOTHED = 5  # iterations
MOST_BINS = 60


def column(lines: Sequence[Mapping[str, Any]], name: str) -> Array:
    """One number a line, NaN where it has none; shape [lines]."""
    if isinstance(lines, Lines):
        return lines.column(name)
    return np.array([value if isinstance(value := line.get(name), int | float) else np.nan for line in lines], float)


def envelope(x: Array, y: Array, pixels: int = PIXELS) -> tuple[Array, Array, Array]:
    """The middle, the smallest and the largest `y` of each of `pixels` equal parts of the range of `x` that has one.

    `x` ascends; the arrays have the shape [pixels] or are shorter.
    """
    known = ~np.isnan(y)
    x, y = x[known], y[known]
    if not len(x):
        return x, y, y
    starts = np.unique(np.searchsorted(x, np.linspace(x[0], x[-1], pixels, endpoint=False)))
    ends = np.append(starts[1:], len(x))
    middle = (x[starts] + x[ends - 1]) / 2
    return middle, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def smoothing_window(count: int) -> int:
    """How many values a smoothed one is the mean of: a fiftieth of them, odd; 1 where they are too few to smooth."""
    if count < 2 * FEWEST_SMOOTHED:
        return 1
    return max(FEWEST_SMOOTHED, count // SMOOTHED_PART) | 1


def smooth(values: Array, window: int) -> Array:
    """The centred mean over `window` values, NaN left out; at the ends over what there is on both sides."""
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(len(values))
    reach = np.minimum(np.minimum(at, len(values) - 1 - at), window // 2)
    first, last = at - reach, at + reach + 1
    count = counts[last] - counts[first]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, (sums[last] - sums[first]) / count, np.nan)


def thinned(count: int, points: int = PIXELS) -> NDArray[np.intp]:
    """Evenly spaced indices into `count` values, first and last among them: enough for a smooth line."""
    return np.unique(np.linspace(0, count - 1, min(count, points)).astype(np.intp))


def medians(x: Array, y: Array, parts: int) -> tuple[Array, Array]:
    """The median of `y` in each of `parts` equal runs of values, and the middle of its `x`; NaN in `y` is left out."""
    known = ~np.isnan(y)
    pieces = zip(np.array_split(x[known], parts), np.array_split(y[known], parts), strict=True)
    found = [(np.median(each_x), np.median(each_y)) for each_x, each_y in pieces if len(each_x)]
    middles, values = zip(*found, strict=True) if found else ((), ())
    return np.array(middles, dtype=float), np.array(values, dtype=float)


def histogram(values: Array) -> tuple[NDArray[np.int64], Array]:
    """The counts, [bins], and edges, [bins + 1], of `values`, of which there is at least one.

    Bins are as wide as Freedman and Diaconis say, between the quartiles widened by four times their distance: what
    lies beyond is in no bin, or one stall would squeeze the rest into one.
    """
    low, high = np.quantile(values, [0.25, 0.75])
    spread = high - low
    near = values[(values >= low - 4 * spread) & (values <= high + 4 * spread)]
    first, last = near.min(), near.max()
    if not last > first:
        half = max(abs(first) * 0.005, 1e-9)
        first, last = first - half, last + half
    width = 2 * spread / len(values) ** (1 / 3)
    bins = int(np.clip((last - first) / width if width else 1, 8, MOST_BINS))
    return np.histogram(values, bins=bins, range=(first, last))


def loss_gap(new: Sequence[Run], base: Sequence[Run]) -> tuple[Array, Array]:
    """How far the loss of `new` lies above that of `base`, each the mean of its repeats.

    Returns the iterations that all runs have, and the gap at each in per cent, NaN where a run has no loss.
    """
    iterations = reduce(np.intersect1d, [column(run.train, "iteration") for run in (*new, *base)])
    means = [np.mean([_losses_at(run, iterations) for run in runs], axis=0) for runs in (new, base)]
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = 100 * (means[0] / means[1] - 1)
    gap[~np.isfinite(gap)] = np.nan
    return iterations, gap


def _losses_at(run: Run, iterations: Array) -> Array:
    return column(run.train, "loss")[np.searchsorted(column(run.train, "iteration"), iterations)]


def memory(run: Run) -> tuple[Array, Array]:
    """Memory of the GPU that used most, or of the training's processes on a CPU.

    Returns seconds since sampling began and GB: of the whole device, or of the processes where it does not tell.
    """
    best = np.empty(0), np.empty(0)
    for device in dict.fromkeys(line.get("device") for line in _sampled(run)):
        lines = [line for line in _sampled(run) if line.get("device") == device]
        used = column(lines, "used_bytes")
        used = used if np.isfinite(used).any() else column(lines, "process_bytes")
        if np.isfinite(used).any() and (not len(best[1]) or np.nanmax(used) > np.nanmax(best[1])):
            best = _seconds(run, lines), used
    return best[0], best[1] / 1e9


def is_of_device(run: Run) -> bool:
    """Whether `memory` is what the whole device used."""
    return any(line.get("used_bytes") is not None for line in _sampled(run))


def power(run: Run) -> tuple[Array, Array]:
    """Power of all GPUs together: seconds since sampling began, watts; while all of them tell it."""
    known = [line for line in _sampled(run) if line.get("power_w") is not None]
    names = dict.fromkeys(line.get("device") for line in known)
    devices = [[line for line in known if line.get("device") == name] for name in names]
    if not devices:
        return np.empty(0), np.empty(0)
    curves = [(_seconds(run, lines), column(lines, "power_w")) for lines in devices]
    first, last = max(at[0] for at, _ in curves) - 0.5, min(at[-1] for at, _ in curves) + 0.5
    seconds = curves[0][0]
    seconds = seconds[(seconds >= first) & (seconds <= last)]
    return seconds, np.sum([np.interp(seconds, at, watts) for at, watts in curves], axis=0)


def _sampled(run: Run) -> Sequence[dict[str, Any]]:
    """The samples of the GPUs; of a CPU run, those of its processes."""
    timed = [line for line in run.samples if isinstance(line.get("time"), int | float)]
    return [line for line in timed if line.get("device") != "cpu"] or timed


def _seconds(run: Run, lines: Sequence[dict[str, Any]]) -> Array:
    return column(lines, "time") - np.nanmin(column(run.samples, "time"))
