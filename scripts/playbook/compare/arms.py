"""The arms of a comparison: which runs are repeats of one configuration, and the arm's figures from theirs."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence

from playbook.compare.figures import Measured, of_arm, peak
from playbook.compare.model import UNKNOWN, Arm
from pretraining.errors import UsageError
from pretraining.record.run_folder import Run


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


def make_arm(name: str, runs: list[Measured]) -> Arm:
    """The arm of one configuration."""
    precision, results = runs[0].run.precision, [run.result for run in runs]
    figures, found = of_arm(results), peak(runs[0].run)
    return Arm(
        name=name,
        precision=precision.get("name", UNKNOWN),
        arithmetic=precision.get("arithmetic", "native"),
        emulator=precision.get("emulator") or "",
        bf16_head_layers=precision.get("bf16_head_layers"),
        bf16_tail_layers=precision.get("bf16_tail_layers"),
        ingredients=precision.get("ingredients") or {},
        runs=results,
        mfu_peak=found[1] if found and figures["mfu"] else "",
        peak_memory_kind=runs[0].memory_kind or next(iter(runs[0].memory), ""),
        figures=figures,
    )
