"""The jobs behind the make targets: one run, or two runs and their comparison."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from playbook import PROJECT, comparison, plan, table
from playbook.launch import launch
from playbook.progress import Progress
from pretraining import record, settings
from pretraining.errors import UsageError
from pretraining.record import Run, Verdict

COMPARE = ("bf16", "nvfp4")


def run(arguments: list[str] | None = None) -> int:
    """Parse the launcher's command line and do the job. Returns the exit code.

    Raises:
        UsageError, SetupError, OSError, KeyboardInterrupt: for the entry to put into words.
    """
    flags = settings.parser("run.py")
    flags.add_argument("job", choices=["nvfp4", "bf16", "compare"], help="what to do")
    flags.add_argument("--runtime", default="auto", help=", ".join(plan.RUNTIMES))
    flags.add_argument("--nproc", type=int, default=1, metavar="N", help="processes on this machine")
    flags.add_argument("--fresh", action="store_true", help="train again, whatever finished runs there are")
    flags.add_argument("--runs", type=Path, default=PROJECT / settings.RUNS, help="where run folders go")
    args = flags.parse_args(arguments)
    if args.nproc < 1:
        raise UsageError(f"NPROC={args.nproc}: at least one process is needed")
    if args.job == "compare":
        return _compare(args)
    finished = _train(_plan(args, args.job), args.runs)
    return 0 if finished.verdict is Verdict.SUCCEEDED else _exit_code(finished)


def _plan(args: argparse.Namespace, precision: str) -> plan.Plan:
    if args.precision not in (None, precision) or (args.disable_fp4 and precision != "bf16"):
        raise UsageError(f"this target trains in {precision}; leave --precision and --disable-fp4 out of ARGS")
    runtime, reason = plan.choose_runtime(args.runtime)
    asked = argparse.Namespace(**{**vars(args), "precision": precision, "disable_fp4": False})
    chosen = settings.resolve(asked, on_gpu=runtime != "cpu", processes=args.nproc)
    given = {name for name, value in vars(args).items() if value is not None}
    return plan.make_plan(chosen, runtime, reason, args.nproc, given)


def _train(job: plan.Plan, runs: Path) -> Run:
    chosen = job.settings
    folder = chosen.run_dir or _new_folder(runs, chosen)
    try:
        folder.mkdir(parents=True, exist_ok=chosen.run_dir is not None)
    except OSError as error:
        raise UsageError(f"the run folder {folder} cannot be made: {error.strerror}") from error
    command, environment = plan.training_command(job, folder, settings.as_flags(replace(chosen, run_dir=None)))
    print(f"{chosen.precision.name}:")
    plan.show(job, folder)
    job.write(folder, command)
    progress = Progress(folder, f"{chosen.precision.name} {chosen.model.name}", chosen.train_iters)
    finished = launch(command, environment, folder, progress)
    if finished.verdict is not Verdict.SUCCEEDED:
        cause = finished.outcome.get("cause", "no outcome was written")
        print(
            f"{chosen.precision.name}: {finished.verdict}: {cause}\n  all of it: {folder / record.LOG}", file=sys.stderr
        )
    return finished


def _new_folder(runs: Path, chosen: settings.Settings) -> Path:
    while True:
        folder = runs / record.run_name(chosen.precision.name, chosen.model.name)
        if not folder.exists():
            return folder
        time.sleep(0.2)  # two runs within one second


def _compare(args: argparse.Namespace) -> int:
    if args.run_dir is not None:
        raise UsageError("compare makes two runs, so it takes no --run-dir")
    plans = {precision: _plan(args, precision) for precision in COMPARE}
    found = {} if args.fresh else _reusable(plans, args.runs)
    for precision in COMPARE:
        if precision in found:
            folder = found[precision].folder
            print(f"{precision}: reusing {folder.name} (FRESH=1 trains again)", flush=True)
            continue
        found[precision] = _train(plans[precision], args.runs)
        if found[precision].verdict is not Verdict.SUCCEEDED:
            return _exit_code(found[precision])
    print()
    try:
        result = comparison.compare(found["bf16"], found["nvfp4"])
    except comparison.NotComparable as refusal:
        table.print_refusal(refusal, sys.stderr)
        print("FRESH=1 trains both again.", file=sys.stderr)
        return 1
    folder = args.runs / record.run_name("comparison", plans["nvfp4"].settings.model.name)
    written = comparison.write(result, folder / comparison.FILE)  # first: the table may go to a pipe that closes
    table.print_comparison(result)
    print("\nWritten:")
    for path in (found["bf16"].folder, found["nvfp4"].folder, written):
        print(f"  {path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path}")
    return 0


def _reusable(plans: dict[str, plan.Plan], runs: Path) -> dict[str, Run]:
    """The newest finished run of each precision that did what is asked; of pairs, the newest with equal facts."""
    finished: dict[str, list[Run]] = {precision: [] for precision in plans}
    for folder in sorted(runs.glob("*/"), reverse=True):
        if not (folder / record.OUTCOME).exists():
            continue
        try:
            past = record.read_run(folder)
        except (ValueError, OSError):
            continue
        for precision, wanted in plans.items():
            if past.verdict is Verdict.SUCCEEDED and past.plan.get("request") == wanted.request():
                finished[precision].append(past)
    first, second = plans
    for one in finished[first]:
        for other in finished[second]:
            if one.parity == other.parity:
                return {first: one, second: other}
    # No equal pair: one side is trained anew, and only facts of today's software can match it.
    newest = [found[0] for found in finished.values() if found]
    return {} if len(newest) != 1 else {newest[0].plan["request"]["precision"]: newest[0]}


def _exit_code(ended: Run) -> int:
    code = ended.outcome.get("exit_code", 1)
    return code if code in (2, 130) else 1
