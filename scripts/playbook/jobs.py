"""The jobs behind the make targets: one run, or two runs and their comparison."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from playbook import PROJECT, catalogue, comparison, configs, place, plan, stats, table
from playbook.launch import launch
from playbook.place import Place, Wanted
from playbook.progress import Progress
from pretraining import record, settings, shares
from pretraining.errors import UsageError
from pretraining.precision import find_precision
from pretraining.record import Run, Verdict

JOBS = ("nvfp4", "bf16", "compare", "show-config", "models", "precisions", "shell", "attach", "stop")


def parser(prog: str) -> argparse.ArgumentParser:
    """The launcher's flags: the training script's, and where and how to run it."""
    flags = settings.parser(prog)
    flags.add_argument("--runtime", default="auto", help=", ".join(place.RUNTIMES))
    flags.add_argument("--gpu", help="index or UUID of the GPU (default: the largest that can)")
    flags.add_argument("--tag", help="tag of the NeMo image, or a whole image name")
    flags.add_argument("--dry-run", action="store_true", help="print the commands that would train, start nothing")
    flags.add_argument("--nproc", type=int, default=1, metavar="N", help="processes on this machine")
    flags.add_argument("--auto-split", action="store_true", help="the smallest tensor and pipeline sizes that fit")
    flags.add_argument("--fresh", action="store_true", help="train again, whatever finished runs there are")
    flags.add_argument("--run", metavar="NAME", help="the run to attach to or to stop, where several run")
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
    if args.job == "models":
        return catalogue.models(args)
    if args.job == "precisions":
        return catalogue.precisions()
    if args.job == "show-config":
        return configs.show(args)
    precisions = _precisions(args)
    where = place.choose(wanted(args), find_precision(precisions[-1]))
    if args.job == "shell":
        return _shell(args, where)
    if args.job == "compare" and args.run_dir is not None:
        raise UsageError("compare makes two runs, so it takes no --run-dir")
    plans = {precision: _plan(args, precision, where) for precision in precisions}
    if args.dry_run:
        for each in plans.values():
            _show_dry(each, args.runs)
        return 0
    if where.runtime == "container":
        where = place.prepare(where, args.runs)
        plans = {precision: _plan(args, precision, where) for precision in precisions}
    if args.job == "compare":
        return _compare(plans, args)
    return _report(_train(plans[precisions[0]], args.runs))


def _precisions(args: argparse.Namespace) -> tuple[str, ...]:
    """What the job trains in, the most demanding last. PRECISION= takes the place of NVFP4."""
    asked = args.precision
    quantized = "nvfp4" if asked in (None, "bf16") else asked
    if (asked not in (None, "bf16") and args.job == "bf16") or (asked == "bf16" and args.job != "bf16"):
        raise UsageError(f"this target trains in {args.job}; leave --precision and --disable-fp4 out of ARGS")
    if args.disable_fp4 and args.job != "bf16":
        raise UsageError(f"this target trains in {args.job}; leave --precision and --disable-fp4 out of ARGS")
    return {"nvfp4": (quantized,), "shell": ("bf16",), "bf16": ("bf16",), "compare": ("bf16", quantized)}[args.job]


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
        print(container.pasteable(lifecycle.shell_command(asked)))
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
    why = _fit(asked, where) if args.auto_split else ""
    chosen = settings.resolve(asked, on_gpu=where.runtime != "cpu", processes=args.nproc)
    given = _named(argparse.Namespace(**{**vars(args), "config": None}))
    job = plan.make_plan(chosen, where, args.nproc, given, _named(asked) - given)
    if why:
        job.choices["split"] = replace(job.choices["split"], reason=why)
    return job


def _named(args: argparse.Namespace) -> frozenset[str]:
    """The settings that a command line names: by flag, by override, or in its config file."""
    return frozenset(name for name, value in vars(settings.merged(args)).items() if value is not None)


def _fit(asked: argparse.Namespace, where: Place) -> str:
    """Set the sizes that TP=auto stands for, in place. Returns why these; "" where there is nothing to split."""
    if where.gpu is None or where.gpu.memory is None:
        raise UsageError("TP=auto needs a GPU whose memory is known; give TP= and PP= as numbers")
    if asked.nproc == 1:
        return ""
    chosen = settings.resolve(
        argparse.Namespace(**{**vars(asked), "tensor_parallel": 1, "pipeline_parallel": 1, "context_parallel": 1}),
        on_gpu=True,
        processes=asked.nproc,
    )
    fit = shares.smallest(
        chosen.model,
        chosen.precision,
        processes=asked.nproc,
        gpu_bytes=where.gpu.memory,
        micro_batch=asked.micro_batch_size or chosen.micro_batch_size,
        sequence=chosen.sequence_length,
    )
    asked.tensor_parallel, asked.pipeline_parallel = fit.tensor, fit.pipeline
    return fit.reason


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
    progress = Progress(folder, f"{chosen.precision.name} {chosen.model.name}", chosen.train_iters)
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
    if window.last - window.first + 1 < comparison.FEWEST_TIMED:
        raise UsageError(
            f"ITERS={iterations} leaves fewer than {comparison.FEWEST_TIMED} iterations to time, the second half of "
            f"the run: compare over at least {2 * comparison.FEWEST_TIMED}"
        )


def _compare(plans: dict[str, plan.Plan], args: argparse.Namespace) -> int:
    base, new = plans
    _check_long_enough(plans[new].settings.train_iters)
    found = {} if args.fresh else _reusable(plans, args.runs)
    for precision in plans:
        if precision in found:
            folder = found[precision].folder
            print(f"{precision}: reusing {folder.name} (FRESH=1 trains again)", flush=True)
            continue
        found[precision] = _train(plans[precision], args.runs)
        if code := _report(found[precision]):
            return code
    print()
    try:
        result = comparison.compare(found[base], found[new])
    except comparison.NotComparable as refusal:
        table.print_refusal(refusal, sys.stderr, last_way_out="FRESH=1 trains both again.")
        return 1
    folder = args.runs / record.run_name("comparison", plans[new].settings.model.name)
    written = comparison.write(result, folder / comparison.FILE)  # first: the table may go to a pipe that closes
    table.print_comparison(result)
    print("\nWritten:")
    for path in (found[base].folder, found[new].folder, written):
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


def _report(ended: Run) -> int:
    """Say why a run did not succeed, where it did not. Returns the exit code."""
    if slowest := ended.outcome.get("slowest_rank"):
        print(f"  {record.slowest_rank_sentence(slowest)}")
    if ended.verdict is Verdict.SUCCEEDED:
        return 0
    cause = ended.outcome.get("cause", "no outcome was written")
    precision = ended.plan.get("request", {}).get("precision", ended.folder.name)
    for line in ended.outcome.get("traceback", ()):  # of one rank among several
        print(f"  | {line}", file=sys.stderr)
    print(f"{precision}: {ended.verdict}: {cause}\n  all of it: {ended.folder / record.LOG}", file=sys.stderr)
    code = ended.outcome.get("exit_code", 1)
    return code if code in (2, 130) else 1
