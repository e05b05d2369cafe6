"""One run's figures, from its record or its log: what a comparison is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from playbook.compare import published, soundness, stats, timed, timing
from playbook.compare.model import RunResult
from playbook.compare.stats import Figure
from playbook.record import flops
from playbook.record.columns import Lines
from playbook.record.megatron_log import printed_times
from pretraining.record.run_folder import LOG, Peak, Run

PAUSE = 0.5  # seconds between two steps, from which on an evaluation or a checkpoint lies between them
OF_ONE_PROCESS = {Peak.ALLOCATED, Peak.RESERVED, Peak.RESIDENT}


@dataclass(frozen=True)
class Measured:
    """A run with its lines as columns.

    Attributes:
        lines: all of its training lines.
        window: the iterations that are timed.
        every: how many iterations a compared line stands for, where another run's log has fewer lines; else 0.
    """

    run: Run
    lines: Lines
    window: timed.Window
    every: int = 0

    @cached_property
    def paired(self) -> Lines:
        """The lines that are compared, each of as many iterations as the other runs'."""
        return self.lines.coarse(self.every) if self.every else self.lines

    @cached_property
    def first(self) -> int:
        """The index of the first timed line."""
        return stats.first_timed(self.paired, self.window)

    @cached_property
    def timed(self) -> Lines:
        """The lines of the window whose step time a clock can have given."""
        lines = self.paired[self.first :]
        times = lines.column("step_time_s")
        good = np.isfinite(times) & (times > 0)
        return lines if good.all() else lines.where(good)

    @property
    def times(self) -> np.ndarray:
        """The step times of the window, seconds, in order."""
        return self.timed.column("step_time_s")

    @cached_property
    def result(self) -> RunResult:
        """Its figures."""
        return _result(self)

    @property
    def is_log(self) -> bool:
        """Whether this is a raw log, which does not tell all facts."""
        return soundness.is_log(self.run)

    @property
    def tokens_per_step(self) -> int:
        """Of all processes, when the batch has grown to its size; 0 where not known."""
        return self.run.environment.get("tokens_per_step") or 0

    def tokens_of(self, lines: Lines) -> np.ndarray:
        """Tokens of one iteration of each line, by its own batch where that is recorded; 0 where not known."""
        batches = lines.column("global_batch_size")
        whole = self.run.parity.get("global_batch_size")
        if not (whole and self.tokens_per_step):
            return np.full(len(lines), float(self.tokens_per_step))
        return np.where(np.isfinite(batches), batches, whole) * (self.tokens_per_step / whole)

    def tokens_at(self, iterations: np.ndarray) -> np.ndarray:
        """Tokens seen when these iterations end, from the first of the training on; 0 where not known."""
        at = np.concatenate(([0.0], self.lines.iterations))
        seen = np.concatenate(([0.0], np.cumsum(np.diff(at) * self.tokens_of(self.lines))))
        return np.interp(iterations, at, seen)


def measure(run: Run) -> Measured:
    """Find what is timed of a run."""
    lines = Lines.of(run.train)
    start = run.parity.get("start_iteration") or 0
    return Measured(run, lines, timed.timing_window(start, lines.last or start))


def over_alike(runs: Sequence[Measured]) -> list[Measured]:
    """The runs, a line of each standing for as many iterations where logs were printed at other intervals.

    A mean of ten iterations is another thing than one of them: it hides a stall, and its loss is an earlier one's.
    Where the lines of one do not end with common iterations they stay as they are, which `parity` refuses.
    """
    each = [run.lines.every for run in runs if len(run.lines)]
    meet = all(not (run.lines.iterations % run.lines.every).any() for run in runs)
    if len(set(each)) < 2 or not meet:
        return list(runs)
    every = math.lcm(*each)
    return [replace(run, every=0 if run.lines.every == every else every) for run in runs]


def _result(of: Measured) -> RunResult:
    run, lines, times = of.run, of.lines, of.times
    world = run.parity.get("world_size")
    per_gpu = _rate(of, world, "tokens/s/GPU") if world else None
    tflops = _tflops(of, per_gpu)
    losses = _last_losses(of.paired)
    validated, tested = _last_evaluation(run, "validation"), _last_evaluation(run, "test")
    first = stats.first_timed(lines, of.window)
    joules, seconds = energy_used(run, lines, first) or (None, None)
    covered, tokens = len(lines) - first, float(of.tokens_of(lines[first:]).sum())
    verdict, cause = soundness.verdict(run, lines)
    device = run.environment.get("device") or {}
    return RunResult(
        path=str(run.folder.absolute()),
        source="raw log" if of.is_log else "run folder",
        verdict=str(verdict),
        cause=cause,
        device=device.get("kind", ""),
        iterations=of.window.last - (run.parity.get("start_iteration") or 0),
        timed=of.window,
        step_times=timing.distribution(times) if len(times) else None,
        tokens_per_second=_rate(of, 1, "tokens/s"),
        tokens_per_second_per_gpu=per_gpu,
        model_tflops_per_gpu=tflops,
        mfu=_mfu(run, tflops),
        training_loss=stats.mean_figure(losses, "nats a token") if len(losses) else None,
        validation_loss=validated and Figure(validated["loss"], "nats a token"),
        validated_at=validated and validated["iteration"],
        test_loss=tested and Figure(tested["loss"], "nats a token"),
        memory=_memory(run),
        energy_per_step=None if joules is None else Figure(joules / covered, "J", count=covered),
        joules_per_token=Figure(joules / tokens, "J/token", count=covered) if joules and tokens else None,
        mean_power=None if joules is None else Figure(joules / seconds, "W", count=covered),
        warnings=_warnings(of),
        facts=run.parity,
    )


def _rate(of: Measured, processes: int, unit: str) -> Figure | None:
    """Tokens a second: each line's own, over its step time. None where not known."""
    tokens = of.tokens_of(of.timed)
    if not (len(tokens) and tokens.all()):
        return None
    if np.ptp(tokens):  # a batch that grows
        return stats.median_figure(tokens / processes / of.times, unit)
    step, work = stats.median_figure(of.times, "s"), float(tokens[0]) / processes
    if step.low is None or step.high is None:
        return Figure(work / step.value, unit)
    return Figure(work / step.value, unit, work / step.high, work / step.low, step.spread, step.count)


def _tflops(of: Measured, per_gpu: Figure | None) -> Figure | None:
    """MODEL_TFLOP/s/GPU: as printed where it was, else from the model's FLOPs a token."""
    printed = of.timed.column("model_tflops")
    printed = printed[printed > 0]
    if len(printed):
        return stats.median_figure(printed, "MODEL_TFLOP/s/GPU")
    each = flops_per_token(of.run)
    if not (each and per_gpu):
        return None
    scale = each / 1e12
    ends = [None if end is None else end * scale for end in (per_gpu.low, per_gpu.high)]
    return Figure(per_gpu.value * scale, "MODEL_TFLOP/s/GPU", *ends, per_gpu.spread, per_gpu.count)


def flops_per_token(run: Run) -> float | None:
    """As recorded, or derived from what a log prints; else counted from the model's sizes."""
    return run.environment.get("flops_per_token") or flops.per_token(run.parity)


def peak(run: Run) -> tuple[float, str] | None:
    """The peak that the run's MFU is a share of, and its name; None of an emulation, a CPU, an unknown device."""
    device = run.environment.get("device") or {}
    if run.precision.get("arithmetic", "native") != "native" or device.get("kind") == "cpu":
        return None
    return published.peak(str(run.parity.get("device", device.get("name", ""))), run.precision.get("name", ""))


def _mfu(run: Run, tflops: Figure | None) -> Figure | None:
    found = peak(run)
    if not (found and tflops):
        return None
    ends = [None if end is None else 100 * end / found[0] for end in (tflops.low, tflops.high)]
    return Figure(100 * tflops.value / found[0], "%", *ends, tflops.spread, tflops.count)


def _last_losses(lines: Lines) -> np.ndarray:
    losses = lines.column("loss")[-stats.last_part(len(lines), lines.every) :] if len(lines) else np.array([])
    return losses[np.isfinite(losses)]


def _last_evaluation(run: Run, split: str) -> dict[str, Any] | None:
    found = [line for line in run.evaluations if line.get("split") == split and line.get("loss") is not None]
    return found[-1] if found else None


def _memory(run: Run) -> dict[str, Figure]:
    """Peaks by what they measure, GB: those of the outcome, and of a run that broke off what was sampled."""
    peak = run.outcome.get("peak_memory") or {}
    processes = peak.get("processes") or 1
    found = {
        kind: max((line[name] for line in run.samples if line.get("device") != "cpu" and line.get(name)), default=0)
        for kind, name in ((Peak.USED, "used_bytes"), (Peak.HELD, "process_bytes"))
    }
    told = peak.get("all") or ({peak.get("kind", ""): peak["bytes"]} if peak.get("bytes") else {})
    found |= {kind: max(size, found.get(kind, 0)) for kind, size in told.items()}  # of the first machine alone
    return {
        f"{kind}, largest of {processes} processes" if processes > 1 and kind in OF_ONE_PROCESS else str(kind): Figure(
            size / 1e9, "GB"
        )
        for kind, size in found.items()
        if size
    }


def _warnings(of: Measured) -> list[str]:
    said = soundness.warnings(of.run, of.lines)
    precision = of.run.precision
    if precision.get("name") == "nvfp4" and precision.get("bf16_tail_layers") == 0:
        said.append(
            "no layer in BF16: training may diverge; it did in arXiv 2509.25149 (section 4.1, its size not said), and "
            "did not in a Llama 3.1 8B over 160B tokens (MrHuff/mfu-fp4-training)"
        )
    said += [
        f"the record contradicts itself: {name}: {what}"
        for name, what in soundness.contradictions(of.run, of.lines).items()
    ]
    if of.every:
        said.append(f"compared by means over {of.every} iterations, as the lines of another log are")
    if bad := soundness.impossible_times(of.lines):
        said.append(f"{bad} step times are zero, negative or infinite and were left out: the record or log is damaged")
    if not len(of.times):
        return said
    said += timing.warnings(of.times)
    log = of.run.folder / LOG
    if not (of.is_log or of.every) and log.is_file():
        printed_at, printed = printed_times(log)
        if differs := timing.disagreement(of.timed.iterations, of.times, printed_at, printed):
            said.append(differs)
    return said


def energy_used(run: Run, lines: Lines, first: int) -> tuple[float, float] | None:
    """Energy and duration of the timed iterations, what lies between them left out.

    Args:
        lines: all training lines of the run.
        first: index of the first timed one.

    Returns:
        Joules, summed over all devices, and seconds; None where power or time was not recorded, a process's device is
        missing, or samples do not reach from end to end.
    """
    times = lines.column("time")
    if first < 1 or first >= len(times) or not np.isfinite(times[first - 1 :]).all():
        return None
    periods = [(times[first - 1], times[-1], 1.0), *_pauses(times, lines.column("step_time_s"), first)]
    joules = 0.0
    devices = _cumulative(run.samples)
    if len(devices) < run.parity.get("world_size", 1):  # of a machine whose file is not here
        return None
    for at, energy in devices:
        if at[0] > times[first - 1] or at[-1] < times[-1]:
            return None
        joules += sum(sign * float(np.diff(np.interp((start, end), at, energy))[0]) for start, end, sign in periods)
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
