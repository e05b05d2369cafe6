"""`make compare`: the runs of both arms, trained where they are missing, or those that are named; then the comparison.

Whichever it is, `conclude` does the rest: it compares, writes, shows, and gives the exit code.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from playbook import PROJECT, report
from playbook.campaign import reuse
from playbook.campaign.gather import Turn, gather
from playbook.compare import comparison, saved
from playbook.plan import plan
from playbook.record import loading
from playbook.report import terminal
from pretraining.record.run_folder import Run
from pretraining.request.recipe import nvfp4_recipe


def compare(pairs: Sequence[Sequence[plan.Plan]], args: argparse.Namespace) -> int:
    """Compare what both arms were asked for, plans of both for each repeat or seed. Returns the exit code.

    Raises UsageError where no arm is called what `--base` says; and what `launch.start.train` raises.
    """
    model = pairs[0][1].settings.model.name
    order = reuse.turns(len(pairs))
    runs, begun = _gather(pairs, args, model)
    if isinstance(runs, int):
        return runs
    print()
    loaded = loading.load_all([run.folder for run in runs])
    groups = [
        comparison.in_order([run for run, (_, arm) in zip(loaded, order, strict=True) if arm == wanted])
        for wanted in (0, 1)
    ]
    return conclude(
        groups,
        args,
        (begun.folder if begun else saved.new_folder(args.runs, model)) / saved.FILE,
        reproduce=typed(args),
        ways_out=("FRESH=1 trains all of them again.", terminal.FORCE_BY_MAKE),
        settled=begun.done if begun else lambda: None,
    )


def conclude(
    groups: Sequence[Sequence[Run]],
    args: argparse.Namespace,
    target: Path | None,
    *,
    reproduce: str,
    ways_out: Sequence[str],
    settled: Callable[[], None] = lambda: None,
) -> int:
    """Compare, write and show. Returns the exit code.

    Args:
        args: with `base`, `force`, `speed_up` and `loss_margin`.
        target: a `saved.FILE`, whose folder gets the report too, or another JSON file; None writes nothing.
        ways_out: sentences that end a refusal.
        settled: called when nothing is left to be gone on with.

    Raises UsageError where no arm is called what `--base` says, and OSError.
    """
    given = {name: getattr(args, name) for name in ("force", "speed_up", "loss_margin")}
    try:
        result = comparison.compare(groups, baseline=args.base or "", reproduce=reproduce, **given)
    except comparison.NotComparable as refusal:
        settled()  # or the next FRESH=1 would find the same runs
        terminal.print_refusal(refusal, sys.stderr, *ways_out)
        return 1
    written: list[Path] = []
    if target and target.name == saved.FILE:
        written = report.write(result, comparison.named(groups), target.parent)[:2]
    elif target:
        written = [saved.write(result, target)]
    settled()
    terminal.print_comparison(result)  # last, as it may go to a closed pipe
    say_written(written)
    return 0


def say_written(paths: Sequence[Path]) -> None:
    """List what was written, those of the project below it."""
    if paths:
        print("\nWritten:")
    for path in paths:
        print(f"  {path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path}")


def _gather(
    pairs: Sequence[Sequence[plan.Plan]], args: argparse.Namespace, model: str
) -> tuple[list[Run] | int, reuse.Begun | None]:
    """The comparison's runs in their order, trained where they are missing; or the exit code of one that failed."""
    order = reuse.turns(len(pairs))
    plans = [pairs[pair][arm] for pair, arm in order]
    asked = [each.request() for each in plans]
    begun = None
    if args.fresh:
        begun = reuse.begin(asked, args.runs, model)
        done = begun.runs()
        past: list[Run | None] = [*done, *[None] * (len(plans) - len(done))]
        if done:
            progress = f"{len(done)} of {len(plans)} runs are done"
            print(f"going on with {begun.folder.name}: {progress} (remove it to begin anew)")
    else:
        past = reuse.reusable(asked, args.runs, unlike=args.force)
    turns = []
    for (_, arm), each in zip(order, plans, strict=True):
        seed = f", seed {each.settings.seed}" if args.seeds else ""
        turns.append(Turn(f"{'AB'[arm]}{seed}" if len(plans) > 2 else each.settings.precision.name, each))
    found = []
    for run, code in gather(turns, past, args.runs, said=not begun):
        if code:
            return code, begun
        found.append(run)
        if begun and run not in past:
            begun.add(run)
    return found, begun


def typed(args: argparse.Namespace) -> str:
    """The command that makes this comparison or ablation again, with the switches of the recipe that were set."""
    switched = [shlex.quote(each) for each in (*nvfp4_recipe.short_forms().values(), *nvfp4_recipe.engine_switches())]
    command = args.typed or shlex.join([".venv/host/bin/python", "scripts/run.py", *sys.argv[1:]])
    return " ".join([*switched, command])
