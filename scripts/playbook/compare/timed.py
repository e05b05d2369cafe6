"""Which iterations of a run are timed. Only the standard library: a dry run asks, too."""

from __future__ import annotations

from dataclasses import dataclass

from pretraining.errors import UsageError

WARMUP = 20  # iterations 20 to the end are timed, as in the playbook's published figures
FEWEST_TIMED = 5  # iterations; fewer have no quartiles worth the name


@dataclass(frozen=True)
class Window:
    """The iterations that are timed, both ends included; `first` > `last` where there are none."""

    first: int
    last: int
    reason: str


def timing_window(start: int, last: int) -> Window:
    """The iterations to time of a training that began after iteration `start` and got to `last`.

    Iterations 20 to the end; of a run too short for that, its second half. Never the first one, which pays for
    compilation, allocation and autotuning. Evaluations and checkpoints lie between two steps, in a record's step times
    as in those that Megatron prints.
    """
    done = last - start
    half = done // 2 + 1
    first = max(2, min(WARMUP, half))
    reason = "iterations 20 to the end" if first == WARMUP else "the second half, as the run is short"
    return Window(start + first, last, reason)


def check_long_enough(iterations: int) -> None:
    """Raise UsageError before two trainings whose comparison would be refused for too few timed iterations."""
    window = timing_window(0, iterations)
    if window.last - window.first + 1 < FEWEST_TIMED:
        raise UsageError(
            f"ITERS={iterations} leaves fewer than {FEWEST_TIMED} iterations to time, the second half of "
            f"the run: compare over at least {2 * FEWEST_TIMED}"
        )
