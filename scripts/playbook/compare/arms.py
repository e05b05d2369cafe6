"""The arms of a comparison: which runs are repeats of one configuration, and the arm's figures from theirs."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from playbook.compare.model import UNKNOWN, Arm, RunResult
from playbook.compare.run_figures import Measured, peak
from playbook.compare.stats import Figure
from pretraining.errors import UsageError
from pretraining.record.run_folder import Peak, Run

# Which peak memory to compare, where all runs have it: what must fit comes first.
MEMORY_KINDS = (Peak.USED, Peak.HELD, Peak.RESERVED, Peak.ALLOCATED, Peak.RESIDENT_OF_ALL, Peak.RESIDENT)


def group(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one configuration together, as repeats or with other seeds, in the order in which they started.

    Two runs are two arms, whatever they are, and so are runs that are all of one configuration: somebody wants to know
    whether they differ.
    """
    by_configuration: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([run.precision, {**run.parity, "seed": None}], sort_keys=True, default=str)
        by_configuration.setdefault(key, []).append(run)
    if len(runs) == 2 or len(by_configuration) == 1:
        return [[run] for run in runs]
    return [in_order(repeats) for repeats in by_configuration.values()]


def in_order(runs: Sequence[Run]) -> list[Run]:
    """As they started, which is how repeats are paired; those that do not tell as they were given."""
    if not all(run.environment.get("started") for run in runs):
        return list(runs)
    return sorted(runs, key=lambda run: (run.environment["started"], run.folder.name))


def names(count: int) -> list[str]:
    """ "A", "B" and so on. Raises UsageError beyond "Z"."""
    if count > len(string.ascii_uppercase):
        raise UsageError(f"{count} configurations are more than one table can hold; compare at most 26")
    return list(string.ascii_uppercase[:count])


def make_arm(name: str, runs: list[Measured], memory_kind: str) -> Arm:
    """The arm of one configuration.

    Args:
        memory_kind: the peak memory that all arms of the comparison have, see `common_memory`; "" where there is none.
    """
    precision = runs[0].run.precision
    results = [run.result for run in runs]
    found = peak(runs[0].run)
    mfu = _middle([each.mfu for each in results])
    return Arm(
        name=name,
        precision=precision.get("name", UNKNOWN),
        arithmetic=precision.get("arithmetic", "native"),
        emulator=precision.get("emulator") or "",
        bf16_head_layers=precision.get("bf16_head_layers"),
        bf16_tail_layers=precision.get("bf16_tail_layers"),
        ingredients=precision.get("ingredients") or {},
        runs=results,
        step_time=_middle([step_time(each) for each in results]),
        tokens_per_second=_middle([each.tokens_per_second for each in results]),
        tokens_per_second_per_gpu=_middle([each.tokens_per_second_per_gpu for each in results]),
        model_tflops_per_gpu=_middle([each.model_tflops_per_gpu for each in results]),
        mfu=mfu,
        mfu_peak=found[1] if found and mfu else "",
        training_loss=_middle([each.training_loss for each in results]),
        validation_loss=_middle([each.validation_loss for each in results]),
        test_loss=_middle([each.test_loss for each in results]),
        peak_memory=_middle([_memory(each, memory_kind) for each in results]),
        peak_memory_kind=memory_kind or next(iter(results[0].memory), ""),
        energy_per_step=_middle([each.energy_per_step for each in results]),
        joules_per_token=_middle([each.joules_per_token for each in results]),
    )


def common_memory(runs: Sequence[Measured]) -> str:
    """The kind of peak memory to compare, which all runs have; "" where there is none."""
    shared = [kind for kind in runs[0].result.memory if all(kind in run.result.memory for run in runs)]
    return next((kind for wanted in MEMORY_KINDS for kind in shared if kind.startswith(wanted)), (shared or [""])[0])


def _memory(result: RunResult, kind: str) -> Figure | None:
    return result.memory.get(kind) if kind else next(iter(result.memory.values()), None)


def step_time(result: RunResult) -> Figure | None:
    """The median step of a run with its quartiles; None where none was timed."""
    times = result.step_times
    if times is None:
        return None
    return Figure(times.median, "s", times.first_quartile, times.third_quartile, "interquartile range", times.count)


def _middle(figures: list[Figure | None]) -> Figure | None:
    """The one figure; of several, their median, from the lowest to the highest. None where one is not known."""
    known = [figure for figure in figures if figure is not None]
    if not known or len(known) < len(figures):
        return None
    if len(known) == 1:
        return known[0]
    values = [figure.value for figure in known]
    spread = f"range of {len(values)} runs"
    return replace(known[0], value=float(np.median(values)), low=min(values), high=max(values), spread=spread,
                   count=len(values))  # fmt: skip
