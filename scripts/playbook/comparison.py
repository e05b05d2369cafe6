"""Compares two runs, each a run folder or a raw log, that did the same work; refuses to compare others.

A comparison is a plain dataclass that becomes `comparison.json` as it is and is rendered by `playbook.table`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from playbook import gaps, parity, stats
from playbook.megatron_log import NotAMegatronLog, read_log
from playbook.stats import Figure
from pretraining.errors import UsageError
from pretraining.record import ENVIRONMENT, Run, Verdict, read_run, utc_now, write_json

SCHEMA = 1
KIND = "nvfp4-playbook-comparison"  # how a comparison.json is told from somebody else's file
FILE = "comparison.json"
INGREDIENTS = {"rht": "Hadamard transform", "stochastic": "stochastic rounding", "two_d": "2D scaling"}
FEWEST_TIMED = 5  # iterations; fewer have no quartiles worth the name


class NotComparable(Exception):
    """The two runs did not do the same work, or one did not finish it. Exit code 1.

    Attributes:
        differences: what is in the way, each with both values and the way out.
    """

    def __init__(self, differences: list[parity.Difference]) -> None:
        super().__init__("the two runs cannot be compared")
        self.differences = differences


@dataclass(frozen=True)
class Side:
    """One of the two runs: where it is, what it is, and its figures (None where not known)."""

    path: str
    source: str  # "run folder" or "raw log"
    precision: str
    arithmetic: str
    bf16_head_layers: int | None
    bf16_tail_layers: int | None
    ingredients: dict[str, bool]  # of the NVFP4 recipe, whether each is on; empty where not known or another precision
    device: str  # "cpu", "gpu", or "" where not known
    verdict: str
    cause: str
    facts: dict[str, Any]
    iterations: int
    timed: stats.Window
    step_time: Figure | None
    tokens_per_second: Figure | None
    tokens_per_second_per_gpu: Figure | None
    model_tflops_per_gpu: Figure | None
    training_loss: Figure | None
    validation_loss: Figure | None
    validated_at: int | None
    test_loss: Figure | None
    peak_memory: Figure | None
    peak_memory_kind: str

    @property
    def label(self) -> str:
        """The precision as a person says it, "nvfp4, emulated"."""
        return f"{self.precision}, emulated" if self.arithmetic == "emulated" else self.precision

    @property
    def novelty(self) -> tuple[int, bool]:
        """The less novel side is the baseline: BF16, then what is not NVFP4; native before emulated."""
        return {"bf16": 0, "nvfp4": 2}.get(self.precision, 1), self.arithmetic != "native"

    @property
    def computes_natively(self) -> bool:
        """Whether its FLOP/s say anything of a GPU."""
        return self.arithmetic == "native" and self.device != "cpu"

    @property
    def recipe(self) -> str:
        """How much of the NVFP4 recipe is on: "full", "without stochastic rounding"; "" where not known."""
        missing = [INGREDIENTS.get(name, name) for name, on in self.ingredients.items() if not on]
        return f"without {', '.join(missing)}" if missing else "full" if self.ingredients else ""


@dataclass(frozen=True)
class Ratio:
    """Step times of the two runs against each other; `what` is never "speed-up" where one is emulated."""

    what: str
    figure: Figure
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """The result. `baseline` and `candidate` are "a" or "b"; gaps and ratios are the candidate's against it."""

    created: str
    forced: bool
    a: Side
    b: Side
    baseline: str
    candidate: str
    step_time_ratio: Ratio | None
    training_loss_gap: Figure | None
    validation_loss_gap: Figure | None
    published_gap: str  # what NVFP4 is known to cost; "" where these two have no such gap
    scope: str
    beyond_published: str  # what to do about a gap larger than that; "" where there is none
    bigram_entropy: Figure | None
    differences: list[parity.Difference]
    unchecked: list[str]
    warnings: list[str]
    kind: str = KIND
    schema: int = SCHEMA

    def side(self, name: str) -> Side:
        """The side called "a" or "b"."""
        return self.a if name == "a" else self.b


def load(path: Path) -> Run:
    """Read a run folder or a raw log.

    Raises:
        UsageError: there is nothing at `path`, or neither of the two.
    """
    try:
        if path.is_dir():
            return _sound(read_run(path))
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is neither a run folder nor a log file.")
        return read_log(path)
    except FileNotFoundError as error:
        if not path.is_dir():
            raise UsageError(f"{path} does not exist. Give two run folders or Megatron-Bridge logs.") from error
        runs = sorted(child.name for child in path.iterdir() if (child / ENVIRONMENT).exists())
        hint = f"It holds {len(runs)} of them, such as {path / runs[-1]}." if runs else "It holds none either."
        raise UsageError(f"{path} is not a run folder. {hint}") from error
    except NotAMegatronLog as error:
        raise UsageError(f"{error}. Give a run folder, or what training printed.") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _sound(run: Run) -> Run:
    """The run, without metrics that do not say their iteration. Raises ValueError where its facts are no facts."""
    if not (isinstance(run.parity, dict) and isinstance(run.precision, dict)):
        raise ValueError(f"{ENVIRONMENT} is not what training writes; was it edited?")
    return replace(run, train=[line for line in run.train if isinstance(line.get("iteration"), int)])


def compare(a: Run, b: Run, *, force: bool = False) -> Comparison:
    """Compare two runs.

    Args:
        a, b: from `load`.
        force: compare although they differ; the result says so.

    Raises:
        NotComparable: without `force`, where anything is in the way; with it, where one has no iteration at all.
    """
    sides = {"a": _side(a), "b": _side(b)}
    differences, unchecked = parity.check(a, b, sides["a"].timed, sides["b"].timed, FEWEST_TIMED)
    if differences and not force:
        raise NotComparable(differences)
    if empty := [found for found in differences if found.name == parity.NO_ITERATIONS]:
        raise NotComparable(empty)
    baseline = min("b", "a", key=lambda name: sides[name].novelty)
    candidate = "a" if baseline == "b" else "b"
    runs = {"a": a, "b": b}
    gap = gaps.training(runs[candidate], runs[baseline])
    validation_gap = _validation_gap(sides[candidate], sides[baseline])
    published = gaps.published(runs[candidate], runs[baseline]) if gap or validation_gap else ""
    return Comparison(
        created=utc_now(),
        forced=bool(differences),
        a=sides["a"],
        b=sides["b"],
        baseline=baseline,
        candidate=candidate,
        step_time_ratio=_ratio(sides[candidate], sides[baseline]),
        training_loss_gap=gap,
        validation_loss_gap=validation_gap,
        published_gap=published,
        scope=gaps.scope(a, b),
        beyond_published=gaps.beyond(gap, a, b) if published else "",
        bigram_entropy=_bigram_entropy(a, b),
        differences=differences,
        unchecked=unchecked,
        warnings=_warnings(runs, sides, unchecked),
    )


def _side(run: Run) -> Side:
    precision = run.precision
    is_log = run.environment.get("source") == "log"
    start = run.parity.get("start_iteration") or 0
    last = run.train[-1]["iteration"] if run.train else start
    window = stats.timing_window(start, last)
    timed = stats.timed_lines(run.train, window)
    step = _median([line["step_time_s"] for line in timed if line.get("step_time_s")], "s")
    tokens = run.environment.get("tokens_per_step")
    world = run.parity.get("world_size")
    flops = run.environment.get("flops_per_token")
    per_second = _rate(step, tokens, "tokens/s")
    per_gpu = _rate(step, tokens / world, "tokens/s/GPU") if tokens and world else None
    tflops = _median([line["model_tflops"] for line in timed if line.get("model_tflops")], "MODEL_TFLOP/s/GPU")
    if tflops is None and flops and per_gpu:
        tflops = _rate(step, tokens / world * flops / 1e12, "MODEL_TFLOP/s/GPU")
    losses = [line["loss"] for line in stats.last_part(run.train) if line.get("loss") is not None]
    validated = _last_evaluation(run, "validation")
    tested = _last_evaluation(run, "test")
    memory = run.outcome.get("peak_memory") or {}
    kind, processes = memory.get("kind", ""), memory.get("processes") or 1
    return Side(
        path=str(run.folder.absolute()),
        source="raw log" if is_log else "run folder",
        precision=precision.get("name", "unknown precision"),
        arithmetic=precision.get("arithmetic", "native"),
        bf16_head_layers=precision.get("bf16_head_layers"),
        bf16_tail_layers=precision.get("bf16_tail_layers"),
        ingredients=precision.get("ingredients") or {},
        device=(run.environment.get("device") or {}).get("kind", ""),
        verdict=str(run.verdict),
        cause=run.outcome.get("cause", ""),
        facts=run.parity,
        iterations=last - start,
        timed=window,
        step_time=step,
        tokens_per_second=per_second,
        tokens_per_second_per_gpu=per_gpu,
        model_tflops_per_gpu=tflops,
        training_loss=stats.mean_figure(losses, "nats a token") if losses else None,
        validation_loss=validated and Figure(validated["loss"], "nats a token"),
        validated_at=validated and validated["iteration"],
        test_loss=tested and Figure(tested["loss"], "nats a token"),
        peak_memory=Figure(memory["bytes"] / 1e9, "GB") if memory.get("bytes") else None,
        peak_memory_kind=f"{kind}, largest of {processes} processes" if processes > 1 else kind,
    )


def _median(values: list[float], unit: str) -> Figure | None:
    return stats.median_figure(values, unit) if values else None


def _rate(step: Figure | None, work: float | None, unit: str) -> Figure | None:
    """Work a second, of work a step: its quartiles are the step time's, the other way round."""
    if not (step and work):
        return None
    if step.low is None or step.high is None:
        return Figure(work / step.value, unit)
    return Figure(work / step.value, unit, work / step.high, work / step.low, step.spread, step.count)


def _last_evaluation(run: Run, split: str) -> dict[str, Any] | None:
    found = [line for line in run.evaluations if line.get("split") == split and line.get("loss") is not None]
    return found[-1] if found else None


def _ratio(new: Side, base: Side) -> Ratio | None:
    """How the step times compare. Its spread takes the worst quartile of one with the best of the other."""
    if not (new.step_time and base.step_time):
        return None
    emulated = "emulated" in (new.arithmetic, base.arithmetic)
    same = new.precision == base.precision and new.arithmetic == base.arithmetic
    is_speed_up = not emulated and not same
    top, bottom = (base.step_time, new.step_time) if is_speed_up else (new.step_time, base.step_time)
    value = top.value / bottom.value
    figure = Figure(value, "x", count=min(top.count, bottom.count))
    if None not in (top.low, top.high, bottom.low, bottom.high):
        figure = replace(figure, low=top.low / bottom.high, high=top.high / bottom.low, spread="of the quartiles")
    times = f"{value:.3g}" if value >= 100 else f"{value:.2f}"
    if same:
        return Ratio("step-time ratio", figure, f"{times} times the step of the other {base.label} run")
    if emulated:
        name = base.precision.upper() if new.precision != base.precision else f"native {base.precision.upper()}"
        return Ratio("cost of emulation", figure, f"{times} times the {name} step; an emulation shows no speed")
    slower = "" if value >= 1 else " (slower)"
    return Ratio("speed-up", figure, f"{times}x{slower}, {new.precision} over {base.precision}")


def _validation_gap(new: Side, base: Side) -> Figure | None:
    if not (new.validation_loss and base.validation_loss) or new.validated_at != base.validated_at:
        return None
    return stats.relative_gap([(new.validation_loss.value, base.validation_loss.value)])


def _bigram_entropy(*runs: Run) -> Figure | None:
    for run in runs:
        entropy = (run.environment.get("text") or {}).get("bigram_entropy")
        if isinstance(entropy, int | float) and math.isfinite(entropy):
            return Figure(float(entropy), "nats a byte")
    return None


def _warnings(runs: dict[str, Run], sides: dict[str, Side], unchecked: list[str]) -> list[str]:
    """What a reader has to know before using the figures."""
    found: dict[str, list[str]] = {}
    for name, run in runs.items():
        for warning in _warnings_of(run, sides[name]):
            found.setdefault(warning, []).append(name.upper())
    warnings = [f"{' and '.join(names)}: {warning}" for warning, names in found.items()]
    a, b = sides["a"], sides["b"]
    if a.path == b.path:
        warnings.append("A and B are the same run")
    if a.peak_memory and b.peak_memory and a.peak_memory_kind != b.peak_memory_kind:
        warnings.append("the two peak memories are different things and cannot be compared")
    if a.validation_loss and b.validation_loss and a.validated_at != b.validated_at:
        warnings.append(f"validated at different iterations: A {a.validated_at}, B {b.validated_at}")
    if unknown := [name for name in unchecked if not (name == "flops_per_token" and "FLOPs" in " ".join(warnings))]:
        warnings.append(f"not known of both, so not checked: {', '.join(unknown)}")
    return warnings


def _warnings_of(run: Run, side: Side) -> list[str]:
    warnings = list(run.environment.get("notes", []))
    if side.verdict != Verdict.SUCCEEDED:
        warnings.append(f"{side.verdict}: {side.cause}" if side.cause else side.verdict)
    if start := run.parity.get("start_iteration"):
        warnings.append(f"resumed at iteration {start}")
    if side.precision == "nvfp4":
        if side.recipe not in ("", "full"):
            warnings.append(f"not the full NVFP4 recipe: {side.recipe}")
        if side.bf16_tail_layers == 0:
            warnings.append("speed only: wholly in NVFP4 an 8B model diverges (arXiv 2509.25149)")
    lines = run.train
    if len(lines) > 1 and (interval := lines[1]["iteration"] - lines[0]["iteration"]) > 1:
        warnings.append(f"printed every {interval} iterations: each step time and loss is already a mean of {interval}")
    if skipped := sum([int(line["skipped"]) for line in lines if line.get("skipped")]):
        warnings.append(f"{skipped} iterations were skipped")
    for name in ("loss", "grad_norm"):
        values = [line.get(name) for line in lines]
        missing = values.count(None)
        if 0 < missing < len(values):  # none at all: it is not printed
            warnings.append(f"{name.replace('_', ' ')} is missing or not finite in {missing} of {len(values)} lines")
    return warnings


def is_comparison(path: Path) -> bool:
    """Whether `path` is a file written by `write`, of any schema."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def check_target(path: Path) -> Path:
    """Where to write for a `--json PATH` given: that file, or in the folder that it is or, not ending in .json, names.

    Raises:
        UsageError: there is a file that is not a comparison of ours; it is never overwritten.
    """
    if path.is_dir() or (path.suffix != ".json" and not os.path.lexists(path)):
        path = path / FILE
    if path.is_symlink() or (path.exists() and not is_comparison(path)):
        raise UsageError(f"{path} exists and is not a comparison; it is not overwritten. Choose another --json path.")
    return path


def write(comparison: Comparison, path: Path) -> Path:
    """Write `comparison.json` whole or not at all; its folder is created. Returns the path written.

    Raises:
        UsageError: see `check_target`.
        OSError: it cannot be written.
    """
    path = check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"kind": comparison.kind, "schema": comparison.schema} | asdict(comparison))
    return path
