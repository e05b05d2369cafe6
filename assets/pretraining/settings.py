"""The command line of a training, and what it comes to: one `Settings` that names every choice.

The launcher parses the same flags with the same rules before it starts anything, so a wrong name or a size that
does not divide costs a second and not a start-up. No torch in this module.
"""

from __future__ import annotations

import argparse
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from . import blends, finetuning, record, switches, weights
from .data import manifest
from .errors import UsageError, unknown
from .models import DEFAULT_ON_CPU, DEFAULT_ON_GPU, MOCK, MODELS, PYTHON_STDLIB, Model, find_model
from .precision import PRECISIONS, Precision, default_tail, find_precision

PROJECT = Path(__file__).resolve().parent.parent.parent
RUNS = "nemo_experiments"


@dataclass(frozen=True)
class Settings:
    """What to train, how and on what; sizes as in `models.Model`.

    Attributes:
        bf16_head_layers, bf16_tail_layers: layers kept in BF16 at the start and the end of the model.
        data: "mock", "python-stdlib", or Megatron datasets in the words of `blends.py`.
        seed: of weights, data order and stochastic rounding.
        save: write a checkpoint every so many iterations and at the end, or None for none; a run that saves also
            saves when it is interrupted.
        emulate: on a GPU, NVFP4's arithmetic without FP4 tensor cores; the CPU runtime has no other.
        resume: the run folder whose last checkpoint to continue from, or None.
        weights: Hugging Face's to begin with, a repository or local folder, or None for random ones.
        tune: None to pretrain, or "sft", "lora" or "dora" on the instructions in `data`, beginning with `weights`,
            which may then also be a run folder.
        tokenizer: of the instructions, a Hugging Face name or folder; None but for tuning.
        evaluate: train nothing, only evaluate `resume`'s last checkpoint, which may be of another precision.
        export: train nothing, only write `resume`'s weights to this folder for Hugging Face, or None.
        run_dir: the run folder, or None for a new one named by time, precision and model.
        cache_dir: where the built-in text and Megatron's dataset indices are kept between runs.
    """

    model: Model
    precision: Precision
    bf16_head_layers: int
    bf16_tail_layers: int
    train_iters: int
    warmup_iters: int
    global_batch_size: int
    micro_batch_size: int
    sequence_length: int
    data: str
    seed: int
    save: int | None
    emulate: bool
    resume: Path | None
    weights: str | None
    tune: str | None
    tokenizer: str | None
    evaluate: bool
    export: Path | None
    run_dir: Path | None
    cache_dir: Path

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one iteration over all processes."""
        return self.global_batch_size * self.sequence_length

    @property
    def trains(self) -> bool:
        """Whether the run is to train."""
        return not self.evaluate and self.export is None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{message}; {hint}`{self.prog} --help` lists the flags")


def parser(prog: str) -> argparse.ArgumentParser:
    """The training script's flags. It raises UsageError where argparse would exit."""
    flags = _Parser(
        prog=prog, description="Pretrain a Llama with Megatron-Bridge in NVFP4 or BF16.", allow_abbrev=False
    )
    add = flags.add_argument
    add("--model", help=f"{', '.join(MODELS)} (default {DEFAULT_ON_GPU} on a GPU, {DEFAULT_ON_CPU} without)")
    add("--precision", help=f"{', '.join(PRECISIONS)} (default nvfp4)")
    add("--disable-fp4", action="store_true", help="the same as --precision bf16")
    add("--bf16-tail-layers", type=int, metavar="N", help="last layers kept in BF16 (default: an eighth for nvfp4)")
    add("--bf16-head-layers", type=int, metavar="N", help="first layers kept in BF16 (default 0 for nvfp4)")
    add("--emulate", action="store_true", help="NVFP4 without FP4 tensor cores: its losses, far from its speed")
    defaults = "; 8B models"
    add("--train-iters", type=int, metavar="N", help=f"iterations in all (default by model{defaults} 50)")
    add("--warmup-iters", type=int, metavar="N", help=f"learning-rate warm-up (default by model{defaults} 2)")
    add("--global-batch-size", type=int, metavar="N", help=f"sequences a step (default by model{defaults} 64)")
    add("--micro-batch-size", type=int, metavar="N", help=f"sequences a forward pass (default by model{defaults} 4)")
    add("--seq-length", type=int, metavar="N", help=f"tokens a sequence (default by model{defaults} 4096)")
    add(
        "--data",
        help=f"{MOCK}, {PYTHON_STDLIB}, or .bin/.idx prefixes: P, '0.7 P 0.3 Q', 'train=P valid=Q' (default by model)",
    )
    add("--seed", type=int, default=1234, help="of weights, data order and stochastic rounding (default 1234)")
    add(
        "--save",
        type=int,
        metavar="N",
        help="checkpoint every N iterations and at the end; 0: never (own data on a GPU: at the end)",
    )
    add("--resume", type=Path, metavar="RUN", help="continue from the last checkpoint of this run folder")
    add("--from", dest="weights", metavar="WEIGHTS", help="begin with Hugging Face's: hf:NAME or a local folder")
    add("--tune", metavar="HOW", help=f"fine-tune on instructions: {', '.join(finetuning.SCHEMES)}; wants --from")
    add("--tokenizer", help="of the instructions (default: that of --from)")
    add("--evaluate", action="store_true", help="train nothing: the validation loss of --resume, in either precision")
    add("--export", type=Path, metavar="DIR", help="train nothing: write --resume's weights as a Hugging Face folder")
    add("--run-dir", type=Path, metavar="DIR", help=f"the run folder (default: a new one in {RUNS}/)")
    add("--cache-dir", type=Path, metavar="DIR", default=PROJECT / ".cache", help="text and index cache")
    return flags


def resolve(args: argparse.Namespace, *, on_gpu: bool, processes: int) -> Settings:
    """Fill in the defaults and check what can be checked before anything heavy is imported.

    Args:
        args: parsed by `parser`.
        on_gpu: whether training will run on a GPU.
        processes: the world size.

    Raises:
        UsageError: naming the flag, what was found and what would work.
    """
    model = find_model(args.model or (DEFAULT_ON_GPU if on_gpu else DEFAULT_ON_CPU))
    if args.disable_fp4 and args.precision not in (None, "bf16"):
        raise UsageError(f"--disable-fp4 means --precision bf16, but --precision {args.precision} was given; drop one")
    precision = find_precision("bf16" if args.disable_fp4 else args.precision or "nvfp4")
    if not on_gpu:
        _check_cpu(model, precision)
    on = switches.read()
    if on_gpu and args.emulate and not all(on.values()):
        off = ", ".join(switches.SWITCHES[name][0] for name, value in on.items() if not value)
        raise UsageError(f"--emulate has no switches on a GPU: leave {off} out")
    if args.emulate and precision.name != "nvfp4":
        raise UsageError(f"--emulate is for nvfp4 and does nothing for {precision.name}; leave it out")
    layers = model.num_layers
    sizes = {
        name: getattr(model, name) if given is None else given
        for name, given in {
            "train_iters": args.train_iters,
            "warmup_iters": args.warmup_iters,
            "global_batch_size": args.global_batch_size,
            "sequence_length": args.seq_length,
        }.items()
    }
    # A shortened run keeps its warm-up shorter than itself; only an explicit contradiction is an error.
    if args.warmup_iters is None:
        sizes["warmup_iters"] = min(sizes["warmup_iters"], max(1, sizes["train_iters"] // 5))
    for name, least in (("train_iters", 1), ("warmup_iters", 0), ("global_batch_size", 1), ("sequence_length", 2)):
        if sizes[name] < least:
            raise UsageError(f"--{_flag(name)} is {sizes[name]}; it must be at least {least}")
    if sizes["warmup_iters"] >= sizes["train_iters"] > 1:
        raise UsageError(
            f"--warmup-iters {sizes['warmup_iters']} is not below --train-iters {sizes['train_iters']}; lower it"
        )
    limit = model.hf_config["max_position_embeddings"]
    if sizes["sequence_length"] > limit:
        raise UsageError(f"--seq-length {sizes['sequence_length']} is over {model.name}'s {limit} positions; lower it")
    if args.save is not None and args.save < 0:
        raise UsageError(f"--save is {args.save}; it is a number of iterations, or 0 for never")
    trains = not args.evaluate and args.export is None
    resume = _checked_resume(args.resume, model, precision if trains else None, args.tune)
    if not trains:
        sizes |= {"train_iters": _nothing_to_train(args, model), "warmup_iters": 0}
    if args.weights and resume and not args.tune:  # adapters are continued on the weights that they adapt
        raise UsageError("--from begins with other weights and --resume with a checkpoint's; give one of them")
    data = _checked_instructions(args) if args.tune else _checked_data(args.data or model.data, model)
    own_data = on_gpu and data not in (MOCK, PYTHON_STDLIB)
    quantized = precision.name != "bf16"
    head = precision.bf16_head if args.bf16_head_layers is None else args.bf16_head_layers
    tail = default_tail(precision, layers) if args.bf16_tail_layers is None else args.bf16_tail_layers
    if quantized and (head < 0 or tail < 0 or head + tail >= layers):
        raise UsageError(
            f"{head} first and {tail} last layers in BF16 leave none of {model.name}'s {layers} layers in "
            f"{precision.name}; lower --bf16-head-layers or --bf16-tail-layers"
            if min(head, tail) >= 0
            else f"--bf16-head-layers {head} --bf16-tail-layers {tail}: neither can be negative"
        )
    return Settings(
        model=model,
        precision=precision,
        bf16_head_layers=head if quantized else 0,
        bf16_tail_layers=tail if quantized else 0,
        micro_batch_size=_micro_batch_size(args.micro_batch_size, model, sizes, processes),
        data=data,
        seed=args.seed,
        save=(sizes["train_iters"] if args.save is None and own_data else args.save or None) if trains else None,
        emulate=on_gpu and args.emulate,
        resume=resume,
        weights=_checked_weights(args.weights, model, tune=bool(args.tune)),
        tune=args.tune,
        tokenizer=_checked_tokenizer(args),
        evaluate=args.evaluate,
        export=args.export and args.export.absolute(),
        run_dir=args.run_dir and args.run_dir.absolute(),
        cache_dir=args.cache_dir.absolute(),
        **sizes,
    )


def _flag(name: str) -> str:
    return {"sequence_length": "seq-length"}.get(name, name.replace("_", "-"))


def _check_cpu(model: Model, precision: Precision) -> None:
    if not model.on_cpu:
        small = [name for name, each in MODELS.items() if each.on_cpu]
        raise UsageError(f"{model.name} needs a GPU and none was found; without one: --model {' or '.join(small)}")
    if not precision.on_cpu:
        here = [name for name, each in PRECISIONS.items() if each.on_cpu]
        raise UsageError(
            f"{precision.name} needs {precision.needs}, and no GPU was found; "
            f"without one: --precision {' or '.join(here)}"
        )


def _micro_batch_size(given: int | None, model: Model, sizes: dict[str, int], processes: int) -> int:
    parallel = model.processes_a_copy(processes)
    if processes % parallel:
        raise UsageError(
            f"{model.name}'s recipe splits the model over {parallel} processes (tensor x pipeline x context parallel), "
            f"and {processes} {'was' if processes == 1 else 'were'} started: use a multiple of it, NPROC={parallel} "
            f"(torchrun --nproc_per_node {parallel})"
        )
    replicas = processes // parallel
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


def _checked_data(data: str, model: Model) -> str:
    if data in (MOCK, PYTHON_STDLIB):
        return data
    parsed = blends.parse(data)
    words = model.hf_config["vocab_size"]
    for prefix in dict.fromkeys(prefix for blend in parsed.values() for prefix in blend.prefixes):
        try:
            known = manifest.read(prefix)
        except ValueError as error:
            raise UsageError(f"--data {prefix}: {error}") from error
        if known and known.vocabulary_size > words:
            raise UsageError(
                f"--data {prefix} was tokenized by {known.tokenizer} into {known.vocabulary_size} words, and "
                f"{model.name} has {words}: `make data` with a tokenizer that fits the model"
            )
    return blends.as_words(parsed)


def _checked_resume(run: Path | None, model: Model, precision: Precision | None, tune: str | None) -> Path | None:
    """The run to continue, refused by its facts before anything is loaded; `precision` None for any."""
    if run is None:
        return None
    if not (run / record.CHECKPOINTS / "latest_train_state.pt").is_file():
        raise UsageError(f"--resume {run}: it holds no checkpoint; a run keeps one when it is started with --save N")
    facts = record.read_run(run).environment if record.holds_run(run) else {}
    if facts.get("model", model.name) != model.name:
        raise UsageError(
            f"--resume {run} is a checkpoint of {facts['model']}, and this is {model.name}: name that model"
        )
    if (facts.get("tuned") or tune) in finetuning.ADAPTERS and facts.get("tuned") != tune:
        holds = f"{facts['tuned']} adapters alone: --tune {facts['tuned']}" if facts.get("tuned") else "no adapters"
        raise UsageError(f"--resume {run} holds {holds}")
    found = facts.get("precision", {}).get("name")
    if precision and found not in (None, precision.name):
        raise UsageError(
            f"--resume {run} was trained in {found}, and this is {precision.name}: continue it in {found} "
            "(--evaluate takes any precision)"
        )
    return run.absolute()


def _nothing_to_train(args: argparse.Namespace, model: Model) -> int:
    """The iteration of the checkpoint to evaluate or export: a run that ends there trains nothing."""
    what = "--evaluate" if args.evaluate else "--export"
    if args.resume is None:
        raise UsageError(f"{what} needs the run whose checkpoint it means: --resume RUN (RUN=)")
    if args.export is not None and args.export.exists():
        raise UsageError(f"--export {args.export} exists, and nothing is overwritten: name another")
    if args.evaluate and (args.data or model.data) == MOCK:
        raise UsageError("--evaluate needs text: random tokens have no loss worth knowing; give --data")
    return int((args.resume / record.CHECKPOINTS / "latest_checkpointed_iteration.txt").read_text())


def _checked_instructions(args: argparse.Namespace) -> str:
    if args.tune not in finetuning.SCHEMES:
        raise unknown("way to tune", args.tune, finetuning.SCHEMES)
    if not args.weights:
        raise UsageError(f"{args.tune} tunes weights: name them with --from (FROM=), hf:NAME, a folder or a run")
    if not args.data:
        raise UsageError(f"{args.tune} needs instructions: --data FILE.jsonl (DATA=), with {finetuning.FIELDS} a line")
    finetuning.files(args.data)
    return str(Path(args.data).absolute())


def _checked_tokenizer(args: argparse.Namespace) -> str | None:
    if not args.tune:
        return None
    if args.tokenizer:
        return str(Path(args.tokenizer).absolute()) if Path(args.tokenizer).is_dir() else args.tokenizer
    if finetuning.is_run(args.weights):
        raise UsageError("a run folder has no tokenizer of its own: name it with --tokenizer (TOKENIZER=)")
    return weights.source(args.weights)


def _checked_weights(given: str | None, model: Model, *, tune: bool) -> str | None:
    if given is None:
        return None
    if finetuning.is_run(given):
        if not tune:
            raise UsageError(f"--from {given} is a run of this playbook: --resume (RESUME=) continues it")
        return str(_checked_resume(Path(given), model, None, None))
    source = weights.source(given)
    weights.check_folder(source, model)
    return source


def as_flags(settings: Settings) -> list[str]:
    """The flags that give exactly these settings, whatever the defaults are where they are parsed."""
    flags: dict[str, Any] = {
        "--model": settings.model.name,
        "--precision": settings.precision.name,
        "--bf16-head-layers": settings.bf16_head_layers,
        "--bf16-tail-layers": settings.bf16_tail_layers,
        "--train-iters": settings.train_iters,
        "--warmup-iters": settings.warmup_iters,
        "--global-batch-size": settings.global_batch_size,
        "--micro-batch-size": settings.micro_batch_size,
        "--seq-length": settings.sequence_length,
        "--data": settings.data,
        "--seed": settings.seed,
        "--save": settings.save or 0,
        "--resume": settings.resume,
        "--from": settings.weights and _as_given(settings.weights),
        "--tune": settings.tune,
        "--tokenizer": settings.tokenizer,
        "--export": settings.export,
        "--run-dir": settings.run_dir,
        "--cache-dir": settings.cache_dir,
    }
    given = [part for flag, value in flags.items() if value is not None for part in (flag, str(value))]
    switches_on = {"--emulate": settings.emulate, "--evaluate": settings.evaluate}
    return [*given, *(flag for flag, on in switches_on.items() if on)]


def _as_given(weights_from: str) -> str:
    """A run folder as it is; anything else with its scheme."""
    return weights_from if finetuning.is_run(weights_from) else weights.SCHEME + weights_from
