"""What the device told while a run went on: its peaks of memory, and the energy of its iterations."""

from __future__ import annotations

from typing import Any

import numpy as np

from playbook.record.columns import Lines
from pretraining.record.run_folder import Peak, Run

PAUSE = 0.5  # seconds between two steps, from which on an evaluation or a checkpoint lies between them
OF_ONE_PROCESS = {Peak.ALLOCATED, Peak.RESERVED, Peak.RESIDENT}


def peaks(run: Run) -> dict[str, float]:
    """Peaks by what they measure, GB: those of the outcome, and of a run that broke off what was sampled."""
    peak = run.outcome.get("peak_memory") or {}
    processes = peak.get("processes") or 1
    found = {
        kind: max((line[name] for line in run.samples if line.get("device") != "cpu" and line.get(name)), default=0)
        for kind, name in ((Peak.USED, "used_bytes"), (Peak.HELD, "process_bytes"))
    }
    told = peak.get("all") or ({peak.get("kind", ""): peak["bytes"]} if peak.get("bytes") else {})
    found |= {kind: max(size, found.get(kind, 0)) for kind, size in told.items()}  # of the first machine alone
    largest = f", largest of {processes} processes" if processes > 1 else ""
    return {f"{kind}{largest * (kind in OF_ONE_PROCESS)}": size / 1e9 for kind, size in found.items() if size}


def energy(run: Run, lines: Lines, first: int) -> tuple[float, float] | None:
    """Joules of the timed iterations over all devices, and seconds, what lies between the iterations left out.

    None where power or time was not recorded, a process's device is missing, or samples do not reach from end to end.
    The first timed of `lines` is at the index `first`.
    """
    times = lines.column("time")
    if first < 1 or first >= len(times) or not np.isfinite(times[first - 1 :]).all():
        return None
    periods = [(times[first - 1], times[-1], 1.0), *_pauses(times, lines.column("step_time_s"), first)]
    joules = 0.0
    devices = _cumulative(run.samples)
    if len(devices) < run.parity.get("world_size", 1):  # of a machine whose file is not here
        return None
    for at, used in devices:
        if at[0] > times[first - 1] or at[-1] < times[-1]:
            return None
        joules += sum(sign * float(np.diff(np.interp((start, end), at, used))[0]) for start, end, sign in periods)
    seconds = sum(sign * (end - start) for start, end, sign in periods)
    return (joules, float(seconds)) if devices and seconds > 0 else None


def _pauses(times: np.ndarray, steps: np.ndarray, first: int) -> list[tuple[float, float, float]]:
    """Start, end and -1 for each pause between two timed steps."""
    ends, starts = times[first - 1 : -1], times[first:] - steps[first:]
    return [(end, start, -1.0) for end, start in zip(ends, starts, strict=True) if start - end > PAUSE]


def _cumulative(samples: list[dict[str, Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each device the times of its lines and the joules until then; none where one device does not tell.

    They are its mean power over each line's second, summed: over 25 seconds of an H200 its own counter came to the same
    within 0.5 %, and reading that takes a core's time.
    """
    by_device: dict[Any, list[tuple[float, float]]] = {}
    for sample in samples:
        if sample.get("device") == "cpu":
            continue  # the resident memory of the processes, without power
        if sample.get("power_w") is None or sample.get("time") is None:
            return []
        by_device.setdefault(sample.get("device"), []).append((sample["time"], sample["power_w"]))
    found = []
    for device in by_device.values():
        at, power = np.array(device).T
        found.append((at, np.concatenate(([0.0], np.cumsum(power[1:] * np.diff(at))))))
    return found
