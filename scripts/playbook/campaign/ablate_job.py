"""`make ablate`: one model in BF16 and in NVFP4, whole and with one thing changed, with several seeds."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from playbook.campaign import ablation, ablation_report, compare_job, reuse
from playbook.campaign.ablation import BF16, WHOLE, Variant
from playbook.campaign.gather import Turn, gather
from playbook.common.tables import print_table
from playbook.compare import model, saved, stats
from playbook.launch import start
from playbook.plan.place import Place
from playbook.plan.plan import Plan, planned
from playbook.record import loading
from playbook.report import wording
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.record.run_folder import Verdict
from pretraining.request import flags as training_flags
from pretraining.request import nvfp4_recipe
from pretraining.request.models import ABLATED_ON_GPU

SEEDS = [training_flags.SEED + at for at in range(stats.FEWEST)]  # fewer judge nothing
RESULTS = (Verdict.SUCCEEDED, Verdict.DIVERGED)  # the same seed diverges again: nothing is gained by training it twice


class Step(NamedTuple):
    """One run to make."""

    variant: Variant
    seed: int
    plan: Plan

    @property
    def name(self) -> str:
        """As the terminal calls it."""
        return f"{self.variant.name}, seed {self.seed}"


def ablate(args: argparse.Namespace, where: Place) -> int:
    """Do the job. Returns the exit code: 1 where a run failed; a run that diverged is a result.

    Args:
        where: from `place.choose`.

    Raises:
        UsageError: flags that the ablation sets itself, seeds that are none, too few iterations.
        NotStarted, OSError, KeyboardInterrupt: as `launch.start.train`.
    """
    _refuse(args)
    seeds = SEEDS if args.seeds is None else reuse.seeds(args.seeds)
    steps = _steps(args, seeds, where)
    model.check_long_enough(steps[0].plan.settings.train_iters)
    if args.dry_run:
        for step in steps:
            print(f"# {step.name}")
            start.show_dry(step.plan, args.runs)
        return 0
    where = start.ready(where, args.runs)
    steps = [step._replace(plan=step.plan.at(where)) for step in steps]
    study, code = _trained(steps, args)
    if study is None:
        return code
    outcome = study.result(created=run_folder.utc_now(), reproduce=compare_job.typed(args))
    folder = saved.new_folder(args.runs, steps[0].plan.settings.model.name, kind="ablation")
    written = ablation_report.write(outcome, folder)
    show(outcome)
    compare_job.say_written(written)
    return code


def _trained(steps: Sequence[Step], args: argparse.Namespace) -> tuple[ablation.Study | None, int]:
    """The runs, None where there is nothing to set them against; and the exit code."""
    requests = [step.plan.request() for step in steps]
    past = [None] * len(steps) if args.fresh else reuse.reusable(requests, args.runs, RESULTS)
    again = "the same command, without FRESH=1," if args.fresh else "the same command"
    turns = [Turn(step.name, step.plan) for step in steps]
    study, code = ablation.Study(), 0
    for step, (run, ended) in zip(steps, gather(turns, past, args.runs, results=RESULTS, again=again), strict=True):
        if run.verdict not in RESULTS:
            code = 1
            if step.variant == BF16 or run.verdict is Verdict.INTERRUPTED:
                return None, ended
        if step.variant == BF16 and run.verdict is Verdict.DIVERGED:
            print(f"BF16 diverged with seed {step.seed}, and the rest is set against it: SEEDS= without it", flush=True)
            return None, 1
        result = study.add(step.variant, loading.load(run.folder))
        if gap := result.training_loss_gap:
            print(f"  loss gap to BF16 {gap.value:+.2f} % over the last tenth", flush=True)
        elif result.problem:
            code = code or int(result.verdict == Verdict.SUCCEEDED)
            print(f"  no loss gap: {result.problem}", flush=True)
        if step is steps[2 * len({each.seed for each in steps}) - 1]:
            print(ablation.power(study.found[WHOLE], len({each.variant for each in steps})), flush=True)
    return study, code


def show(outcome: ablation.Ablation) -> None:
    """Print the table and what it comes to."""
    print(f"\n{ablation.about(outcome)}\n")
    print_table(ablation_report.table(outcome), left=1)
    print()
    for sentence in filter(None, (outcome.verdict, *ablation.problems(outcome), outcome.scope, outcome.published)):
        print(textwrap.fill(wording.sentence(sentence), 120))


def _refuse(args: argparse.Namespace) -> None:
    """Raise UsageError for what the ablation decides itself, or what it has no place for."""
    ours = {
        "--seed": (args.seed is not None, "SEEDS= names the seeds"),
        "--precision": (args.precision is not None or args.disable_fp4, "it trains in BF16 and in NVFP4"),
        "BF16_TAIL": (args.bf16_tail_layers is not None, "it tries 0, 1 and 2 and the recipe's own"),
        "EMULATE=reference": (args.emulate == "reference", "that emulator has no ingredient to switch off"),
        "--resume": (args.resume is not None, "every run begins with its seed"),
        "--run-dir": (args.run_dir is not None, "every run gets a folder of its own"),
        "REPEAT": (args.repeat > 1, "it repeats over seeds: SEEDS="),
    }
    for name, (given, why) in ours.items():
        if given:
            raise UsageError(f"make ablate takes no {name}: {why}")
    asked = nvfp4_recipe.Nvfp4Recipe.of(training_flags.merged(args).nvfp4)
    if changed := asked.changed():
        raise UsageError(
            f"make ablate takes each ingredient away by itself; leave {nvfp4_recipe.as_text(changed)} out "
            f"({' '.join(nvfp4_recipe.short_forms().values()) or '--nvfp4, or the config file'})"
        )


def _steps(args: argparse.Namespace, seeds: Sequence[int], where: Place) -> list[Step]:
    """Every run in its order: BF16 and the whole recipe with every seed first, then one variant after another."""
    defaulted = training_flags.merged(args).model is None and where.runtime != "cpu"

    def step(variant: Variant, seed: int) -> Step:
        own = {"seed": seed, "bf16_tail_layers": variant.tail} | ({"model": ABLATED_ON_GPU} if defaulted else {})
        own["nvfp4"] = variant.nvfp4
        job = planned(argparse.Namespace(**{**vars(args), **own}), variant.precision, where)
        if defaulted:
            job.choices["model"] = replace(job.choices["model"], reason="make ablate's default with a GPU")
        return Step(variant, seed, job)

    first = [step(variant, seed) for seed in seeds for variant in (BF16, WHOLE)]
    chosen = first[1].plan.settings
    others = ablation.variants(chosen.num_layers, chosen.bf16_head_layers, chosen.bf16_tail_layers)[2:]
    return [*first, *(step(variant, seed) for variant in others for seed in seeds)]
