"""The runs of a comparison or an ablation, one after another: those that are there, and the others trained."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from playbook.campaign import reuse
from playbook.launch.start import exit_code, train
from playbook.plan.plan import Plan
from pretraining.record import lock
from pretraining.record.run_folder import Run, Verdict


@dataclass(frozen=True)
class Turn:
    """One run to make, and what it is called."""

    name: str
    plan: Plan


def gather(
    turns: Sequence[Turn],
    past: Sequence[Run | None],
    runs: Path,
    *,
    results: Collection[Verdict] = reuse.DONE,
    again: str = "the same command",
    said: bool = True,
) -> Iterator[tuple[Run, int]]:
    """The run of each turn with its exit code, trained where there is none; how far it came is said where it is cut.

    Args:
        past: for each turn the finished run that does for it; it counts as in use from now on.
        results: the verdicts of a run that need not be made again.
        again: what goes on where this was cut.
        said: whether past runs are told.

    Raises what `launch.start.train` raises.
    """
    done = sum(run is not None for run in past)
    for run in filter(None, past):
        lock.keep(run.folder)
    for at, (turn, run) in enumerate(zip(turns, past, strict=True), 1):
        title = f"run {at} of {len(turns)}, {turn.name}:" if len(turns) > 2 else f"{turn.name}:"
        if run:
            if said:
                print(title, reuse.reusing(run), flush=True)
            yield run, 0
            continue
        if len(turns) > 2:
            print(title, flush=True)
        cut = f"{done} of {len(turns)} runs are done; {again} goes on there"
        try:
            run = train(turn.plan, runs)
        except KeyboardInterrupt:
            print(cut, file=sys.stderr)
            raise
        lock.keep(run.folder)
        code = exit_code(run)
        if run.verdict is Verdict.INTERRUPTED:
            print(cut, file=sys.stderr)
        done += run.verdict in results
        yield run, code
