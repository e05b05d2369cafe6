"""`make ablate`: one model in BF16 and in NVFP4, by the whole recipe and by variants of it, with several seeds."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from playbook.campaign import ablation, ablation_report, compare_job, reuse, variants
from playbook.campaign.gather import Turn, gather
from playbook.campaign.variants import BF16, WHOLE, Variant
from playbook.common.tables import print_table
from playbook.compare import model, saved, stats
from playbook.launch import start
from playbook.plan.place import Place
from playbook.plan.plan import planned
from playbook.record import loading
from playbook.report import wording
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.record.run_folder import Verdict
from pretraining.request import flags as training_flags
from pretraining.request.models import ABLATED_ON_GPU
from pretraining.request.recipe import nvfp4_recipe

SEEDS = [training_flags.SEED + at for at in range(stats.FEWEST)]  # fewer judge nothing
RESULTS = (Verdict.SUCCEEDED, Verdict.DIVERGED)  # the same seed diverges again: nothing is gained by training it twice


@dataclass(frozen=True)
class Step(Turn):
    """One run to make, of a variant with a seed."""

    variant: Variant
    seed: int


def ablate(args: argparse.Namespace, where: Place) -> int:
    """Do the job. Returns the exit code: 1 where a run failed; a run that diverged is a result.

    Raises UsageError: flags that the ablation sets itself, seeds that are none, too few iterations; and what
    `launch.start.train` raises.
    """
    _refuse(args)
    seeds = SEEDS if args.seeds is None else reuse.seeds(args.seeds)
    steps = _steps(args, seeds, where)
    model.check_long_enough(steps[0].plan.settings.train_iters)
    if args.dry_run:
        print(textwrap.indent(_how_many(steps), "# "))
        for step in steps:
            print(f"# {step.name}")
            start.show_dry(step.plan, args.runs)
        return 0
    where = start.ready(where, args.runs)
    steps = [replace(step, plan=step.plan.at(where)) for step in steps]
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
    study, code = ablation.Study(), 0
    missing = [request for request, run in zip(requests, past, strict=True) if run is None]
    long = _how_long(missing, args)
    print("\n".join(filter(None, (_how_many(steps), long))), flush=True)
    for step, (run, ended) in zip(steps, gather(steps, past, args.runs, results=RESULTS, again=again), strict=True):
        if run.verdict not in RESULTS:
            code = 1
            if step.variant == BF16 or run.verdict is Verdict.INTERRUPTED:
                return None, ended
        if step.variant == BF16 and run.verdict is Verdict.DIVERGED:
            print(f"BF16 diverged with seed {step.seed}, and the rest is set against it: SEEDS= without it", flush=True)
            return None, 1
        result = study.add(step.variant, loading.load(run.folder))
        if gap := result.training_loss_gap:
            print(f"  loss gap to BF16 {gap.value:+.2f} % at the end", flush=True)
        elif result.problem:
            code = code or int(result.verdict == Verdict.SUCCEEDED)
            print(f"  no loss gap: {result.problem}", flush=True)
        others = [request for request in missing if request not in requests[:2]]
        if step is steps[1] and not long and (then := _how_long(others, args)):  # one of each precision tells
            print(then, flush=True)
        if step is steps[2 * len({each.seed for each in steps}) - 1] and not study.on_mock:
            print(ablation.power(study.found[WHOLE], len({each.variant for each in steps})), flush=True)
    return study, code


def _how_many(steps: Sequence[Step]) -> str:
    tried = list(dict.fromkeys(step.variant.name for step in steps))
    seeds = len(steps) // len(tried)
    said = f"{len(steps)} runs: {wording.joined(tried)}, each with {seeds} seed{'s' * (seeds > 1)}"
    return textwrap.fill(said, 118, break_on_hyphens=False)


def _how_long(missing: Sequence[reuse.Request], args: argparse.Namespace) -> str:
    """What is to be said of the time that these trainings take; "" where no run tells."""
    seconds = reuse.seconds(missing, args.runs)
    if not seconds:
        return ""
    long = f"{seconds / 3600:.1f} hours" if seconds > 7200 else f"{max(1, round(seconds / 60))} min"
    return f"{len(missing)} to train, about {long} by runs of this size that ended"


def show(outcome: ablation.Ablation) -> None:
    """Print the table and what it comes to."""
    print(f"\n{textwrap.fill(ablation.about(outcome), 120)}\n")
    print_table(ablation_report.table(outcome), left=1)
    print()
    for sentence in filter(None, (outcome.verdict, *ablation.problems(outcome), outcome.scope, outcome.published)):
        print(textwrap.fill(wording.sentence(sentence), 120))


def _refuse(args: argparse.Namespace) -> None:
    """Raise UsageError for what the ablation decides itself, or what it has no place for."""
    ours = {
        "--seed": (args.seed is not None, "SEEDS= names the seeds"),
        "--precision": (args.precision is not None or args.disable_fp4, "it trains in BF16 and in NVFP4"),
        "BF16_TAIL": (args.bf16_tail_layers is not None, "VARIANTS='tail=0' tries none"),
        "EMULATE=reference": (args.emulate == "reference", "that emulator has no ingredient to switch off"),
        "--resume": (args.resume is not None, "every run begins with its seed"),
        "--run-dir": (args.run_dir is not None, "every run gets a folder of its own"),
        "REPEAT": (args.repeat > 1, "it repeats over seeds: SEEDS="),
    }
    for name, (given, why) in ours.items():
        if given:
            raise UsageError(f"make ablate takes no {name}: {why}")
    asked = nvfp4_recipe.Nvfp4Recipe.of(training_flags.merged(args).nvfp4)
    if changed := nvfp4_recipe.as_text(asked.changed()):
        raise UsageError(
            f"make ablate changes the recipe itself: VARIANTS='{changed}' tries this beside the whole one; leave "
            f"{' '.join(nvfp4_recipe.short_forms().values()) or '--nvfp4, --switch, or what the config file says,'} out"
        )


def _steps(args: argparse.Namespace, seeds: Sequence[int], where: Place) -> list[Step]:
    """Every run in its order: BF16 and the whole recipe with every seed first, then one variant after another."""
    defaulted = training_flags.merged(args).model is None and where.runtime != "cpu"

    def step(variant: Variant, seed: int) -> Step:
        own = {"seed": seed, "nvfp4": variant.recipe or None, "bf16_tail_layers": variant.tail}
        own |= {"model": ABLATED_ON_GPU} if defaulted else {}
        job = planned(argparse.Namespace(**{**vars(args), **own}), variant.precision, where)
        if defaulted:
            job.choices["model"] = replace(job.choices["model"], reason="make ablate's default with a GPU")
        return Step(f"{variant.name}, seed {seed}", job, variant, seed)

    first = [step(variant, seed) for seed in seeds for variant in (BF16, WHOLE)]
    chosen = first[1].plan.settings
    if args.variants is None:
        tried = variants.default(chosen.num_layers, chosen.bf16_head_layers, chosen.bf16_tail_layers)
        tried = [variant for variant in tried if _is_possible(variant, partial(step, seed=seeds[0]))]
    else:
        tried = variants.read_all(args.variants)
    others = [step(variant, seed) for variant in tried for seed in seeds]
    _refuse_equal([first[1], *others[:: len(seeds)]])
    return [*first, *others]


def _is_possible(variant: Variant, step: Callable[[Variant], Step]) -> bool:
    """Whether one of the default set is for this place; tell why not where it is one that not every engine has."""
    try:
        step(variant)
    except UsageError as error:
        if variant.name not in variants.REMEDIES:
            raise
        print(f"{variant.name} is left out: {error}", file=sys.stderr)
        return False
    return True


def _refuse_equal(steps: Sequence[Step]) -> None:
    """Raise UsageError where two of these, one of each variant, do the same work here, whatever their words."""
    done: dict[str, str] = {}
    for step in steps:
        settings, request = step.plan.settings, step.plan.request()
        words, at = dict(request["nvfp4"]), settings.switches_at
        _, _, to = words.pop("switch", "").partition(":")
        switch = [at, to] if at is not None and at < settings.train_iters else None
        work = json.dumps({**request, "nvfp4": words, "switch": switch}, sort_keys=True, default=str)
        if other := done.get(work):
            raise UsageError(f"VARIANTS: {step.variant.name} trains as {other} does here; leave one out")
        done[work] = step.variant.name
