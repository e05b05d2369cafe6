"""Whether two runs did the same work: the facts that differ, what could not be checked, and the way out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from playbook.stats import Window, timed_lines
from pretraining.precision import PRECISIONS
from pretraining.record import Run, Verdict

NO_ITERATIONS = "iterations"
ABSENT = "not recorded"
FLOPS_TOLERANCE = 0.01  # relative; a vocabulary of another size moves an 8B model by 5 %

SAME_SETTINGS = "run one of them again with the settings of the other"


@dataclass(frozen=True)
class Difference:
    """One thing in the way of a comparison: its name, its value in each run, and the way out."""

    name: str
    a: Any
    b: Any
    way_out: str


def check(a: Run, b: Run, window_a: Window, window_b: Window, fewest: int) -> tuple[list[Difference], list[str]]:
    """What differs, and the facts that only one of the two gives.

    A fact missing from a run folder differs, because run folders record all of them; one missing from a raw log is
    not known, and only named.

    Args:
        window_a, window_b: the iterations that would be timed.
        fewest: how many of them a comparison needs.
    """
    differences = _not_succeeded(a, b)
    facts, unchecked = _facts(a, b)
    differences += facts
    flops = _flops(a, b)
    if flops is None:
        unchecked.append("flops_per_token")
    else:
        differences += flops
    return differences + _too_few(a, b, window_a, window_b, fewest), unchecked


def _not_succeeded(a: Run, b: Run) -> list[Difference]:
    if a.verdict == b.verdict == Verdict.SUCCEEDED:
        return []
    said = [f"{run.verdict} ({run.outcome['cause']})" if run.outcome.get("cause") else run.verdict for run in (a, b)]
    again = dict.fromkeys(_command(run.precision.get("name")) for run in (a, b) if run.verdict != Verdict.SUCCEEDED)
    return [Difference("verdict", *said, f"mend the cause, then {' and '.join(again)} again")]


def _command(precision: str | None) -> str:
    """The make target that trains in a precision."""
    if precision not in PRECISIONS:
        return "the run"
    return f"`make {precision}`" if precision in ("bf16", "nvfp4") else f"`make nvfp4 PRECISION={precision}`"


def _facts(a: Run, b: Run) -> tuple[list[Difference], list[str]]:
    both_folders = not any(run.environment.get("source") == "log" for run in (a, b))
    differences, unchecked = [], []
    for name in dict.fromkeys([*a.parity, *b.parity]):
        values = [run.parity.get(name, ABSENT) for run in (a, b)]
        if ABSENT in values and not both_folders:
            unchecked.append(name)
        elif not _same(*values):
            way_out = SAME_SETTINGS
            if name == "start_iteration":
                way_out = "one was resumed from a checkpoint; run it again from the start, in a folder of its own"
            differences.append(Difference(name, *values, way_out))
    if not a.parity and not b.parity:
        unchecked.append("all settings")
    return differences, unchecked


def _same(a: Any, b: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    return math.isclose(a, b, rel_tol=1e-9) if numbers else a == b


def _flops(a: Run, b: Run) -> list[Difference] | None:
    """FLOPs a token differ by more than rounding: another model or sequence. None where one is not known."""
    values = [run.environment.get("flops_per_token") for run in (a, b)]
    if None in values:
        return None
    rounding = sum(run.environment.get("flops_resolution") or 0.0 for run in (a, b))
    if math.isclose(*values, rel_tol=FLOPS_TOLERANCE + rounding):
        return []
    return [Difference("flops_per_token", *(f"{value:.4g}" for value in values), SAME_SETTINGS)]


def _too_few(a: Run, b: Run, window_a: Window, window_b: Window, fewest: int) -> list[Difference]:
    recorded = [len(run.train) for run in (a, b)]
    if not all(recorded):
        way_out = "train again: without a finished iteration nothing can be compared"
        return [Difference(NO_ITERATIONS, *recorded, way_out)]
    timed = [len(timed_lines(run.train, window)) for run, window in ((a, window_a), (b, window_b))]
    if min(timed) >= fewest:
        return []
    return [Difference("timed iterations", *timed, f"train for at least {2 * fewest} iterations")]
