"""What a run's own lines say against its verdict: a success is believed only as far as its figures bear it out."""

from __future__ import annotations

import numpy as np

from playbook.lines import Lines
from pretraining.record import Run, Verdict


def verdict(run: Run, lines: Lines) -> tuple[Verdict, str]:
    """How the run ended, and the cause.

    A run that says it succeeded is diverged where its loss or gradient norm is not finite at the end (Megatron-LM issue
    5306: the norm is NaN while no NaN iterations are counted), and incomplete where its record ends early.
    """
    said, cause = run.verdict, run.outcome.get("cause", "")
    if said is not Verdict.SUCCEEDED or not len(lines):
        return said, cause
    for name in ("loss", "grad_norm"):
        finite = np.isfinite(lines.column(name))
        if finite.any() and not finite[-1]:  # none at all: it is not printed
            since = int(lines.iterations[np.flatnonzero(finite)[-1] + 1])
            return Verdict.DIVERGED, f"the {name.replace('_', ' ')} is not finite from iteration {since} to the end"
    wanted = run.parity.get("train_iters")
    is_log = run.environment.get("source") == "log"
    if not is_log and isinstance(wanted, int) and lines.last < wanted:
        return Verdict.INCOMPLETE, f"the metrics end at iteration {lines.last} of {wanted}"
    return said, cause


def warnings(run: Run, lines: Lines) -> list[str]:
    """What a reader has to know of how the run went."""
    said = list(run.environment.get("notes", []))
    if problem := (run.environment.get("sampling") or {}).get("problem"):
        said.append(f"the device's memory and power were not sampled: {problem}")
    if found := profiled(run):
        said.append("iterations {} to {} were profiled: their step times are no measurement".format(*found))
    if start := run.parity.get("start_iteration"):
        said.append(f"resumed at iteration {start}")
    if len(lines) > 1 and (interval := int(lines.iterations[1] - lines.iterations[0])) > 1:
        said.append(f"printed every {interval} iterations: each step time and loss is already a mean of {interval}")
    if count := skipped(lines):
        said.append(f"{count} iterations were skipped")
    for name in ("loss", "grad_norm"):
        missing = int(np.isnan(lines.column(name)).sum())
        if 0 < missing < len(lines):
            said.append(f"{name.replace('_', ' ')} is missing or not finite in {missing} of {len(lines)} lines")
    return said


def profiled(run: Run) -> list[int] | None:
    """The first and the last iteration that a profiler watched, None where it watched none."""
    return run.environment.get("profiled")


def skipped(lines: Lines) -> int:
    """Iterations whose update was skipped."""
    return int(np.nansum(lines.column("skipped")))


def impossible_times(lines: Lines) -> int:
    """Step times that are zero, negative or infinite: no clock gave them."""
    times = lines.column("step_time_s")
    return int(np.count_nonzero((times <= 0) | np.isinf(times)))
