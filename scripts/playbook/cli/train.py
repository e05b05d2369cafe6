"""The jobs behind the make targets: the command line, what each job needs, and who does it."""

import argparse
from pathlib import Path

from playbook import PROJECT
from playbook.campaign import reuse
from playbook.cli import catalogue, configs, selfcheck
from playbook.compare import model, published
from playbook.launch.progress import shown
from playbook.launch.start import exit_code, find_place, new_folder, ready, show_dry, train
from playbook.plan import earlier_run, place, plan
from playbook.plan.place import Place, Wanted
from playbook.sensitivity import advice
from pretraining.errors import UsageError
from pretraining.record import checkpoint, run_folder
from pretraining.record.run_folder import Verdict
from pretraining.request import flags as training_flags
from pretraining.request.flags import OF_TARGET, fill_in
from pretraining.request.overrides import flag_of
from pretraining.request.precisions import EMULATORS, find_precision
from pretraining.request.recipe import recipe_checks

JOBS = (
    *("train", "nvfp4", "bf16", "compare", "profile", "sensitivity", "ablate", "eval", "export", "sft", "lora"),
    *("show-config", "models", "precisions", "selfcheck", "shell", "attach", "stop"),
)
PROFILED, BEFORE_PROFILED = 5, 10  # iterations of make profile
MEASURED, BEFORE_MEASURED = 2, 48  # of make sensitivity


def parser(prog: str) -> argparse.ArgumentParser:
    """The launcher's flags: the training script's, and where and how to run it."""
    flags = training_flags.parser(prog)
    add = flags.add_argument
    add("--runtime", default="auto", help=", ".join(place.RUNTIMES))
    add("--gpu", help="index or UUID of the GPU (default: the largest that can)")
    add("--tag", help="tag of the NeMo image, or a whole image name")
    add("--container-user", default="", metavar="WHO", help="me or root: who works in a container")
    add("--dry-run", action="store_true", help="print the commands that would train, start nothing")
    add("--nproc", type=int, default=1, metavar="N", help="processes on this machine")
    add("--auto-split", action="store_true", help="the smallest tensor and pipeline sizes that fit")
    add("--fresh", action="store_true", help="train again, whatever finished runs there are")
    add("--run", metavar="NAME", help="the run to attach to, stop, evaluate, export or look into")
    add("--checkpoints", nargs="+", metavar="NAME", help="runs to evaluate by one evaluator, on one text")
    add("--a", metavar="PRECISION", help="the first of a comparison (default bf16)")
    add("--b", metavar="PRECISION", help="the second (default nvfp4); the same as --a is the control")
    add("--repeat", type=int, default=1, metavar="N", help="runs of each precision of a comparison")
    add("--seeds", metavar="'N M'", help="of a comparison or ablation: a run of each arm with each")
    add("--variants", metavar="WORDS", help="of an ablation: recipes, as in 'rht=off | scale=4over6'")
    add("--loss-margin", type=reuse.margin, metavar="%", help="the smallest difference in loss that matters, per cent")
    add("--force", action="store_true", help="compare runs that did not do the same work")
    add("--base", metavar="A", help="what to set the other against: A, B or a precision")
    add("--speed-up", type=published.speed_up, metavar="X", help="of a comparison: one to project, or published")
    add("--budget", default=advice.BUDGET, metavar="SHARE", help="compute that may be in BF16")
    add("--typed", help=argparse.SUPPRESS)  # what make was asked for, to tell how to do it again
    add("--runs", type=Path, default=PROJECT / training_flags.RUNS, help="where run folders go")
    return flags


def run(arguments: list[str] | None = None) -> int:
    """Do what the launcher's command line says. Returns the exit code; what it raises `entry` puts into words."""
    flags = parser("run.py")
    flags.add_argument("job", choices=JOBS, help="what to do")
    args = flags.parse_args(arguments)
    if args.nproc < 1:
        raise UsageError(f"NPROC={args.nproc}: at least one process is needed")
    if args.repeat < 1:
        raise UsageError(f"REPEAT={args.repeat}: at least one run of each is needed")
    code = _without_training(args)
    if code is not None:
        return code
    _fill_in(args)
    precisions = _precisions(args)
    recipe_checks.check_precision(args.nvfp4, *precisions)
    if args.switch and {*precisions} == {"bf16"}:
        raise UsageError("--switch leads to a higher precision, and bf16 is the highest; leave it out")
    if args.emulate and not {"nvfp4", None} & {*precisions}:
        raise UsageError(f"--emulate is for nvfp4 and does nothing for {' and '.join(precisions)}; leave it out")
    where = find_place(wanted(args), *map(find_precision, precisions))
    if args.job == "shell":
        return _shell(args, where)
    if _evaluates_several(args):
        from playbook.campaign import eval_job  # whose libraries take a second to import

        return eval_job.evaluate(args, where)
    if args.job == "ablate":
        from playbook.campaign import ablate_job  # whose libraries take a second to import

        return ablate_job.ablate(args, where)
    if args.job == "compare":
        return _compare(args, precisions, where)
    return _one_run(args, precisions[0], where)


def _without_training(args: argparse.Namespace) -> int | None:
    """Do a job that trains nothing. Returns the exit code, None for any other job."""
    if args.job in ("attach", "stop"):
        return _follow_up(args)
    if args.job == "models":
        return catalogue.models(args)
    if args.job == "precisions":
        return catalogue.precisions()
    if args.job == "show-config":
        return configs.show(args)
    if args.job == "selfcheck":
        return selfcheck.run(args, wanted(args))
    if args.job == "profile" and args.run:
        folder = earlier_run.folder_of(args.run, args.runs)
        if not run_folder.holds_run(folder):
            raise UsageError(f"RUN={args.run} is no run folder, here or in {args.runs}; make history lists the runs")
        _show_found(args, folder, new=False)
        return 0
    if args.job == "sensitivity" and args.run:
        folder = earlier_run.folder_of(args.run, args.runs)
        if (folder / run_folder.SENSITIVITY).is_file():
            default = {**vars(parser("run.py").parse_args([])), "job": args.job}
            own = ("run", "runs", "budget")
            if odd := [name for name, value in vars(args).items() if name not in own and value != default[name]]:
                raise UsageError(
                    f"RUN={args.run} was measured and is shown again, for another BUDGET= perhaps: {flag_of(odd[0])} "
                    "does nothing for it; leave it out"
                )
            _show_found(args, folder, new=False)
            return 0
    return None


def _evaluates_several(args: argparse.Namespace) -> bool:
    return args.job == "eval" and bool(args.checkpoints)


def _fill_in(args: argparse.Namespace) -> None:
    """Set what the job, or the earlier run that it begins with, says of the training, in place."""
    if args.job == "profile":
        fill_in(args, OF_TARGET, profile=PROFILED)
        if args.config is None:
            fill_in(args, OF_TARGET, train_iters=BEFORE_PROFILED + args.profile)
    if args.job == "sensitivity":
        _fill_in_measured(args)
    if _evaluates_several(args):
        args.precision = training_flags.asked_precision(args) or "bf16"
    elif args.job in ("eval", "export"):
        earlier_run.of_run(args)
    elif args.resume:
        earlier_run.like_run(args, earlier_run.folder_of(args.resume, args.runs))
    if args.job in ("sft", "lora"):
        args.finetune = args.finetune or args.job
        fill_in(args, OF_TARGET, precision="bf16")


def _fill_in_measured(args: argparse.Namespace) -> None:
    """Emulated NVFP4 in every layer, unless it is asked for otherwise; from a checkpoint on, where RUN= names one."""
    advice.budget(args.budget)
    fill_in(args, OF_TARGET, sensitivity=MEASURED, bf16_tail_layers=0)
    if training_flags.asked_precision(args) in (None, "nvfp4"):
        fill_in(args, OF_TARGET, precision="nvfp4", emulate=EMULATORS[0])
    if args.run:
        folder = earlier_run.folder_of(args.run, args.runs)
        earlier_run.like_run(args, folder)
        if args.train_iters is None:
            at = checkpoint.find(folder, args.iteration, flag="--run")
            fill_in(args, OF_TARGET, train_iters=at + args.sensitivity)
    elif args.config is None:
        fill_in(args, OF_TARGET, train_iters=BEFORE_MEASURED + args.sensitivity)


def _one_run(args: argparse.Namespace, precision: str, where: Place) -> int:
    """Train, evaluate or export once. Returns the exit code."""
    job = plan.planned(args, precision, where)
    if args.dry_run:
        show_dry(job, args.runs)
        return 0
    ended = train(job.at(ready(where, args.runs)), args.runs)
    if ended.verdict is Verdict.SUCCEEDED:
        _show_found(args, ended.folder, new=True)
    return exit_code(ended)


def _show_found(args: argparse.Namespace, folder: Path, *, new: bool) -> None:
    """Print what the job found. What does it is imported late: a dry run has the standard library alone."""
    if args.job == "eval":
        from playbook.record import loading

        run = loading.load(folder, samples=False)
        where = f"in {run.precision['name']}"
        for line in run.evaluations:
            print(f"{line['split']} loss {shown(line['loss'])} nats a token {where}, iteration {line['iteration']}")
    elif args.job == "profile":
        from playbook.profile import breakdown

        if new:
            breakdown.keep(folder)
        breakdown.show(folder)
    elif args.job == "sensitivity":
        from playbook.sensitivity import shown as sensitivities

        sensitivities.show(folder, advice.budget(args.budget), draw=new)
    elif args.job == "export":
        print(f"exported to {args.export}")


def _compare(args: argparse.Namespace, precisions: tuple[str, ...], where: Place) -> int:
    if args.run_dir is not None:
        raise UsageError("compare makes two runs, so it takes no --run-dir")
    seeds = [args.seed] * args.repeat
    if args.seeds is not None:
        seeds = reuse.seeds(args.seeds)
        if args.seed is not None or args.repeat > 1:
            raise UsageError(
                "SEEDS= are the repeats of a comparison, each with a seed: it takes no --seed and no REPEAT="
            )

    made = {
        seed: [plan.planned(argparse.Namespace(**{**vars(args), "seed": seed}), each, where) for each in precisions]
        for seed in dict.fromkeys(seeds)
    }
    planned = [made[seed] for seed in seeds]
    model.check_long_enough(planned[0][-1].settings.train_iters)
    if args.dry_run:
        for each in planned[:1] if args.seeds is None else planned:
            for job in dict(zip(precisions, each, strict=True)).values():
                show_dry(job, args.runs)
        return 0
    from playbook.campaign import compare_job  # whose libraries take a second to import

    where = ready(where, args.runs)
    return compare_job.compare([[job.at(where) for job in each] for each in planned], args)


def _precisions(args: argparse.Namespace) -> tuple[str, ...]:
    """What the job trains in. PRECISION= is a comparison's second side in place of NVFP4; A= and B= name both."""
    asked = training_flags.asked_precision(args)
    if (args.a or args.b) and args.job != "compare":
        raise UsageError("A= and B= are the two sides of make compare, and of nothing else")
    if args.seeds is not None and args.job not in ("ablate", "compare"):
        raise UsageError("SEEDS= are those of make compare and ablate; of another target ARGS='--seed N' is the one")
    if args.variants is not None and args.job != "ablate":
        raise UsageError("VARIANTS= are those of make ablate; of another target NVFP4= names one recipe")
    if args.loss_margin is not None and args.job != "compare":
        raise UsageError("LOSS_MARGIN= is of make compare, and of nothing else")
    if args.job == "ablate":
        return ("bf16", "nvfp4")
    if args.job in ("eval", "export", "sft", "lora"):
        return (asked,)
    if args.job in ("train", "profile", "sensitivity"):
        return (find_precision(asked or "nvfp4").name,)
    if args.job in ("nvfp4", "bf16") and asked not in (None, args.job):
        raise UsageError(f"make {args.job} trains in {args.job}: make train PRECISION={asked} is the other")
    if args.job != "compare":
        return ({"shell": "bf16"}.get(args.job, args.job),)
    if asked == "bf16":
        raise UsageError("make compare takes no PRECISION=bf16, which is the first side already: A= and B= name both")
    if asked and args.b:
        raise UsageError(f"PRECISION={asked} and B={args.b} both name the second side of the comparison; give one")
    return (find_precision(args.a or "bf16").name, find_precision(args.b or asked or "nvfp4").name)


def _follow_up(args: argparse.Namespace) -> int:
    from playbook.launch.container import underway

    if args.job == "stop":
        underway.stop(args.run, args.runs)
        return 0
    return exit_code(underway.attach(args.run, args.runs))


def _shell(args: argparse.Namespace, where: Place) -> int:
    from playbook.launch.container import foreground, spec

    if where.runtime != "container":
        raise UsageError(f"make shell opens a container, and this job's runtime is {where.runtime}: RUNTIME=container")
    if not args.dry_run:
        where = ready(where, args.runs, alone=False)
    job = plan.planned(args, "bf16", where)
    folder = job.settings.run_dir or new_folder(args.runs, job.settings)
    asked = foreground.shell(spec.training(job.settings, where, folder, [], processes=job.processes))
    if args.dry_run:
        print(spec.script(asked, asked.in_foreground()))
        return 0
    return foreground.run(asked, "make shell")


def wanted(args: argparse.Namespace) -> Wanted:
    """What the flags ask of a place."""
    return Wanted(
        runtime=args.runtime,
        gpu=args.gpu,
        tag=args.tag,
        container_user=args.container_user,
        emulate=bool(args.emulate),
        processes=args.nproc,
        dry_run=args.dry_run,
    )
