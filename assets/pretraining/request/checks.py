"""What a command line asks for, checked one by one before anything heavy is imported. No torch in this module."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretraining.errors import UsageError, unknown
from pretraining.inputs import finetuning, manifest, tokenizer_folder
from pretraining.inputs.instructions import FIELDS
from pretraining.record import checkpoint, run_folder, schema
from pretraining.request import blends, footprint, nvfp4_recipe, pretrained
from pretraining.request.models import MOCK, MODELS, PYTHON_STDLIB, Model
from pretraining.request.precisions import EMULATORS, NEVER, PRECISIONS, LateSwitch, Precision
from pretraining.request.recipe.kept_in_bf16 import PROJECTIONS


def tuned(args: argparse.Namespace, model: Model, *, on_gpu: bool) -> bool:
    """Whether the tuned preset is on. Raises UsageError where it cannot run: a graph repeats what it has recorded."""
    why = None
    if not on_gpu:
        why = "the CPU runtime has no CUDA graphs"
    elif args.emulate == "reference":
        why = "--emulate reference has not been tried in a CUDA graph"
    elif args.sensitivity:
        why = "--sensitivity looks at each layer's products, of which a CUDA graph tells nothing"
    elif model.expert_parallel > 1:
        why = f"{model.name}'s experts get another number of tokens each time, which a CUDA graph cannot replay"
    if args.tuned and why:
        raise UsageError(f"--tuned: {why}; leave it out")
    return args.tuned


def emulator(args: argparse.Namespace, model: Model, precision: Precision) -> str | None:
    """What computes NVFP4 without FP4 tensor cores. Raises UsageError where it cannot."""
    if args.emulate and not precision.fp4:
        raise UsageError(f"--emulate is for nvfp4 and does nothing for {precision.name}; leave it out")
    if args.emulate and footprint.shape_of(model.hf_config).experts:
        raise UsageError(
            f"--emulate cannot train {model.name}: Transformer Engine computes its experts' products in one call that "
            "takes none but its own tensors; train it in another precision, or a model without experts"
        )
    return args.emulate


def recipe(
    args: argparse.Namespace,
    model: Model,
    precision: Precision,
    emulator: str | None,
    *,
    native: bool,
    layers: int,
    ends: tuple[int, int],
) -> nvfp4_recipe.Nvfp4Recipe | None:
    """How NVFP4 trains: as asked for, else as the run that is resumed did; None in another precision.

    Args:
        args: merged, so that `nvfp4` says all that was asked for.
        model, precision, emulator: of the run.
        native: Transformer Engine's own kernels compute it.
        layers: of the model.
        ends: how many of the first and of the last of them are in BF16.

    Raises:
        UsageError: words that the emulator, the engine or the model does not know, or another recipe than the resumed
            run's.
    """
    if not precision.fp4:
        return None
    facts = _past_precision(args, precision)
    past = nvfp4_recipe.Nvfp4Recipe.recorded(facts["ingredients"]) if "ingredients" in facts else None
    found = nvfp4_recipe.Nvfp4Recipe.of({**(past.words() if past else {}), **args.nvfp4})
    if emulator == "reference":
        if others := not_of_the_reference(found):
            raise UsageError(
                f"--emulate reference rounds to nearest and knows no other change of the recipe: leave "
                f"{' and '.join(f'{word}={found.changed()[word]}' for word in others)} out"
            )
        kept = {name: getattr(found, name) for name in ("switch", "in_bf16", "primary")}
        found = nvfp4_recipe.Nvfp4Recipe(stochastic=False, **kept)
    if found.chosen_by != nvfp4_recipe.Nvfp4Recipe.chosen_by and not found.four_over_six:
        raise UsageError(f"error={found.chosen_by} is how scale=4over6 chooses; write both, or leave it out")
    if found.in_bf16:
        if footprint.shape_of(model.hf_config).experts:
            raise UsageError(
                f"bf16={found.in_bf16} in --nvfp4: not every layer of {model.name} has {', '.join(PROJECTIONS)}; leave "
                "it out, or keep whole layers in BF16 (--bf16-head-layers, --bf16-tail-layers)"
            )
        kept = found.kept_in_bf16.of(layers, range(ends[0], layers - ends[1]))
        found = replace(found, in_bf16=str(kept))
    if native and (why := not_native(found)):
        raise UsageError(why)
    # Where it switches may change before it has, see `late_switch`.
    if past and replace(past, switch=found.switch) != found and args.trains and not args.sensitivity:
        raise UsageError(
            f"--resume {args.resume} was trained with {nvfp4_recipe.as_text(past.words())}, and this asks for "
            f"{nvfp4_recipe.as_text(found.words())}: leave --nvfp4 and the like out, or begin anew"
        )
    return found


def _past_precision(args: argparse.Namespace, precision: Precision) -> dict[str, Any]:
    """The record's facts of precision of the run that is resumed; {} where there is none, or it was in another.

    Raises:
        Damaged: its recipe is none.
    """
    known = args.resume and run_folder.holds_run(args.resume)
    facts = run_folder.read_facts(args.resume).precision if known else {}
    for name, value in facts.get("ingredients", {}).items():
        if name in nvfp4_recipe.TITLES and not nvfp4_recipe.is_spelled(name, value):
            found = f"precision.ingredients.{name} is {schema.shown(value)}, which no run is trained with"
            raise schema.Damaged(run_folder.there(args.resume / run_folder.ENVIRONMENT), found)
    return facts if facts.get("name") == precision.name else {}


def not_of_the_reference(found: nvfp4_recipe.Nvfp4Recipe) -> list[str]:
    """The words that Transformer Engine's reference quantizer does not know; it rounds to nearest, whatever is said."""
    knows = {"stochastic", "bf16", "primary"} | ({"switch"} if not found.switch.endswith(":forward") else set())
    return [word for word in found.changed() if word not in knows]


def not_native(found: nvfp4_recipe.Nvfp4Recipe) -> str:
    """What Transformer Engine's own kernels do not compute (read: 2.20), and what would; "" where they do."""
    if found.four_over_six in ("all", "activations") and found.rht:
        return (
            f"scale={found.words()['scale']}: Transformer Engine's kernels choose no scale of a tensor with a Hadamard "
            "transform; scale=4over6:weights works, or rht=off beside it, or --emulate (EMULATE=1)"
        )
    return ""


def late_switch(
    args: argparse.Namespace,
    precision: Precision,
    recipe: nvfp4_recipe.Nvfp4Recipe | None,
    sizes: dict[str, int],
    past: int | None,
    *,
    on_gpu: bool,
) -> dict[str, Any]:
    """The settings of a late switch: `switch`, which of NVFP4 stands in its recipe, and `switches_at`.

    Of a run that trains nothing, it is where it was.

    Args:
        args: merged.
        precision, recipe: of the run.
        sizes: with `train_iters`.
        past: the iteration of the checkpoint that the run begins with.
        on_gpu: whether it trains on one.

    Raises:
        UsageError: there is nothing to switch from or to, the run ends before it, or the iterations up to that
            checkpoint were trained otherwise.
    """
    if not precision.quantized:
        if args.switch not in (None, NEVER):
            raise UsageError(f"--switch leads to a higher precision, and {precision.name} is the highest; leave it out")
        return {"switch": None, "switches_at": None}
    of_past = _past_precision(args, precision)
    said = of_past.get("ingredients", {}).get("switch") or NEVER
    word = (recipe.switch or NEVER) if recipe else args.switch or said
    switch = LateSwitch.of(word)
    if switch:
        _check_target(switch, args, precision, on_gpu=on_gpu)
    before = of_past.get("switches_at")
    if not args.trains:
        at = before if switch else None
    else:
        iterations = sizes["train_iters"]
        at = switch.first(iterations) if switch else None
        if at is not None and at > iterations:
            raise UsageError(
                f"--switch {switch} comes after the last of {iterations} iterations; lower it, or train longer"
            )
        if past:
            _check_past(args, precision, (before, said), (at, switch), past)
    return {"switch": None if recipe or word == said == NEVER else word, "switches_at": at}


def _check_target(switch: LateSwitch, args: argparse.Namespace, precision: Precision, *, on_gpu: bool) -> None:
    if switch.to == precision.name:
        raise UsageError(f"--switch {switch} leads from {precision.name} to {precision.name}; leave it out")
    if not on_gpu and switch.precision and not switch.precision.on_cpu:
        raise UsageError(f"--switch {switch}: {switch.to} needs {switch.precision.needs}, and no GPU was found")
    if args.tuned:
        raise UsageError(f"--tuned replays each iteration as it was first, and so cannot --switch {switch}; drop one")


def _check_past(
    args: argparse.Namespace,
    precision: Precision,
    theirs: tuple[int | None, str],
    ours: tuple[int | None, LateSwitch | None],
    past: int,
) -> None:
    """Raise UsageError where the resumed run has switched, up to iteration `past`, and this would have otherwise.

    `theirs`, `ours`: how many iterations come before the switch, and the switch.
    """
    (before, said), (at, switch) = theirs, ours
    then, now = (past if each is None else min(each, past) for each in (before, at))
    to = LateSwitch.read(said).to if then < past else None
    if then != now or (to and to != switch.to):
        raise UsageError(
            f"--resume {args.resume} trained {then} of its {past} iterations in {precision.name}"
            f"{f' and the others by {before}:{to}' if to else ''}, and --switch {switch or NEVER} says "
            f"otherwise: write --switch {f'{before}:{to}' if to else f'{past} or later'}"
        )


def profile(last: int | None, iterations: int, *, trains: bool, resumed: bool) -> int | None:
    """How many iterations to profile. Raises UsageError where they are not there, with one to warm up before them."""
    if last is not None and resumed:
        raise UsageError("--profile records the last iterations, and a --resume may leave fewer; leave it out")
    if last is not None and not trains:
        raise UsageError("--profile looks at training, and this run trains nothing; leave it out")
    if last is not None and not 1 <= last < iterations:
        raise UsageError(
            f"--profile {last} of {iterations} iterations: at least 1 is profiled, with 1 before it to warm up; "
            f"make profile takes the last 5, so ITERS= (--train-iters) is 6 or more"
        )
    return last


def sensitivity(args: argparse.Namespace, precision: Precision, found: dict[str, Any]) -> int | None:
    """How many iterations to measure. Raises UsageError where they are not there, or not in NVFP4 as it is emulated.

    `found`: settings that are known by now, and whether it trains on a GPU.
    """
    last, iterations, at = args.sensitivity, found["train_iters"], found["switches_at"]
    if last is None:
        return None
    if not precision.fp4:
        raise UsageError(f"--sensitivity measures NVFP4's rounding, and {precision.name} has none; leave it out")
    if not args.trains or args.profile:
        raise UsageError("--sensitivity measures a training, which nothing else watches; leave the other flag out")
    if found["on_gpu"] and found["emulate"] != EMULATORS[0]:
        raise UsageError("--sensitivity measures what the emulation rounds: add --emulate (EMULATE=1)")
    left = iterations - (found["iteration"] or 0)
    if not 1 <= last <= left:
        raise UsageError(
            f"--sensitivity {last} with {left} left to train: at least 1 is measured, at most all; raise --train-iters"
        )
    if at is not None and at < iterations:
        raise UsageError(
            f"--sensitivity measures NVFP4, which the late switch ends after {at} of {iterations} iterations; leave "
            "--switch out"
        )
    return last


def check_cpu(model: Model, precision: Precision) -> None:
    """Raise UsageError where the model or the precision needs a GPU."""
    if not model.on_cpu:
        small = [name for name, each in MODELS.items() if each.on_cpu]
        raise UsageError(f"{model.name} needs a GPU and none was found; without one: --model {' or '.join(small)}")
    if not precision.on_cpu:
        here = [name for name, each in PRECISIONS.items() if each.on_cpu]
        raise UsageError(
            f"{precision.name} needs {precision.needs}, and no GPU was found; "
            f"without one: --precision {' or '.join(here)}"
        )


def micro_batch_size(given: int | None, model: Model, sizes: dict[str, int], replicas: int) -> int:
    """The micro batch size given, or the model's own, or the largest below it that divides.

    Args:
        given: the flag.
        sizes: with `global_batch_size`.
        replicas: copies of the model that share it.

    Raises:
        UsageError: one does not divide the other; it names the nearest that does.
    """
    batch = sizes["global_batch_size"]
    if batch % replicas:
        raise UsageError(
            f"--global-batch-size {batch} does not divide over {replicas} model replicas; take a multiple of {replicas}"
        )
    share = batch // replicas
    if given is None:  # the model's own, or the largest below it that divides
        return next(size for size in range(min(model.micro_batch_size, share), 0, -1) if share % size == 0)
    if given < 1 or share % given:
        divisors = [size for size in range(1, share + 1) if share % size == 0]
        near = max((size for size in divisors if size <= max(given, 1)), default=1)
        raise UsageError(
            f"--global-batch-size {batch} is not divisible by --micro-batch-size {given} x {replicas} "
            f"model replica{'s' if replicas > 1 else ''}; --micro-batch-size {near} would be"
        )
    return given


def data(data: str, model: Model) -> tuple[str, dict[str, blends.Blend]]:
    """The data in the words of `blends.py`, and the blends that they are.

    Raises:
        UsageError: a file is missing, or its vocabulary too large.
    """
    if data in (MOCK, PYTHON_STDLIB):
        return data, {}
    parsed = blends.parse(data)
    words = model.hf_config["vocab_size"]
    for prefix in blends.prefixes(parsed):
        try:
            known = manifest.read(prefix)
        except ValueError as error:
            raise UsageError(f"--data {prefix}: {error}") from error
        if known and known.vocabulary_size > words:
            raise UsageError(
                f"--data {prefix} was tokenized by {known.tokenizer} into {known.vocabulary_size} words, and "
                f"{model.name} has {words}: {_with_words(known.vocabulary_size)}`make data` with a tokenizer that fits "
                f"{model.name}"
            )
    return blends.as_words(parsed), parsed


def _with_words(words: int) -> str:
    """The smallest model that has so many words, as the beginning of a remedy; "" where none has."""
    sizes = {name: (each.hf_config["vocab_size"], each.hf_config["hidden_size"]) for name, each in MODELS.items()}
    name = min((name for name, (has, _) in sizes.items() if has >= words), key=sizes.__getitem__, default="")
    return name and f"{'' if MODELS[name].on_cpu else 'on a GPU '}--model {name} has {sizes[name][0]}; or "


def resume(run: Path | None, model: Model, precision: Precision | None, finetune: str | None) -> Path | None:
    """The run to continue, refused by its facts before anything is loaded; `precision` None for any."""
    if run is None:
        return None
    facts = run_folder.read_facts(run).environment if run_folder.holds_run(run) else {}
    if facts.get("model", model.name) != model.name:
        raise UsageError(
            f"--resume {run} is a checkpoint of {facts['model']}, and this is {model.name}: name that model"
        )
    if (facts.get("finetuned") or finetune) in finetuning.ADAPTERS and facts.get("finetuned") != finetune:
        how = facts.get("finetuned")
        holds = f"{how} adapters alone: --finetune {how}" if how else "no adapters"
        raise UsageError(f"--resume {run} holds {holds}")
    found = facts.get("precision", {}).get("name")
    if precision and found not in (None, precision.name):
        raise UsageError(
            f"--resume {run} was trained in {found}, and this is {precision.name}: continue it in {found} "
            "(--evaluate takes any precision)"
        )
    return run.absolute()


def trains_nothing(args: argparse.Namespace, model: Model) -> None:
    """Raise UsageError where there is nothing to evaluate or to export, or nowhere to."""
    what = "--evaluate" if args.evaluate else "--export"
    if args.resume is None:
        raise UsageError(f"{what} needs the run whose checkpoint it means: --resume RUN (RUN=)")
    if args.export is not None and args.export.exists():
        raise UsageError(f"--export {args.export} exists, and nothing is overwritten: name another")
    if args.evaluate and (args.data or model.data) == MOCK:
        raise UsageError("--evaluate needs text: random tokens have no loss worth knowing; give --data")


def instructions(args: argparse.Namespace) -> str:
    """The instructions to fine-tune on. Raises UsageError for a wrong one, or where something is missing."""
    if args.finetune not in finetuning.SCHEMES:
        raise unknown("way to fine-tune", args.finetune, finetuning.SCHEMES)
    if not args.weights:
        raise UsageError(f"{args.finetune} tunes weights: name them with --from (FROM=), hf:NAME, a folder or a run")
    if not args.data:
        fields = " and ".join(FIELDS)
        raise UsageError(f"{args.finetune} needs instructions: --data FILE.jsonl (DATA=), with {fields} a line")
    finetuning.files(args.data)
    return str(Path(args.data).absolute())


def tokenizer(args: argparse.Namespace, model: Model) -> str:
    """The tokenizer of the instructions. Raises UsageError where none is known."""
    if args.tokenizer:
        tokenizer_folder.check(Path(args.tokenizer), "--tokenizer", model.hf_config["vocab_size"])
        return str(Path(args.tokenizer).resolve()) if Path(args.tokenizer).is_dir() else args.tokenizer
    if finetuning.is_run(args.weights):
        raise UsageError("a run folder has no tokenizer of its own: --tokenizer names one")
    source = pretrained.source(args.weights)
    tokenizer_folder.check(Path(source), "--from", model.hf_config["vocab_size"])
    return source


def starting_weights(given: str | None, model: Model, changed: dict[str, Any], *, finetune: bool) -> str | None:
    """The weights to begin with. Raises UsageError where a folder holds none, or another model's.

    Args:
        given: the flag.
        model: what trains.
        changed: the fields of Megatron's config that are not the model's own, by their full names.
        finetune: whether it is tuned, which a run's weights can be as well.
    """
    if given is None:
        return None
    if finetuning.is_run(given):
        if not finetune:
            raise UsageError(f"--from {given} is a run of this playbook: --resume (RESUME=) continues it")
        checkpoint.find(Path(given), flag="--from")
        return str(resume(Path(given), model, None, None))
    source = pretrained.source(given)
    of_the_model = {name.removeprefix("model."): value for name, value in changed.items() if name.startswith("model.")}
    pretrained.check(source, pretrained.asked_for(model, of_the_model), model.name)
    return source
