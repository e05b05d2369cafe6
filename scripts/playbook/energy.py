"""Energy that the devices used over the timed iterations, from the samples of `device.jsonl`."""

from __future__ import annotations

from typing import Any

import numpy as np

from playbook.lines import Lines
from pretraining.record import Run

GAP = 7.5  # seconds that a window's ends may lie outside the readings of energy, which come every five seconds


def used(run: Run, lines: Lines, first: int) -> tuple[float, float] | None:
    """Energy and duration of the timed iterations, evaluations between them left out.

    Args:
        lines: all training lines of the run.
        first: index of the first timed one.

    Returns:
        Joules, summed over all devices, and seconds; None where energy or time was not recorded, or samples do not
        reach from end to end.
    """
    times = lines.column("time")
    if first < 1 or first >= len(times) or not np.isfinite(times[[first - 1, -1]]).all():
        return None
    periods = [(times[first - 1], times[-1], 1.0), *_evaluations(run, lines, first)]
    joules = 0.0
    devices = _cumulative(run.samples)
    for at, energy in devices:
        if at[0] > times[first - 1] + GAP or at[-1] < times[-1] - GAP:
            return None
        joules += sum(sign * float(np.diff(np.interp((start, end), at, energy))[0]) for start, end, sign in periods)
    seconds = sum(sign * (end - start) for start, end, sign in periods)
    return (joules, float(seconds)) if devices and seconds > 0 else None


def _evaluations(run: Run, lines: Lines, first: int) -> list[tuple[float, float, float]]:
    """Start, end and -1 for each evaluation within the window: from the end of the step before it to its own end."""
    found = []
    for line in run.evaluations:
        index = int(np.searchsorted(lines.iterations, line.get("iteration", 0)))
        if first <= index < len(lines) - 1 and line.get("time"):
            found.append((lines.column("time")[index], line["time"], -1.0))
    return found


def _cumulative(samples: list[dict[str, Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each device the times of its readings and the joules until then; none where one device does not tell."""
    by_device: dict[Any, list[tuple[float, float]]] = {}
    for sample in samples:
        if sample.get("device") == "cpu":
            continue  # the resident memory of the processes, without power
        readings = by_device.setdefault(sample.get("device"), [])
        if sample.get("energy_j") is not None and sample.get("time") is not None:
            readings.append((sample["time"], sample["energy_j"]))
    if not all(by_device.values()):
        return []
    return [(array[:, 0], array[:, 1]) for array in map(np.array, by_device.values())]
