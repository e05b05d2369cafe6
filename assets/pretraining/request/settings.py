"""What a command line comes to: one `Settings` that names every choice of a training.

The launcher parses the same flags with the same rules before it starts anything, so a wrong name or a size that
does not divide costs a second and not a start-up. No torch in this module.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.errors import UsageError
from pretraining.request import checks, config_file, flags, nvfp4_recipe, overrides, parallel
from pretraining.request.models import DEFAULT_ON_CPU, DEFAULT_ON_GPU, MOCK, PYTHON_STDLIB, Model, find_model
from pretraining.request.precisions import Precision, default_tail, find_precision

_NVFP4_BLOCK = 16  # as in numerics/nvfp4.py, which needs torch


@dataclass(frozen=True)
class Settings:
    """What to train, how and on what; sizes as in `models.Model`.

    Attributes:
        num_layers: transformer layers, the model's own unless cut for a benchmark.
        bf16_head_layers, bf16_tail_layers: layers kept in BF16 at the start and the end of the model.
        data: "mock", "python-stdlib", or Megatron datasets in the words of `blends.py`.
        seed: of weights, data order and stochastic rounding.
        save: write a checkpoint every so many iterations and at the end, or None for none; a run that saves also
            saves when it is interrupted.
        emulate: on a GPU, which of `EMULATORS` computes NVFP4 without FP4 tensor cores, or None for these; the CPU
            runtime has its own.
        nvfp4: what of the NVFP4 recipe is on; None in another precision.
        engine_switches: Transformer Engine's variables that are set, see `nvfp4_recipe.engine_switches`.
        resume: the run folder whose checkpoint to continue from, or None.
        iteration: that checkpoint's, or None without any.
        weights: Hugging Face's to begin with, a repository or local folder, or None for random ones.
        finetune: None to pretrain, or "sft", "lora" or "dora" on the instructions in `data`, beginning with `weights`,
            which may then also be a run folder.
        tokenizer: of the instructions, a Hugging Face name or folder; None but for tuning.
        evaluate: train nothing, only evaluate `resume`'s checkpoint, which may be of another precision.
        export: train nothing, only write `resume`'s weights to this folder for Hugging Face, or None.
        run_dir: the run folder, or None for a new one named by time, precision and model.
        cache_dir: where the built-in text and Megatron's dataset indices are kept between runs.
        profile: record so many of the last iterations with PyTorch's profiler, see `profiling`, or None.
        tensorboard, wandb_project, mlflow_experiment: which writers run beside the record, see `writers`.
        tensor_parallel, pipeline_parallel, context_parallel: processes that one copy of the model is split over.
        tuned: with CUDA graphs and fewer checks.
        overrides: "section.field=value" of the config, sorted, beyond what is a setting itself.
        config: a config file whose fields go before the overrides, or None.
        plugin: the user's Python file, or None.
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
    nvfp4: nvfp4_recipe.Nvfp4Recipe | None
    engine_switches: tuple[str, ...]
    resume: Path | None
    iteration: int | None
    weights: str | None
    finetune: str | None
    tokenizer: str | None
    evaluate: bool
    export: Path | None
    run_dir: Path | None
    cache_dir: Path
    profile: int | None
    tensorboard: bool
    wandb_project: str | None
    mlflow_experiment: str | None
    tensor_parallel: int
    pipeline_parallel: int
    context_parallel: int
    tuned: bool
    overrides: tuple[str, ...]
    config: Path | None
    plugin: Path | None

    @property
    def processes_a_copy(self) -> int:
        """Processes that share one copy of the model, but for its experts."""
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one iteration over all processes."""
        return self.global_batch_size * self.sequence_length

    @property
    def writers(self) -> dict[str, str | bool]:
        """The package of each writer that is asked for, with its project or experiment."""
        asked = {"tensorboard": self.tensorboard, "wandb": self.wandb_project, "mlflow": self.mlflow_experiment}
        return {package: value for package, value in asked.items() if value}

    @property
    def profiled(self) -> list[int]:
        """The first and the last iteration that are profiled, counted from 1."""
        return [self.train_iters - (self.profile or 0) + 1, self.train_iters]

    @property
    def trains(self) -> bool:
        """Whether the run is to train."""
        return not self.evaluate and self.export is None


def resolve(args: argparse.Namespace, *, on_gpu: bool, processes: int) -> Settings:
    """Fill in the defaults and check what can be checked before anything heavy is imported.

    Args:
        args: parsed by `flags.parser`.
        on_gpu: whether training will run on a GPU.
        processes: the world size.

    Raises:
        UsageError: naming the flag, what was found and what would work.
    """
    typed = args.nvfp4
    args = flags.merged(args)
    changes = overrides.parse(args.overrides or ())
    model, precision = _model_of(args, on_gpu=on_gpu), _precision_of(args)
    if not on_gpu:
        checks.check_cpu(model, precision)
    if typed and precision.name != "nvfp4":
        raise UsageError(f"--nvfp4 is nvfp4's recipe and does nothing for {precision.name}; leave it out")
    emulator = checks.emulator(args, model, precision)
    trains = not args.evaluate and args.export is None
    sizes = _sizes(args, model)
    layers = _layers(args, model, precision)
    reshaped = {**changes, "model.num_layers": layers["num_layers"]}
    past = _begins_with(args, model, precision, reshaped, trains=trains)
    if not trains:
        checks.trains_nothing(args, model)
        sizes |= {"train_iters": past["iteration"], "warmup_iters": 0}
    data = checks.instructions(args) if args.finetune else checks.data(args.data or model.data, model)
    split = parallel.split_of(args, model, precision)
    parallel.check(model, layers["num_layers"], split, on_gpu=on_gpu, sequence=sizes["sequence_length"])
    replicas = parallel.replicas(split, model, processes)
    micro_batch = checks.micro_batch_size(args.micro_batch_size, model, sizes, replicas)
    if on_gpu and precision.name == "nvfp4":
        _check_blocks(micro_batch, sizes["sequence_length"])
    return Settings(
        model=model,
        precision=precision,
        **layers,
        **sizes,
        micro_batch_size=micro_batch,
        data=data,
        seed=flags.SEED if args.seed is None else args.seed,
        save=_save(args, sizes["train_iters"], data, on_gpu=on_gpu) if trains else None,
        emulate=emulator if on_gpu else None,
        nvfp4=checks.recipe(args, precision, emulator if on_gpu else None),
        engine_switches=nvfp4_recipe.engine_switches(),
        **past,
        **_as_asked(args, model),
        profile=checks.profile(args.profile, sizes["train_iters"], trains=trains, resumed=args.resume is not None),
        **split,
        tuned=checks.tuned(args, model, on_gpu=on_gpu),
        overrides=tuple(f"{name}={value}" for name, value in sorted(changes.items())),
    )


def _model_of(args: argparse.Namespace, *, on_gpu: bool) -> Model:
    return find_model(args.model or (DEFAULT_ON_GPU if on_gpu else DEFAULT_ON_CPU))


def _precision_of(args: argparse.Namespace) -> Precision:
    return find_precision(flags.asked_precision(args) or "nvfp4")


def _sizes(args: argparse.Namespace, model: Model) -> dict[str, int]:
    """Iterations and the batch, but for the micro batch."""
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
            raise UsageError(f"{checks.flag_of(name)} is {sizes[name]}; it must be at least {least}")
        if sizes[name] >= 2**31:
            raise UsageError(f"{checks.flag_of(name)} is {sizes[name]}; it must be below 2147483648")
    if sizes["warmup_iters"] >= sizes["train_iters"] > 1:
        raise UsageError(
            f"--warmup-iters {sizes['warmup_iters']} is not below --train-iters {sizes['train_iters']}; lower it"
        )
    limit = model.hf_config["max_position_embeddings"]
    if sizes["sequence_length"] > limit:
        raise UsageError(f"--seq-length {sizes['sequence_length']} is over {model.name}'s {limit} positions; lower it")
    return sizes


def _layers(args: argparse.Namespace, model: Model, precision: Precision) -> dict[str, int]:
    """How many layers there are, and how many of them at each end stay in BF16."""
    layers = model.num_layers if args.num_layers is None else args.num_layers
    if layers < 1:
        raise UsageError(f"--num-layers is {layers}; it must be at least 1")
    if precision.name == "bf16":
        return {"num_layers": layers, "bf16_head_layers": 0, "bf16_tail_layers": 0}
    head = precision.bf16_head if args.bf16_head_layers is None else args.bf16_head_layers
    tail = default_tail(precision, layers) if args.bf16_tail_layers is None else args.bf16_tail_layers
    if min(head, tail) < 0:
        raise UsageError(f"--bf16-head-layers {head} --bf16-tail-layers {tail}: neither can be negative")
    if head + tail >= layers:
        raise UsageError(
            f"{head} first and {tail} last layers in BF16 leave none of {model.name}'s {layers} layers in "
            f"{precision.name}; lower --bf16-head-layers or --bf16-tail-layers"
        )
    return {"num_layers": layers, "bf16_head_layers": head, "bf16_tail_layers": tail}


def _begins_with(
    args: argparse.Namespace, model: Model, precision: Precision, reshaped: dict[str, Any], *, trains: bool
) -> dict[str, Path | int | str | None]:
    """The checkpoint or the weights that the run begins with; `reshaped`: what is changed of the model."""
    iteration = checks.iteration(args)
    resume = checks.resume(args.resume, model, precision if trains else None, args.finetune)
    if args.weights and resume and not args.finetune:  # adapters are continued on the weights that they adapt
        raise UsageError("--from begins with other weights and --resume with a checkpoint's; give one of them")
    weights = checks.starting_weights(args.weights, model, reshaped, finetune=bool(args.finetune))
    return {"resume": resume, "iteration": iteration, "weights": weights}


def _save(args: argparse.Namespace, iterations: int, data: str, *, on_gpu: bool) -> int | None:
    """After how many iterations to save; on a GPU, what was learned from one's own data is kept at the end."""
    if args.save is None and on_gpu and data not in (MOCK, PYTHON_STDLIB):
        return iterations
    if args.save is not None and args.save < 0:
        raise UsageError(f"--save is {args.save}; it is a number of iterations, or 0 for never")
    return args.save or None


def _check_blocks(micro_batch: int, sequence: int) -> None:
    """Raise UsageError where the tokens of a micro batch are no whole number of NVFP4's blocks."""
    if micro_batch * sequence % _NVFP4_BLOCK:
        longer = sequence + -sequence % _NVFP4_BLOCK
        raise UsageError(
            f"a micro batch of {micro_batch} x {sequence} tokens: NVFP4's weight gradients take blocks of 16 of them, "
            f"so it must be a multiple of {_NVFP4_BLOCK}; --seq-length {longer} would be"
        )


def _as_asked(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """What needs no default, with paths whole."""
    return {
        "finetune": args.finetune,
        "tokenizer": checks.tokenizer(args, model),
        "evaluate": args.evaluate,
        "export": args.export and args.export.absolute(),
        "run_dir": args.run_dir and args.run_dir.absolute(),
        "cache_dir": args.cache_dir.absolute(),
        "tensorboard": args.tensorboard,
        "wandb_project": args.wandb_project or None,
        "mlflow_experiment": args.mlflow_experiment or None,
        "config": args.config and args.config.absolute(),
        "plugin": checks.plugin(args.plugin),
    }


def ignored(chosen: Settings) -> str:
    """A sentence on the flags in the config file that are not taken from it; "" without any."""
    if chosen.config is None:
        return ""
    left = config_file.read(chosen.config).not_taken(flags.parser(str(chosen.config)), chosen)
    return f"its {', '.join(left)} {'is' if len(left) == 1 else 'are'} ignored: give them here" if left else ""


def of_the_file_alone(file: config_file.ConfigFile, *, data: str, cache_dir: Path) -> Settings | None:
    """What a config file was saved with, before anybody edited it, but on `data`; None for one written by hand.

    On as many GPUs as hold the model, wherever this runs: nothing is trained with these settings.
    """
    if file.arguments is None:
        return None
    args = flags.words_of(file, "--data", data, "--cache-dir", str(cache_dir))
    return resolve(args, on_gpu=True, processes=processes_a_copy(args, on_gpu=True))


def processes_a_copy(args: argparse.Namespace, *, on_gpu: bool) -> int:
    """The fewest processes that hold the model a command line asks for."""
    args = flags.merged(args)
    model, precision = _model_of(args, on_gpu=on_gpu), _precision_of(args)
    return parallel.fewest_processes(parallel.split_of(args, model, precision), model)
