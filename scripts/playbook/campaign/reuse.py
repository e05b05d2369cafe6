"""Which runs a comparison with repeats is made of: finished ones of the same work, then those still to train.

The two arms take turns, A B B A A B, so that a machine that slowly warms up favours neither. Whatever is cut short goes
on at the run that is missing, because finished runs are found again; where all are to be trained anew, the comparison's
folder is made first and lists its runs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playbook.compare import saved
from pretraining.errors import UsageError
from pretraining.record import code_state, run_folder
from pretraining.record.run_folder import Run, Verdict

BEGUN = "repeats.json"
Request = dict[str, Any]


def turns(repeats: int) -> list[int]:
    """The order in which arms 0 and 1 run: 0 1 1 0 0 1 ..."""
    return [arm for pair in range(repeats) for arm in ((0, 1) if pair % 2 == 0 else (1, 0))]


def reusable(requests: list[Request], repeats: int, runs: Path, *, unlike: bool = False) -> list[Run | None]:
    """For each turn a finished run that did what is asked, None where it has to be trained.

    They all have equal facts: the newest set that is whole, else the newest there is; runs of this state of the code
    come before all others. No run is taken twice, so that two arms of one request are two runs. With `unlike` their
    facts may differ: somebody forces the comparison that was refused.
    """
    order = turns(repeats)
    now = code_state.digest()
    found = [run for run in finished(runs) if run.plan.get("request") in requests]
    found.sort(key=lambda run: run.code != now)
    by_facts: dict[str, list[Run]] = defaultdict(list)
    for run in found:
        by_facts["" if unlike else json.dumps(run.parity, sort_keys=True, default=str)].append(run)
    sets = [_taken(found, requests, order) for found in by_facts.values()]
    whole = [found for found in sets if None not in found]
    return (whole or sets or [[None] * len(order)])[0]


def _taken(best_first: list[Run], requests: list[Request], order: list[int]) -> list[Run | None]:
    """The best runs that the turns need, in the order in which they ran."""
    waiting: list[list[Run]] = []
    for arm, request in enumerate(requests):
        needed = sum(requests[turn] == request for turn in order)
        mine = [run for run in best_first if run.plan["request"] == request][:needed]
        mine.sort(key=lambda run: run.folder.name, reverse=True)
        waiting.append(waiting[requests.index(request)] if request in requests[:arm] else mine)
    return [waiting[arm].pop() if waiting[arm] else None for arm in order]


def reusing(run: Run) -> str:
    """What to say where a run is reused, in one line: it may be of another state of the code."""
    said, now = f"reusing {run.folder.name}", code_state.digest()
    if run.code != now:
        theirs = f"was {run.code}" if run.code else "is not recorded"
        commit = f" (commit {run.commit[:12]})" if run.commit else ""
        said += f", whose code {theirs}{commit} and is now {now}"
    return f"{said} (FRESH=1 trains again)"


def finished(runs: Path, verdicts: Collection[Verdict] = (Verdict.SUCCEEDED,)) -> list[Run]:
    """The runs that ended with one of the verdicts, newest first."""
    found = []
    for folder in sorted(runs.glob("*/"), reverse=True):
        if run := _ended(folder, verdicts):
            found.append(run)
    return found


def _ended(folder: Path, verdicts: Collection[Verdict] = (Verdict.SUCCEEDED,)) -> Run | None:
    if not (folder / run_folder.OUTCOME).exists():
        return None
    try:
        run = run_folder.read_facts(folder)
    except (UsageError, OSError):
        return None
    return run if run.verdict in verdicts else None


@dataclass
class Begun:
    """A comparison whose runs are all trained anew, begun and not yet written.

    Attributes:
        folder: where it will be; holds `repeats.json` until then.
        asked: what makes it the same comparison when it is asked for again.
        names: the run folders that are done, a turn each.
    """

    folder: Path
    asked: dict[str, Any]
    names: list[str] = field(default_factory=list)

    def add(self, run: Run) -> None:
        """List one more run. Raises OSError."""
        self.names.append(run.folder.name)
        self.save()

    def save(self) -> None:
        """Write the list. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(self.folder / BEGUN, {"schema": 1, "asked": self.asked, "runs": self.names})

    def done(self) -> None:
        """The comparison is written, and lists its runs itself."""
        (self.folder / BEGUN).unlink(missing_ok=True)

    def runs(self) -> list[Run]:
        """Those of its runs that are still there, up to the first that is not."""
        found = []
        for name in self.names:
            run = _ended(self.folder.parent / name)
            if run is None:
                break
            found.append(run)
        return found


def begin(requests: list[Request], repeats: int, runs: Path, name: str) -> Begun:
    """The comparison to train anew: one of the same work and the same code that was cut short, else a new one.

    Args:
        name: of the model, for the folder's.
    """
    asked = json.loads(json.dumps({"requests": requests, "repeats": repeats, "code": code_state.digest()}, default=str))
    for file in sorted(runs.glob(f"*/{BEGUN}"), reverse=True):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["asked"] == asked:
                begun = Begun(file.parent, asked, list(map(str, content["runs"])))
                begun.names = [run.folder.name for run in begun.runs()]
                return begun
        except (OSError, ValueError, KeyError, TypeError):
            continue  # somebody else's, or damaged
    begun = Begun(saved.new_folder(runs, name), asked)
    begun.save()
    return begun
