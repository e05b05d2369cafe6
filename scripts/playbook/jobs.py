"""The jobs behind the make targets: one run, or two runs and their comparison."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from playbook import (
    PROJECT,
    arms,
    catalogue,
    checkpoints,
    comparison,
    comparison_file,
    configs,
    loading,
    parity,
    place,
    plan,
    repeats,
    report,
    stats,
    table,
)
from playbook.launch import launch
from playbook.place import Place, Wanted
from playbook.progress import Progress
from pretraining import record, settings, switches
from pretraining.errors import UsageError
from pretraining.precision import find_precision
from pretraining.record import Run, Verdict

JOBS = (
    *("nvfp4", "bf16", "compare", "eval", "export", "sft", "lora"),
    *("show-config", "models", "precisions", "shell", "attach", "stop"),
)


def parser(prog: str) -> argparse.ArgumentParser:
    """The launcher's flags: the training script's, and where and how to run it."""
    flags = settings.parser(prog)
    flags.add_argument("--runtime", default="auto", help=", ".join(place.RUNTIMES))
    flags.add_argument("--gpu", help="index or UUID of the GPU (default: the largest that can)")
    flags.add_argument("--tag", help="tag of the NeMo image, or a whole image name")
    flags.add_argument("--dry-run", action="store_true", help="print the commands that would train, start nothing")
    flags.add_argument("--nproc", type=int, default=1, metavar="N", help="processes on this machine")
    flags.add_argument("--fresh", action="store_true", help="train again, whatever finished runs there are")
    flags.add_argument("--run", metavar="NAME", help="the run to attach to, to stop, to evaluate or to export")
    flags.add_argument("--a", metavar="PRECISION", help="the first of a comparison (default bf16)")
    flags.add_argument("--b", metavar="PRECISION", help="the second (default nvfp4); the same as --a is the control")
    flags.add_argument("--repeat", type=int, default=1, metavar="N", help="runs of each precision of a comparison")
    flags.add_argument("--base", metavar="A", help="what to set the other against: A, B or a precision")
    flags.add_argument("--typed", help=argparse.SUPPRESS)  # what make was asked for, to tell how to do it again
    flags.add_argument("--runs", type=Path, default=PROJECT / settings.RUNS, help="where run folders go")
    return flags


def run(arguments: list[str] | None = None) -> int:
    """Parse the launcher's command line and do the job. Returns the exit code.

    Raises:
        UsageError, SetupError, NotStarted, OSError, KeyboardInterrupt: for the entry to put into words.
    """
    flags = parser("run.py")
    flags.add_argument("job", choices=JOBS, help="what to do")
    args = flags.parse_args(arguments)
    if args.nproc < 1:
        raise UsageError(f"NPROC={args.nproc}: at least one process is needed")
    if args.job in ("attach", "stop"):
        return _follow_up(args)
    if args.repeat < 1:
        raise UsageError(f"REPEAT={args.repeat}: at least one run of each is needed")
    if args.job == "models":
        return catalogue.models(args)
    if args.job == "precisions":
        return catalogue.precisions()
    if args.job == "show-config":
        return configs.show(args)
    if args.job in ("eval", "export"):
        checkpoints.of_run(args)
    elif args.resume:
        checkpoints.like_run(args, checkpoints.folder_of(args.resume, args.runs))
    if args.job in ("sft", "lora"):
        args.tune = args.tune or args.job
        args.precision = args.precision or "bf16"
    precisions = _precisions(args)
    where = place.choose(wanted(args), max(map(find_precision, precisions), key=lambda each: bool(each.capabilities)))
    if args.job == "shell":
        return _shell(args, where)
    if args.job == "compare" and args.run_dir is not None:
        raise UsageError("compare makes two runs, so it takes no --run-dir")
    plans = [_plan(args, precision, where) for precision in precisions]
    if args.dry_run:
        for each in dict(zip(precisions, plans, strict=True)).values():
            _show_dry(each, args.runs)
        return 0
    if where.runtime == "container":
        where = place.prepare(where, args.runs)
        plans = [_plan(args, precision, where) for precision in precisions]
    if args.job == "compare":
        return _compare(plans, args)
    ended = _train(plans[0], args.runs)
    if args.job == "eval" and ended.evaluations:
        checkpoints.show_evaluation(ended)
    if args.job == "export" and ended.verdict is Verdict.SUCCEEDED:
        print(f"exported to {args.export}")
    return _report(ended)


def _precisions(args: argparse.Namespace) -> tuple[str, ...]:
    """What the job trains in. PRECISION= takes the place of NVFP4; A= and B= name both sides of a comparison."""
    asked = args.precision
    if (args.a or args.b) and args.job != "compare":
        raise UsageError("A= and B= are the two sides of make compare, and of nothing else")
    if args.job in ("eval", "export", "sft", "lora"):
        return (asked,)
    quantized = "nvfp4" if asked in (None, "bf16") else asked
    if (asked not in (None, "bf16") and args.job == "bf16") or (asked == "bf16" and args.job != "bf16"):
        raise UsageError(f"this target trains in {args.job}; leave --precision and --disable-fp4 out of ARGS")
    if args.disable_fp4 and args.job != "bf16":
        raise UsageError(f"this target trains in {args.job}; leave --precision and --disable-fp4 out of ARGS")
    both = (find_precision(args.a or "bf16").name, find_precision(args.b or quantized).name)
    return {"nvfp4": (quantized,), "shell": ("bf16",), "bf16": ("bf16",), "compare": both}[args.job]


def _follow_up(args: argparse.Namespace) -> int:
    from playbook import lifecycle

    if args.job == "stop":
        lifecycle.stop(args.run)
        return 0
    return _report(lifecycle.attach(args.run))


def _shell(args: argparse.Namespace, where: Place) -> int:
    from playbook import lifecycle
    from playbook.runtimes import container

    if where.runtime != "container":
        raise UsageError(f"make shell opens a container, and this job's runtime is {where.runtime}: RUNTIME=container")
    if not args.dry_run:
        where = place.prepare(where, args.runs, alone=False)
    job = _plan(args, "bf16", where)
    folder = job.settings.run_dir or _new_folder(args.runs, job.settings)
    asked = plan.container_of(job, folder, [])
    if args.dry_run:
        print(container.script(asked, lifecycle.shell_command(asked)))
        return 0
    return lifecycle.shell(asked, folder)


def wanted(args: argparse.Namespace) -> Wanted:
    """What the flags ask of a place."""
    return Wanted(
        runtime=args.runtime,
        gpu=args.gpu,
        tag=args.tag,
        emulate=args.emulate,
        processes=args.nproc,
        dry_run=args.dry_run,
    )


def _plan(args: argparse.Namespace, precision: str, where: Place) -> plan.Plan:
    emulate = args.emulate and precision == "nvfp4"  # of a comparison, one side alone
    asked = argparse.Namespace(**{**vars(args), "precision": precision, "disable_fp4": False, "emulate": emulate})
    chosen = settings.resolve(asked, on_gpu=where.runtime != "cpu", processes=args.nproc)
    given = _named(argparse.Namespace(**{**vars(args), "config": None}))
    return plan.make_plan(chosen, where, args.nproc, given, _named(asked) - given)


def _named(args: argparse.Namespace) -> frozenset[str]:
    """The settings that a command line names: by flag, by override, or in its config file."""
    return frozenset(name for name, value in vars(settings.merged(args)).items() if value is not None)


def _show_dry(job: plan.Plan, runs: Path) -> None:
    """The plan as comments, and the command: what is printed is a shell script."""
    chosen = job.settings
    folder = chosen.run_dir or _new_folder(runs, chosen)
    ready = plan.prepare(job, folder, settings.as_flags(replace(chosen, run_dir=None)))
    print(f"# {chosen.precision.name}, not started")
    plan.show(job, folder, margin="#   ")
    print(f"{ready.typed}\n", flush=True)


def _train(job: plan.Plan, runs: Path) -> Run:
    chosen = job.settings
    folder = chosen.run_dir or _new_folder(runs, chosen)
    if record.holds_run(folder):
        raise UsageError(f"--run-dir {folder} already holds a run; a run is never overwritten: name another")
    ready = plan.prepare(job, folder, settings.as_flags(replace(chosen, run_dir=None)))
    try:
        folder.mkdir(parents=True, exist_ok=chosen.run_dir is not None)
    except OSError as error:
        if chosen.run_dir is None and folder.is_dir():  # another launcher was first, within the same second
            return _train(job, runs)
        raise UsageError(f"the run folder {folder} cannot be made: {error.strerror}") from error
    print(f"{chosen.precision.name}:")
    plan.show(job, folder)
    job.write(folder, ready.words)
    iterations = chosen.train_iters if chosen.trains else 0
    progress = Progress(folder, f"{chosen.precision.name} {chosen.model.name}", iterations)
    return launch(ready.start, folder, progress)


def _new_folder(runs: Path, chosen: settings.Settings) -> Path:
    while True:
        folder = runs / record.run_name(chosen.precision.name, chosen.model.name)
        if not folder.exists():
            return folder
        time.sleep(0.2)  # two runs within one second


def _check_long_enough(iterations: int) -> None:
    """Raise UsageError before two trainings whose comparison would be refused for too few timed iterations."""
    window = stats.timing_window(0, iterations)
    if window.last - window.first + 1 < parity.FEWEST_TIMED:
        raise UsageError(
            f"ITERS={iterations} leaves fewer than {parity.FEWEST_TIMED} iterations to time, the second half of "
            f"the run: compare over at least {2 * parity.FEWEST_TIMED}"
        )


def _compare(plans: list[plan.Plan], args: argparse.Namespace) -> int:
    _check_long_enough(plans[-1].settings.train_iters)
    runs, begun = _gather(plans, args)
    if isinstance(runs, int):
        return runs
    print()
    order = repeats.turns(args.repeat)
    loaded = loading.load_all([run.folder for run in runs])
    groups = [[run for run, arm in zip(loaded, order, strict=True) if arm == wanted] for wanted in (0, 1)]
    try:
        result = comparison.compare(groups, baseline=args.base or "", reproduce=_typed(args))
    except comparison.NotComparable as refusal:
        table.print_refusal(refusal, sys.stderr, last_way_out="FRESH=1 trains all of them again.")
        return 1
    folder = begun.folder if begun else comparison_file.new_folder(args.runs, plans[-1].settings.model.name)
    written = comparison_file.write(result, folder / comparison_file.FILE)  # first: the table may go to a closed pipe
    page, *_ = report.write(result, dict(zip(arms.names(len(groups)), groups, strict=True)), folder)
    if begun:
        begun.done()
    table.print_comparison(result)
    print("\nWritten:")
    for path in (*(run.folder for run in runs), written, page):
        print(f"  {path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path}")
    return 0


def _gather(plans: list[plan.Plan], args: argparse.Namespace) -> tuple[list[Run] | int, repeats.Begun | None]:
    """The comparison's runs in their order, trained where they are missing; or the exit code of one that failed."""
    requests = [each.request() for each in plans]
    order = repeats.turns(args.repeat)
    begun = None
    if args.fresh:
        begun = repeats.begin(requests, args.repeat, plan.git_commit(), args.runs, plans[-1].settings.model.name)
        done = begun.runs()
        found: list[Run | None] = [*done, *[None] * (len(order) - len(done))]
        if done:
            progress = f"{len(done)} of {len(order)} runs are done"
            print(f"going on with {begun.folder.name}: {progress} (remove it to begin anew)")
    else:
        found = repeats.reusable(requests, args.repeat, args.runs)
    for turn, arm in enumerate(order):
        job, past = plans[arm], found[turn]
        if past is not None:
            if not begun:
                print(f"{job.settings.precision.name}: reusing {past.folder.name} (FRESH=1 trains again)", flush=True)
            continue
        if args.repeat > 1:
            print(f"run {turn + 1} of {len(order)}, {'AB'[arm]}:")
        try:
            trained = _train(job, args.runs)
        except KeyboardInterrupt:
            left = sum(run is None for run in found)
            print(f"{len(order) - left} of {len(order)} runs are done; the same command goes on there", file=sys.stderr)
            raise
        if code := _report(trained):
            return code, begun
        found[turn] = trained
        if begun:
            begun.add(trained)
    return [run for run in found if run is not None], begun


def _typed(args: argparse.Namespace) -> str:
    """The command that makes this comparison again, with the switches of the recipe that were set."""
    switched = [f"{name}={os.environ[name]}" for name in switches.NAMES if name in os.environ]
    command = args.typed or shlex.join([".venv/host/bin/python", "scripts/run.py", *sys.argv[1:]])
    return " ".join([*switched, command])


def _report(ended: Run) -> int:
    """Say why a run did not succeed, where it did not. Returns the exit code."""
    if ended.verdict is Verdict.SUCCEEDED:
        return 0
    cause = ended.outcome.get("cause", "no outcome was written")
    precision = ended.plan.get("request", {}).get("precision", ended.folder.name)
    print(f"{precision}: {ended.verdict}: {cause}\n  all of it: {ended.folder / record.LOG}", file=sys.stderr)
    code = ended.outcome.get("exit_code", 1)
    return code if code in (2, 130) else 1
