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

from . import switches
from .errors import UsageError
from .models import DEFAULT_ON_CPU, DEFAULT_ON_GPU, MOCK, MODELS, PYTHON_STDLIB, Model, find_model
from .precision import PRECISIONS, Precision, default_tail, find_precision

# What stands in for FP4 tensor cores on a GPU: this project's kernels, or Transformer Engine's reference quantizer,
# which has neither stochastic rounding nor speed and is there to be compared with.
EMULATORS = ("triton", "reference")

_NVFP4_BLOCK = 16  # as in numerics/nvfp4.py, which needs torch

PROJECT = Path(__file__).resolve().parent.parent.parent
RUNS = "nemo_experiments"


@dataclass(frozen=True)
class Settings:
    """What to train, how and on what; sizes as in `models.Model`.

    Attributes:
        num_layers: transformer layers, the model's own unless cut for a benchmark.
        bf16_head_layers, bf16_tail_layers: layers kept in BF16 at the start and the end of the model.
        data: "mock", "python-stdlib", or the prefix of a Megatron .bin/.idx pair.
        seed: of weights, data order and stochastic rounding.
        save: write a checkpoint every so many iterations and at the end, or None for none.
        emulate: on a GPU, which of `EMULATORS` computes NVFP4 without FP4 tensor cores, or None for these; the CPU
            runtime has its own.
        resume: the run folder whose last checkpoint to continue from, or None.
        run_dir: the run folder, or None for a new one named by time, precision and model.
        cache_dir: where the built-in text and Megatron's dataset indices are kept between runs.
    """

    model: Model
    precision: Precision
    num_layers: int
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
    emulate: str | None
    resume: Path | None
    run_dir: Path | None
    cache_dir: Path

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one iteration over all processes."""
        return self.global_batch_size * self.sequence_length


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
    add(
        "--emulate",
        nargs="?",
        const=EMULATORS[0],
        choices=EMULATORS,
        help="NVFP4 without FP4 tensor cores: its losses, not its speed; reference: Transformer Engine's, slow",
    )
    add("--num-layers", type=int, metavar="N", help="cut or grow the model, for benchmarks (default by model)")
    defaults = "; 8B models"
    add("--train-iters", type=int, metavar="N", help=f"iterations in all (default by model{defaults} 50)")
    add("--warmup-iters", type=int, metavar="N", help=f"learning-rate warm-up (default by model{defaults} 2)")
    add("--global-batch-size", type=int, metavar="N", help=f"sequences a step (default by model{defaults} 64)")
    add("--micro-batch-size", type=int, metavar="N", help=f"sequences a forward pass (default by model{defaults} 4)")
    add("--seq-length", type=int, metavar="N", help=f"tokens a sequence (default by model{defaults} 4096)")
    add("--data", help=f"{MOCK}, {PYTHON_STDLIB} or the prefix of a .bin/.idx pair (default by model)")
    add("--seed", type=int, default=1234, help="of weights, data order and stochastic rounding (default 1234)")
    add("--save", type=int, metavar="N", help="checkpoint every N iterations and at the end (default: none)")
    add("--resume", type=Path, metavar="RUN", help="continue from the last checkpoint of this run folder")
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
    if on_gpu and args.emulate == "reference" and not all(on.values()):
        off = ", ".join(switches.SWITCHES[name][0] for name, value in on.items() if not value)
        raise UsageError(f"--emulate reference has no switches: leave {off} out")
    if args.emulate and precision.name != "nvfp4":
        raise UsageError(f"--emulate is for nvfp4 and does nothing for {precision.name}; leave it out")
    layers = model.num_layers if args.num_layers is None else args.num_layers
    if layers < 1:
        raise UsageError(f"--num-layers is {layers}; it must be at least 1")
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
    if args.save is not None and args.save < 1:
        raise UsageError(f"--save is {args.save}; it is a number of iterations, at least 1")
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
    micro_batch = _micro_batch_size(args.micro_batch_size, model, sizes, processes)
    tokens = micro_batch * sizes["sequence_length"]
    if on_gpu and precision.name == "nvfp4" and tokens % _NVFP4_BLOCK:
        longer = sizes["sequence_length"] + -sizes["sequence_length"] % _NVFP4_BLOCK
        raise UsageError(
            f"a micro batch of {micro_batch} x {sizes['sequence_length']} tokens: NVFP4's weight gradients take blocks "
            f"of 16 of them, so it must be a multiple of {_NVFP4_BLOCK}; --seq-length {longer} would be"
        )
    return Settings(
        model=model,
        precision=precision,
        num_layers=layers,
        bf16_head_layers=head if quantized else 0,
        bf16_tail_layers=tail if quantized else 0,
        micro_batch_size=micro_batch,
        data=_checked_data(args.data or model.data),
        seed=args.seed,
        save=args.save,
        emulate=args.emulate if on_gpu else None,
        resume=_checked_resume(args.resume),
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


def _checked_data(data: str) -> str:
    if data in (MOCK, PYTHON_STDLIB):
        return data
    prefix = Path(data.removesuffix(".bin").removesuffix(".idx")).absolute()
    found = {end: prefix.with_name(prefix.name + end).is_file() for end in (".bin", ".idx")}
    if all(found.values()):
        return str(prefix)
    if any(found.values()):
        missing = next(end for end, there in found.items() if not there)
        raise UsageError(f"--data {data}: {prefix}{missing} is missing; a Megatron dataset is a .bin and an .idx file")
    raise UsageError(
        f"--data {data}: there is no {prefix}.bin and .idx; give the prefix of a Megatron dataset without its "
        f"ending, or {MOCK} or {PYTHON_STDLIB}"
    )


def _checked_resume(run: Path | None) -> Path | None:
    if run is None:
        return None
    if not (run / "checkpoints" / "latest_train_state.pt").is_file():
        raise UsageError(f"--resume {run}: it holds no checkpoint; a run keeps one when it is started with --save N")
    return run.absolute()


def as_flags(settings: Settings) -> list[str]:
    """The flags that give exactly these settings, whatever the defaults are where they are parsed."""
    flags: dict[str, Any] = {
        "--model": settings.model.name,
        "--precision": settings.precision.name,
        "--num-layers": settings.num_layers,
        "--emulate": settings.emulate,
        "--bf16-head-layers": settings.bf16_head_layers,
        "--bf16-tail-layers": settings.bf16_tail_layers,
        "--train-iters": settings.train_iters,
        "--warmup-iters": settings.warmup_iters,
        "--global-batch-size": settings.global_batch_size,
        "--micro-batch-size": settings.micro_batch_size,
        "--seq-length": settings.sequence_length,
        "--data": settings.data,
        "--seed": settings.seed,
        "--save": settings.save,
        "--resume": settings.resume,
        "--run-dir": settings.run_dir,
        "--cache-dir": settings.cache_dir,
    }
    return [part for flag, value in flags.items() if value is not None for part in (flag, str(value))]
