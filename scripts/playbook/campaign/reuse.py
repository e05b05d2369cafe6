"""Which runs a comparison with repeats or seeds is made of: finished ones of the same work, and those still to train.

The two arms take turns, A B B A A B, so that a machine that slowly warms up favours neither; the two runs of a pair
have one seed. Whatever is cut short goes on at the run that is missing, because finished runs are found again; where
all are to be trained anew, the comparison's folder is made first and lists its runs.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from playbook.compare import saved
from pretraining.errors import UsageError
from pretraining.record import code_state, run_folder
from pretraining.record.run_folder import Run, Verdict

BEGUN = "repeats.json"
DONE = (Verdict.SUCCEEDED,)
Request = dict[str, Any]


def turns(pairs: int) -> list[tuple[int, int]]:
    """The order of the runs, each as its pair and its arm; the arms are 0 1 1 0 0 1 ..."""
    return [(pair, arm) for pair in range(pairs) for arm in ((0, 1) if pair % 2 == 0 else (1, 0))]


def seeds(words: str) -> list[int]:
    """SEEDS="1 2 3". Raises UsageError."""
    try:
        found = [int(word) for word in words.replace(",", " ").split()]
    except ValueError as error:
        raise UsageError(f"SEEDS={words}: seeds are whole numbers, as in SEEDS='1 2 3'") from error
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise UsageError(f"SEEDS={words}: one seed or more is needed, none below 0 and none twice")
    return found


def margin(words: str) -> float:
    """LOSS_MARGIN=0.5, per cent. Raises UsageError."""
    with contextlib.suppress(ValueError):
        if 0 < (found := float(words)) < math.inf:
            return found
    raise UsageError(f"LOSS_MARGIN={words}: a percentage above 0 is needed, such as 0.5")


def reusable(
    asked: Sequence[Request], runs: Path, verdicts: Collection[Verdict] = DONE, *, unlike: bool = False
) -> list[Run | None]:
    """For each turn a finished run that did what is asked, None where it has to be trained.

    They all have equal facts but for the seed: of several such sets, as of two machines, the one with the most runs,
    and of equal ones the newest; runs of this state of the code come before all others. No run is taken twice, so that
    two turns of one request are two runs. With `unlike` their facts may differ: somebody forces the comparison that was
    refused.
    """
    now = code_state.digest()
    sets: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(finished(runs, verdicts), key=lambda run: run.code != now):
        if run.plan.get("request") in asked:
            facts = json.dumps({**run.parity, "seed": None}, sort_keys=True, default=str)
            sets["" if unlike else facts].append(run)
    taken = [_taken(found, asked) for found in sets.values()]
    return max(taken, key=lambda found: len(found) - found.count(None), default=[None] * len(asked))


def _taken(best_first: list[Run], asked: Sequence[Request]) -> list[Run | None]:
    """The best runs that the turns need, those of one request in the order in which they ran."""
    waiting: dict[str, list[Run]] = {}
    for request in asked:
        mine = [run for run in best_first if run.plan["request"] == request][: asked.count(request)]
        waiting[_key(request)] = sorted(mine, key=lambda run: run.folder.name, reverse=True)
    return [waiting[_key(request)].pop() if waiting[_key(request)] else None for request in asked]


def _key(request: Request) -> str:
    return json.dumps(request, sort_keys=True, default=str)


def reusing(run: Run) -> str:
    """What to say where a run is reused, in one line: it may be of another state of the code."""
    said, now = f"reusing {run.folder.name}", code_state.digest()
    if run.code != now:
        theirs = f"was {run.code}" if run.code else "is not recorded"
        commit = f" (commit {run.commit[:12]})" if run.commit else ""
        said += f", whose code {theirs}{commit} and is now {now}"
    return f"{said} (FRESH=1 trains again)"


def finished(runs: Path, verdicts: Collection[Verdict] = DONE) -> list[Run]:
    """The runs that ended with one of the verdicts, newest first."""
    folders = sorted(runs.glob("*/"), reverse=True)
    return [run for folder in folders if (run := _ended(folder, verdicts))]


def seconds(asked: Sequence[Request], runs: Path) -> float | None:
    """How long these trainings take, by the newest finished run of each one's size; None where one is missing."""
    size = ("model", "precision", "train_iters", "global_batch_size", "sequence_length", "runtime", "processes")
    size += ("num_layers", "emulate", "tuned")

    def of(request: Request) -> tuple[Any, ...]:
        return tuple(map(request.get, size))

    lasted = {of(run.plan.get("request", {})): run.outcome.get("seconds") for run in reversed(finished(runs))}
    found = [lasted.get(of(request)) for request in asked]
    return None if None in found else float(sum(found))


def _ended(folder: Path, verdicts: Collection[Verdict] = DONE) -> Run | None:
    with contextlib.suppress(UsageError, OSError):
        if (folder / run_folder.OUTCOME).exists() and (run := run_folder.read_facts(folder)).verdict in verdicts:
            return run
    return None


@dataclass
class Begun:
    """A comparison that is trained anew and not yet written: its folder holds `repeats.json` until then.

    Attributes:
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
        return list(takewhile(bool, (_ended(self.folder.parent / name) for name in self.names)))


def begin(asked: Sequence[Request], runs: Path, name: str) -> Begun:
    """The comparison to train anew: one of the same work and the same code that was cut short, else a new one."""
    wanted = json.loads(json.dumps({"requests": asked, "code": code_state.digest()}, default=str))
    for file in sorted(runs.glob(f"*/{BEGUN}"), reverse=True):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["asked"] == wanted:
                begun = Begun(file.parent, wanted, list(map(str, content["runs"])))
                begun.names = [run.folder.name for run in begun.runs()]
                return begun
        except (OSError, ValueError, KeyError, TypeError):
            continue  # somebody else's, or damaged
    begun = Begun(saved.new_folder(runs, name), wanted)
    begun.save()
    return begun
