"""What a command line asks for, checked one by one before anything heavy is imported.

`args` are all that was asked for, in which `model` and `precision` are rows by now, see `settings.resolve`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pretraining.errors import UsageError, unknown
from pretraining.inputs import finetuning, manifest, tokenizer_folder
from pretraining.record import checkpoint, run_folder
from pretraining.request import blends, footprint, pretrained
from pretraining.request.models import MOCK, MODELS, PYTHON_STDLIB, Model
from pretraining.request.precisions import EMULATORS, PRECISIONS, Precision


def tuned(args: argparse.Namespace) -> bool:
    """Whether the tuned preset is on. Raises UsageError where it cannot run: a graph repeats what it has recorded."""
    why = None
    if not args.on_gpu:
        why = "the CPU runtime has no CUDA graphs"
    elif args.emulate == "reference":
        why = "--emulate reference has not been tried in a CUDA graph"
    elif args.sensitivity:
        why = "--sensitivity looks at each layer's products, of which a CUDA graph tells nothing"
    elif args.model.expert_parallel > 1:
        why = f"{args.model.name}'s experts get another number of tokens each time, which a CUDA graph cannot replay"
    if args.tuned and why:
        raise UsageError(f"--tuned: {why}; leave it out")
    return args.tuned


def delayed_scaling(args: argparse.Namespace, kept: int) -> None:
    """Raise UsageError for what Megatron-Core does not do with delayed scaling: `kept` layers in BF16, experts."""
    if not args.precision.delayed:
        return
    if kept:
        raise UsageError(
            f"--precision {args.precision.name}: Megatron keeps no layer in BF16 with delayed scaling; leave "
            "--bf16-head-layers and --bf16-tail-layers out, or take --precision fp8, which scales by each tensor itself"
        )
    if footprint.shape_of(args.model.hf_config).experts:
        raise UsageError(
            f"--precision {args.precision.name}: with delayed scaling Megatron does not recompute the experts' "
            f"activations, as the recipe of {args.model.name} does; take --precision fp8"
        )


def emulator(args: argparse.Namespace) -> str | None:
    """What computes NVFP4 on a GPU without FP4 tensor cores. Raises UsageError where it cannot."""
    if args.emulate and not args.precision.fp4:
        raise UsageError(f"--emulate is for nvfp4 and does nothing for {args.precision.name}; leave it out")
    if args.emulate and footprint.shape_of(args.model.hf_config).experts:
        raise UsageError(
            f"--emulate cannot train {args.model.name}: Transformer Engine computes its experts' products in one call "
            "that takes none but its own tensors; train it in another precision, or a model without experts"
        )
    return args.emulate if args.on_gpu else None


def profile(args: argparse.Namespace, iterations: int) -> int | None:
    """How many iterations to profile. Raises UsageError where they are not there, with one to warm up before them."""
    last = args.profile
    if last is None:
        return None
    if args.resume is not None:
        raise UsageError("--profile records the last iterations, and a --resume may leave fewer; leave it out")
    if not args.trains:
        raise UsageError("--profile looks at training, and this run trains nothing; leave it out")
    if not 1 <= last < iterations:
        raise UsageError(
            f"--profile {last} of {iterations} iterations: at least 1 is profiled, with 1 before it to warm up; "
            f"make profile takes the last 5, so ITERS= (--train-iters) is 6 or more"
        )
    return last


def sensitivity(args: argparse.Namespace, found: dict[str, Any]) -> int | None:
    """How many iterations to measure. Raises UsageError where they are not there, or not in NVFP4 as it is emulated."""
    last, iterations, at = args.sensitivity, found["train_iters"], found["switches_at"]
    if last is None:
        return None
    if not args.precision.fp4:
        raise UsageError(f"--sensitivity measures NVFP4's rounding, and {args.precision.name} has none; leave it out")
    if not args.trains or args.profile:
        raise UsageError("--sensitivity measures a training, which nothing else watches; leave the other flag out")
    if args.on_gpu and found["emulate"] != EMULATORS[0]:
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


def micro_batch_size(args: argparse.Namespace, batch: int, replicas: int) -> int:
    """The micro batch size given, or the model's own, or the largest below it that divides.

    Raises:
        UsageError: one does not divide what `replicas` leave of the global `batch`; it names the nearest that does.
    """
    given = args.micro_batch_size
    if batch % replicas:
        raise UsageError(
            f"--global-batch-size {batch} does not divide over {replicas} model replicas; take a multiple of {replicas}"
        )
    share = batch // replicas
    if given is None:
        return next(size for size in range(min(args.model.micro_batch_size, share), 0, -1) if share % size == 0)
    if given < 1 or share % given:
        divisors = [size for size in range(1, share + 1) if share % size == 0]
        near = max((size for size in divisors if size <= max(given, 1)), default=1)
        raise UsageError(
            f"--global-batch-size {batch} is not divisible by --micro-batch-size {given} x {replicas} "
            f"model replica{'s' if replicas > 1 else ''}; --micro-batch-size {near} would be"
        )
    return given


def data(data: str, model: Model) -> tuple[str, dict[str, blends.Blend]]:
    """The data in the words of `blends.py`, and as blends. Raises UsageError for a missing or unfit dataset."""
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


def trains_nothing(args: argparse.Namespace) -> None:
    """Raise UsageError where there is nothing to evaluate or to export, or nowhere to."""
    what = "--evaluate" if args.evaluate else "--export"
    if args.resume is None:
        raise UsageError(f"{what} needs the run whose checkpoint it means: --resume RUN (RUN=)")
    if args.export is not None and args.export.exists():
        raise UsageError(f"--export {args.export} exists, and nothing is overwritten: name another")
    if args.evaluate and (args.data or args.model.data) == MOCK:
        raise UsageError("--evaluate needs text: random tokens have no loss worth knowing; give --data")


def instructions(args: argparse.Namespace) -> str:
    """The instructions to fine-tune on. Raises UsageError for a wrong one, or where something is missing."""
    if args.finetune not in finetuning.SCHEMES:
        raise unknown("way to fine-tune", args.finetune, finetuning.SCHEMES)
    if not args.weights:
        raise UsageError(f"{args.finetune} tunes weights: name them with --from (FROM=), hf:NAME, a folder or a run")
    if not args.data:
        fields = " and ".join(finetuning.FIELDS)
        raise UsageError(f"{args.finetune} needs instructions: --data FILE.jsonl (DATA=), with {fields} a line")
    finetuning.files(args.data)
    return str(Path(args.data).absolute())


def tokenizer(args: argparse.Namespace) -> str:
    """The tokenizer of the instructions. Raises UsageError where none is known."""
    words = args.model.hf_config["vocab_size"]
    if args.tokenizer:
        tokenizer_folder.check(Path(args.tokenizer), "--tokenizer", words)
        return str(Path(args.tokenizer).resolve()) if Path(args.tokenizer).is_dir() else args.tokenizer
    if finetuning.is_run(args.weights):
        raise UsageError("a run folder has no tokenizer of its own: --tokenizer names one")
    source = pretrained.source(args.weights)
    tokenizer_folder.check(Path(source), "--from", words)
    return source


def starting_weights(args: argparse.Namespace, changed: dict[str, Any]) -> str | None:
    """The weights to begin with. Raises UsageError where a folder holds none, or another model's.

    `changed` are the fields of Megatron's config that are not the model's own, by their full names.
    """
    given = args.weights
    if given is None:
        return None
    if finetuning.is_run(given):
        if not args.finetune:
            raise UsageError(f"--from {given} is a run of this playbook: --resume (RESUME=) continues it")
        checkpoint.find(Path(given), flag="--from")
        return str(resume(Path(given), args.model, None, None))
    source = pretrained.source(given)
    of_the_model = {name.removeprefix("model."): value for name, value in changed.items() if name.startswith("model.")}
    pretrained.check(source, pretrained.asked_for(args.model, of_the_model), args.model.name)
    return source
