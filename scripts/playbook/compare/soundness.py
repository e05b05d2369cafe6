"""What a run's own lines say against its verdict and its step times, each with what to do.

A success is believed only as far as its figures bear it out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from playbook.compare.model import UNUSABLE, Distribution
from playbook.record.columns import Lines
from pretraining.record.run_folder import Run, Verdict
from pretraining.request.precisions import PRECISIONS

FEWEST_STAMPS = 5  # lines with a time, from which on they say something
CLOCK = 0.005  # seconds by which two clocks may differ over a step
OUTLIER = 3.5  # modified z-score, Iglewicz and Hoaglin (1993)
FLUCTUATION = 0.10  # interquartile range over median
SLOW_START = 0.05  # how much longer the first tenth takes than the rest
DRIFT = 0.02  # between the first third and the last
DISAGREEMENT = 0.02  # between the record and what Megatron printed
_FEWEST_FOR_TRENDS = 15
LEAST_SHARE, UNTIMED = 0.6, 0.05  # of the time between two lines in a step; seconds besides that are always plausible


def verdict(run: Run, lines: Lines) -> tuple[Verdict, str]:
    """How the run ended, and the cause.

    A run that says it succeeded is diverged where its loss or gradient norm is not finite at the end (Megatron-LM issue
    5306: the norm is NaN while no NaN iterations are counted), and incomplete where its record ends early.
    """
    said, cause = run.verdict, run.outcome.get("cause", "")
    if said is not Verdict.SUCCEEDED or (is_log(run) and not len(lines)):
        return said, cause
    wanted = run.parity.get("train_iters") or 0
    if not len(lines):
        if run.environment.get("trained", True) and wanted > (run.parity.get("start_iteration") or 0):
            return Verdict.INCOMPLETE, f"the metrics hold none of {wanted} iterations"
        return said, cause
    for name in ("loss", "grad_norm"):
        finite = np.isfinite(lines.column(name))
        printed = finite.any() or (name == "loss" and not is_log(run))  # a record has the loss of every iteration
        if printed and not finite[-1]:
            since = int(lines.iterations[np.flatnonzero(finite)[-1] + 1 if finite.any() else 0])
            return Verdict.DIVERGED, f"the {name.replace('_', ' ')} is not finite from iteration {since} to the end"
    if not is_log(run) and lines.last < wanted:
        return Verdict.INCOMPLETE, f"the metrics end at iteration {lines.last} of {wanted}"
    return said, cause


def is_log(run: Run) -> bool:
    """Whether this is a raw log, which does not tell all facts."""
    return run.environment.get("source") == "log"


def contradictions(run: Run, lines: Lines) -> dict[str, str]:
    """What the files of a run folder say against one another, by name. A raw log is its only witness."""
    if is_log(run) or not len(lines):
        return {}
    facts, recorded = run.parity, run.environment
    device, ended = recorded.get("device") or {}, run.outcome.get("iterations")
    found = {
        "recorded iterations": _sequence(lines.iterations, facts.get("start_iteration")),
        "step times": _against_the_clock(lines),
        "arithmetic": _impossible_arithmetic(run.precision, device),
    }
    if ended is not None and ended != lines.last:
        found["last iteration"] = f"{lines.last} in the metrics and {ended} in the outcome"
    tokens, batch, sequence = recorded.get("tokens_per_step"), *map(facts.get, ("global_batch_size", "sequence_length"))
    if tokens and batch and sequence and tokens != batch * sequence:
        found["tokens_per_step"] = f"{tokens}, of {batch} sequences of {sequence}"
    if device.get("name") and facts.get("device") and device["name"] != facts["device"]:
        found["device"] = f"{device['name']} and {facts['device']}"
    return {name: said for name, said in found.items() if said}


def _sequence(iterations: np.ndarray, start: int | None) -> str:
    """What is wrong with the order of the iterations; "" where each follows the one before."""
    before = np.concatenate(([iterations[0] - 1 if start is None else start], iterations[:-1]))
    wrong = np.flatnonzero(iterations != before + 1)
    if not len(wrong):
        return ""
    last, this = int(before[wrong[0]]), int(iterations[wrong[0]])
    if this > last:
        return f"{last + 1} to {this - 1} are missing" if this > last + 2 else f"{last + 1} is missing"
    return f"{this} is there twice" if this == last else f"{this} comes after {last}"


def _against_the_clock(lines: Lines) -> str:
    """How step times contradict the time stamps of their lines, "" where they do not.

    No step lasts longer than what lies between two lines. It may last less, by what logging, a checkpoint or an
    evaluation takes; in all published runs it is 97 % and more of it.
    """
    steps, between = lines.column("step_time_s")[1:], np.diff(lines.column("time"))
    known = np.isfinite(steps) & np.isfinite(between)
    if np.count_nonzero(known) < FEWEST_STAMPS:
        return ""
    besides, apart = (between - steps)[known], float(np.median(between[known]))
    least = float(np.quantile(besides, 0.1))
    if float(np.median(besides)) < -max(0.05 * apart, CLOCK) or least > max((1 - LEAST_SHARE) * apart, UNTIMED):
        return f"{float(np.median(steps[known])):.4g} s a step, in lines that were written every {apart:.4g} s"
    return ""


def _impossible_arithmetic(precision: dict[str, Any], device: dict[str, Any]) -> str:
    """The arithmetic that the device cannot have had, "" where it can."""
    name, capability = precision.get("name"), device.get("capability")
    if precision.get("arithmetic") != "native" or name not in PRECISIONS:
        return ""
    if device.get("kind") == "cpu":
        return f"{name}, native on a CPU"
    if capability and not PRECISIONS[name].trains_on(tuple(capability)):
        return f"{name}, native on compute capability {'.'.join(map(str, capability))}"
    return ""


def are_copies(a: Run, b: Run, lines: tuple[Lines, Lines]) -> bool:
    """Whether two runs in different places have the very same clock readings, which two trainings never have."""
    if a.folder.resolve() == b.folder.resolve():
        return False
    if is_log(a) and is_log(b) and (a.parity, a.precision) != (b.parity, b.precision):
        return False
    name = "step_time_s" if is_log(a) and is_log(b) else "time"
    first, second = (each.column(name) for each in lines)
    return len(np.unique(first[np.isfinite(first)])) >= FEWEST_STAMPS and np.array_equal(first, second, equal_nan=True)


def warnings(run: Run, lines: Lines) -> list[str]:
    """What a reader has to know of how the run went."""
    said = list(run.environment.get("notes", []))
    if problem := (run.environment.get("sampling") or {}).get("problem"):
        said.append(f"the device's memory and power were not sampled: {problem}")
    if (run.environment.get("probe") or {}).get("skipped"):
        said.append("the GPU's own kernels were not held against the specification (PROBE=0)")
    if found := watched(run):
        how, (first, last) = found
        said.append(f"iterations {first} to {last} were {how}: their step times tell nothing")
    if start := run.parity.get("start_iteration"):
        said.append(f"resumed at iteration {start}")
    if (interval := lines.every) > 1:
        said.append(f"printed every {interval} iterations: each step time and loss is already a mean of {interval}")
    if count := skipped(lines):
        said.append(f"{count} iterations were skipped")
    for name in ("loss", "grad_norm"):
        missing = int(np.isnan(lines.column(name)).sum())
        if 0 < missing < len(lines):
            said.append(f"{name.replace('_', ' ')} is missing or not finite in {missing} of {len(lines)} lines")
    return said


def watched(run: Run) -> tuple[str, list[int]] | None:
    """How the steps were slowed, "profiled" or "measured" (`make sensitivity`), and the first and last that were."""
    return next(((how, run.environment[how]) for how in ("profiled", "measured") if run.environment.get(how)), None)


def skipped(lines: Lines) -> int:
    """Iterations whose update was skipped."""
    return int(np.nansum(lines.column("skipped")))


def impossible_times(lines: Lines) -> int:
    """Step times that are zero, negative or infinite: no clock gave them."""
    times = lines.column("step_time_s")
    return int(np.count_nonzero((times <= 0) | np.isinf(times)))


def distribution(times: np.ndarray) -> Distribution:
    """The distribution of at least one step time, seconds."""
    low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
    return Distribution(
        median=float(middle),
        mean=float(times.mean()),
        standard_deviation=float(times.std(ddof=1)) if len(times) > 1 else 0.0,
        first_quartile=float(low),
        third_quartile=float(high),
        minimum=float(times.min()),
        maximum=float(times.max()),
        outliers=int(outliers(times).sum()),
        count=len(times),
    )


def outliers(times: np.ndarray) -> np.ndarray:
    """Which of them lie beyond a modified z-score of 3.5, [len(times)] of bool.

    The score is 0.6745 times the distance to the median over the median of these distances; over 1.2533 times their
    mean where more than half of all are equal.
    """
    distance = np.abs(times - np.median(times))
    scale = np.median(distance) / 0.6745 or 1.2533 * distance.mean()
    return distance > OUTLIER * scale if scale else np.zeros(len(times), dtype=bool)


def of_times(times: np.ndarray) -> list[str]:
    """What the timed iterations, in their order, say against a figure made of them."""
    spread = distribution(times).spread
    said = []
    if spread > UNUSABLE:
        said.append(
            f"step times are unusable: their interquartile range is {spread:.0%} of the median (over {UNUSABLE:.0%}); "
            "find what else uses the machine (nvidia-smi, top), then train again"
        )
    elif spread > FLUCTUATION:
        said.append(
            f"system fluctuation: the interquartile range is {spread:.0%} of the median step (over {FLUCTUATION:.0%}); "
            "end other work on the machine, or take REPEAT=3 and more"
        )
    if len(times) < _FEWEST_FOR_TRENDS:
        return said
    third, tenth = len(times) // 3, max(3, len(times) // 10)
    start = float(np.median(times[:tenth]) / np.median(times[tenth:]) - 1)
    if start > max(SLOW_START, spread):
        said.append(
            f"slow start: the first {tenth} timed iterations took {start:.0%} longer than the rest; "
            "train for longer, so that they count less (ITERS=)"
        )
    drift = float(np.median(times[-third:]) / np.median(times[tenth : tenth + third]) - 1)
    if abs(drift) > max(DRIFT, spread / 2):
        said.append(
            f"drift: the last third of the timed iterations is {abs(drift):.1%} {'slower' if drift > 0 else 'faster'} "
            "than the first; watch clocks and temperature (nvidia-smi dmon), and interleave repeats (REPEAT=3)"
        )
    return said


def disagreement(iterations: np.ndarray, times: np.ndarray, printed_at: np.ndarray, printed: np.ndarray) -> str:
    """How the record's step times differ from those that Megatron printed, "" where not by more than 2 %.

    Args:
        iterations, times: of the record, timed ones only, seconds.
        printed_at, printed: iteration and seconds of Megatron's own lines, one for every iteration.
    """
    common, ours, theirs = np.intersect1d(iterations, printed_at, return_indices=True)
    if len(common) == 0 or (len(printed_at) > 1 and np.median(np.diff(printed_at)) > 1):
        return ""  # a printed mean of several iterations is another thing
    ratio = float(np.median(printed[theirs]) / np.median(times[ours])) - 1
    if abs(ratio) <= DISAGREEMENT:
        return ""
    return (
        f"Megatron printed {abs(ratio):.1%} {'more' if ratio > 0 else 'less'} time a step than the record has; "
        "what lies between steps (data loading, logging) is only in the printed one: compare the logs too"
    )
