"""The figures of runs and arms: `METRICS`, a row each, and how they are taken from a record or a log."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np

from playbook.common import gpu_table
from playbook.compare import soundness, stats
from playbook.compare.model import Arm, RunResult, Window, timing_window
from playbook.compare.stats import Figure
from playbook.record import flops, sampled
from playbook.record.columns import Lines
from playbook.record.megatron_log import printed_times
from pretraining.record.run_folder import LOG, Peak, Run

OTHERS = 2.0  # GB of a GPU that a desktop or a context takes beside the training
# Which peak memory to compare, where all runs have it: what must fit comes first.
MEMORY_KINDS = (Peak.USED, Peak.HELD, Peak.RESERVED, Peak.ALLOCATED, Peak.RESIDENT_OF_ALL, Peak.RESIDENT)


@dataclass(frozen=True)
class Measured:
    """A run with its lines as columns, all of them and those of the timed window.

    Attributes:
        every: how many iterations a compared line stands for, where another run's log has fewer lines; else 0.
        memory: peaks by what they measure, GB.
        memory_kind: which of them is compared; "" for the first.
    """

    run: Run
    lines: Lines
    window: Window
    every: int = 0
    memory: dict[str, float] = field(default_factory=dict)
    memory_kind: str = ""

    @cached_property
    def paired(self) -> Lines:
        """The lines that are compared, each of as many iterations as the other runs'."""
        return self.lines.coarse(self.every) if self.every else self.lines

    @cached_property
    def first(self) -> int:
        """The index of the first timed line."""
        return stats.first_timed(self.paired, self.window.first)

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
    def step(self) -> Figure | None:
        """The median step of the window, seconds, with its quartiles; None where none was timed."""
        return stats.median_figure(self.times) if len(self.times) else None

    @property
    def shared(self) -> float:
        """Memory of the GPU that others used beside the training, GB; 0 where it was the training's own."""
        others = self.memory.get(Peak.USED, 0.0) - self.memory.get(Peak.HELD, math.inf)
        return others if others > OTHERS else 0.0

    @cached_property
    def energy(self) -> tuple[float, float] | None:
        """Joules and seconds of the timed iterations, see `sampled.energy`; None of a GPU that others used too."""
        if self.shared:
            return None
        return sampled.energy(self.run, self.lines, stats.first_timed(self.lines, self.window.first))

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
    return Measured(run, lines, timing_window(start, lines.last or start), memory=sampled.peaks(run))


def alike(runs: Sequence[Measured]) -> list[Measured]:
    """The runs with one kind of peak memory, where they have one in common, and each line of as many iterations.

    A mean of ten iterations is another thing than one of them: it hides a stall, and its loss is an earlier one's.
    Where the lines of one do not end with common iterations they stay as they are, which `parity` refuses.
    """
    shared = [kind for kind in runs[0].memory if all(kind in run.memory for run in runs)]
    if Peak.HELD in shared and any(run.shared for run in runs):
        shared.remove(Peak.USED)
    kind = next((kind for wanted in MEMORY_KINDS for kind in shared if kind.startswith(wanted)), (shared or [""])[0])
    each = [run.lines.every for run in runs if len(run.lines)]
    meet = all(not (run.lines.iterations % run.lines.every).any() for run in runs)
    every = math.lcm(*each) if meet and len(set(each)) > 1 else 0
    return [replace(run, memory_kind=kind, every=0 if run.lines.every == every else every) for run in runs]


@dataclass(frozen=True)
class Metric:
    """A figure of a run and, over its repeats, of an arm: all that any table says of it comes from here.

    Attributes:
        name: its key in `comparison.json` and in the CSV, and the attribute of what has it.
        label: in words, of the page and the Markdown.
        brief: the same for a terminal.
        taken: from a run, in `unit`, with its spread; None where it is not known.
        means: whether it says something of an arm.
        kind: what an arm's is in particular; only those of one kind are set against each other.
        against: how it is set against the baseline's, as a "difference" or a "ratio"; "" where it is not.
    """

    name: str
    label: str
    brief: str
    unit: str
    taken: Callable[[Measured], Figure | None]
    means: Callable[[Arm], bool] = lambda _: True
    kind: Callable[[Arm], str] = lambda _: ""
    against: str = ""


def of_run(run: Measured, names: Collection[str] = ()) -> dict[str, Figure | None]:
    """The figures of a run that have these names, or all."""
    found = {metric: metric.taken(run) for metric in METRICS if not names or metric.name in names}
    return {metric.name: each and replace(each, unit=metric.unit) for metric, each in found.items()}


def of_arm(runs: Sequence[RunResult]) -> dict[str, Figure | None]:
    """All figures of an arm: the one run's, or of several the middle, from the lowest to the highest.

    That is the median, and of losses the mean, as their gaps over seeds are means: a table of medians can lie the other
    way round.
    """
    middles = {NATS: np.mean}
    return {
        metric.name: _middle([run.figures[metric.name] for run in runs], middle=middles.get(metric.unit, np.median))
        for metric in METRICS
    }


def of_contrast(arm: Arm, base: Arm) -> dict[str, Figure | None]:
    """What is set against the baseline's, run by run where both arms have as many."""
    return {metric.name: _against(metric, arm, base) for metric in METRICS if metric.against}


def _against(metric: Metric, arm: Arm, base: Arm) -> Figure | None:
    if metric.kind(arm) != metric.kind(base):
        return None
    paired = zip(arm.runs, base.runs, strict=True) if len(arm.runs) == len(base.runs) else [(arm, base)]
    found = [[each.figures[metric.name] for each in pair] for pair in paired]
    if not all(new and old and (old.value or metric.against != "ratio") for new, old in found):
        return None
    if metric.against == "ratio":
        return _middle([Figure(new.value / old.value, "x") for new, old in found], "pairs")
    return _middle([Figure(new.value - old.value, metric.unit) for new, old in found], "pairs")


def _middle(
    figures: Sequence[Figure | None], of: str = "runs", *, middle: Callable[[list[float]], Any] = np.median
) -> Figure | None:
    """The one figure; of several, their middle, from the lowest to the highest. None where one is not known."""
    if not all(figures) or len(figures) == 1:
        return figures[0] if all(figures) else None
    values = [figure.value for figure in figures]
    spread = f"range of {len(values)} {of}"
    return Figure(float(middle(values)), figures[0].unit, min(values), max(values), spread, len(values))


def _result(of: Measured) -> RunResult:
    run = of.run
    verdict, cause = soundness.verdict(run, of.lines)
    validated = _last_evaluation(run, "validation")
    return RunResult(
        path=str(run.folder.absolute()),
        source="raw log" if of.is_log else "run folder",
        verdict=str(verdict),
        cause=cause,
        device=(run.environment.get("device") or {}).get("kind", ""),
        iterations=of.window.last - (run.parity.get("start_iteration") or 0),
        timed=of.window,
        step_times=soundness.distribution(of.times) if len(of.times) else None,
        validated_at=validated and validated["iteration"],
        memory={kind: Figure(size, "GB") for kind, size in of.memory.items()},
        warnings=_warnings(of),
        facts=run.parity,
        figures=of_run(of),
    )


def _rate(of: Measured, processes: int | None) -> Figure | None:
    """Tokens a second: each line's own, over its step time. None where not known."""
    tokens = of.tokens_of(of.timed)
    if not (processes and len(tokens) and tokens.all()):
        return None
    if np.ptp(tokens):  # a batch that grows
        return stats.median_figure(tokens / processes / of.times)
    step, work = of.step, float(tokens[0]) / processes
    if step.low is None or step.high is None:
        return Figure(work / step.value, "")
    return replace(step, value=work / step.value, low=work / step.high, high=work / step.low)


def _per_gpu(of: Measured) -> Figure | None:
    return _rate(of, of.run.parity.get("world_size"))


def _tflops(of: Measured) -> Figure | None:
    """MODEL_TFLOP/s/GPU: as printed where it was; else from FLOPs a token, as recorded or by the model's sizes."""
    printed = of.timed.column("model_tflops")
    printed = printed[printed > 0]
    if len(printed):
        return stats.median_figure(printed)
    each = of.run.environment.get("flops_per_token") or flops.per_token(of.run.parity)
    return _scaled(_per_gpu(of), each / 1e12) if each else None


def _mfu(of: Measured) -> Figure | None:
    found = peak(of.run)
    return _scaled(_tflops(of), 100 / found[0]) if found and not of.shared else None


def _scaled(figure: Figure | None, by: float) -> Figure | None:
    if figure is None:
        return None
    low, high = (None if end is None else end * by for end in (figure.low, figure.high))
    return replace(figure, value=figure.value * by, low=low, high=high)


def _peak_memory(of: Measured) -> Figure | None:
    kind = of.memory_kind or next(iter(of.memory), "")
    return Figure(of.memory[kind], "") if kind in of.memory else None


def _energy_per_step(of: Measured) -> Figure | None:
    if of.energy is None:
        return None
    steps = len(of.lines) - stats.first_timed(of.lines, of.window.first)
    return Figure(of.energy[0] / steps, "", count=steps)


def _joules_per_token(of: Measured) -> Figure | None:
    timed = of.lines[stats.first_timed(of.lines, of.window.first) :]
    tokens = float(of.tokens_of(timed).sum())
    return Figure(of.energy[0] / tokens, "", count=len(timed)) if of.energy and of.energy[0] and tokens else None


def _mean_power(of: Measured) -> Figure | None:
    steps = _energy_per_step(of)
    return steps and replace(steps, value=of.energy[0] / of.energy[1])


def _training_loss(of: Measured) -> Figure | None:
    lines = of.paired
    losses = lines.column("loss")[-stats.last_part(len(lines), lines.every) :] if len(lines) else np.array([])
    known = losses[np.isfinite(losses)]
    return stats.mean_figure(known) if len(known) else None


def _evaluated(of: Measured, split: str) -> Figure | None:
    found = _last_evaluation(of.run, split)
    return found and Figure(found["loss"], "")


def _last_evaluation(run: Run, split: str) -> dict[str, Any] | None:
    found = [line for line in run.evaluations if line.get("split") == split and line.get("loss") is not None]
    return found[-1] if found else None


def _on_several_gpus(arm: Arm) -> bool:
    return any((run.facts.get("world_size") or 1) > 1 and run.device != "cpu" for run in arm.runs)


_natively = attrgetter("computes_natively")
NATS = "nats a token"
METRICS = (
    Metric("step_time", "Step time", "step time", "s", lambda of: of.step),
    Metric("tokens_per_second", "Tokens a second", "tokens/s", "tokens/s", lambda of: _rate(of, 1)),
    Metric(
        "tokens_per_second_per_gpu", "Tokens a second and GPU", "tokens/s/GPU", "tokens/s/GPU", _per_gpu,
        means=_on_several_gpus,
    ),
    Metric(
        "model_tflops_per_gpu", "Model FLOP/s a GPU", "MODEL_TFLOP/s/GPU", "MODEL_TFLOP/s/GPU", _tflops, means=_natively
    ),
    Metric("mfu", "MFU", "MFU", "%", _mfu, means=_natively),
    Metric(
        "peak_memory", "Peak memory", "peak memory", "GB", _peak_memory, kind=lambda arm: arm.peak_memory_kind,
        against="difference",
    ),
    Metric("energy_per_step", "Energy a step", "energy a step", "J", _energy_per_step),
    Metric("joules_per_token", "Energy a token", "energy a token", "J/token", _joules_per_token, against="ratio"),
    Metric("mean_power", "Mean power", "mean power", "W", _mean_power),
    Metric("training_loss", "Training loss, last tenth", "training loss", NATS, _training_loss),
    Metric(
        "validation_loss", "Validation loss", "validation loss", NATS, lambda of: _evaluated(of, "validation"),
        kind=lambda arm: f"iteration {at}" if (at := arm.runs[0].validated_at) else "",
    ),
    Metric("test_loss", "Test loss", "test loss", NATS, lambda of: _evaluated(of, "test")),
)  # fmt: skip


def peak(run: Run) -> tuple[float, str] | None:
    """The peak that the run's MFU is a share of, and its name; None of an emulation, a CPU, an unknown device."""
    device = run.environment.get("device") or {}
    if run.precision.get("arithmetic", "native") != "native" or device.get("kind") == "cpu":
        return None
    return gpu_table.peak(str(run.parity.get("device", device.get("name", ""))), run.precision.get("name", ""))


def _warnings(of: Measured) -> list[str]:
    said = soundness.warnings(of.run, of.lines)
    precision = of.run.precision
    kept = precision.get("bf16_tail_layers") != 0 or (precision.get("ingredients") or {}).get("in_bf16")
    if precision.get("name") == "nvfp4" and not kept:
        said.append(
            "no layer in BF16: training may diverge; it did in arXiv 2509.25149 (section 4.1, its size not said), and "
            "did not in a Llama 3.1 8B over 160B tokens (MrHuff/mfu-fp4-training)"
        )
    contradictions = soundness.contradictions(of.run, of.lines)
    said += [f"the record contradicts itself: {name}: {what}" for name, what in contradictions.items()]
    if of.shared:
        said.append(
            f"others used {of.shared:.1f} GB of its GPU: step times are no measurement, and power and MFU are not "
            "the training's; end other work on the GPU (nvidia-smi)"
        )
    if of.every:
        said.append(f"compared by means over {of.every} iterations, as the lines of another log are")
    if bad := soundness.impossible_times(of.lines):
        said.append(f"{bad} step times are zero, negative or infinite and were left out: the record or log is damaged")
    if not len(of.times):
        return said
    said += soundness.of_times(of.times)
    log = of.run.folder / LOG
    if not (of.is_log or of.every) and log.is_file():
        printed_at, printed = printed_times(log)
        if differs := soundness.disagreement(of.timed.iterations, of.times, printed_at, printed):
            said.append(differs)
    return said
