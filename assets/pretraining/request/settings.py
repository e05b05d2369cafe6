"""What a command line comes to: one `Settings` that names every choice of a training.

The launcher parses the same flags with the same rules before it starts anything, so a wrong name or a size that
does not divide costs a second and not a start-up. No torch in this module.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretraining.errors import UsageError
from pretraining.inputs import finetuning, plugin_file
from pretraining.record import checkpoint
from pretraining.request import checks, config_file, flags, parallel, pretrained
from pretraining.request.blends import Blend
from pretraining.request.models import DEFAULT_ON_CPU, DEFAULT_ON_GPU, MOCK, PYTHON_STDLIB, Model, find_model
from pretraining.request.overrides import Word, flag_of
from pretraining.request.precisions import LateSwitch, Precision, default_tail, find_precision, with_switch
from pretraining.request.recipe import nvfp4_recipe, recipe_checks

_NVFP4_BLOCK = 16  # as in numerics/nvfp4.py, which needs torch
_SWITCHES = ("evaluate", "tuned", "tensorboard", "no_probe")
_NO_FLAG = ("blends", "engine_switches", "overrides", "left", "switches_at", "why", *_SWITCHES)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to train, how and on what; sizes as in `models.Model`. None stands for none, or for not."""

    model: Model
    precision: Precision
    num_layers: int  # the model's own unless cut for a benchmark
    bf16_head_layers: int  # kept in BF16 at the start of the model
    bf16_tail_layers: int  # and at its end
    train_iters: int
    warmup_iters: int
    global_batch_size: int
    micro_batch_size: int
    sequence_length: int
    data: str  # "mock", "python-stdlib", Megatron datasets in the words of `blends.py`, or a path of instructions
    blends: dict[str, Blend]  # those datasets by split; empty for other data
    seed: int  # of weights, data order and stochastic rounding
    save: int | None  # write a checkpoint every so many iterations, at the end and when interrupted
    emulate: str | None  # which of `EMULATORS` computes NVFP4 on a GPU without FP4 tensor cores
    nvfp4: nvfp4_recipe.Nvfp4Recipe | None  # what of its recipe is on
    switch: str | None  # another precision's late switch by `switch_word`, None where nobody speaks of it
    switches_at: int | None  # how many iterations come before the late switch
    engine_switches: tuple[str, ...]  # Transformer Engine's variables that are set, see `nvfp4_recipe`
    resume: Path | None  # the run folder whose checkpoint to continue from
    iteration: int | None  # that checkpoint's
    weights: str | None  # Hugging Face's to begin with, a repository or local folder
    finetune: str | None  # "sft", "lora" or "dora" on instructions; `weights` may then be a run folder too
    tokenizer: str | None  # of the instructions, a Hugging Face name or folder
    evaluate: bool  # train nothing, only evaluate `resume`'s checkpoint, which may be of another precision
    export: Path | None  # train nothing, only write `resume`'s weights to this folder for Hugging Face
    run_dir: Path | None  # None for a new one named by time, precision and model
    cache_dir: Path  # where the built-in text and Megatron's dataset indices are kept between runs
    profile: int | None  # record so many of the last iterations with PyTorch's profiler, see `profiling`
    sensitivity: int | None  # measure the rounding of so many of the last iterations, see `quantization_error`
    tensorboard: bool  # the writers beside the record, see `writers`
    wandb_project: str | None
    mlflow_experiment: str | None
    tensor_parallel: int  # processes that one copy of the model is split over, by kind
    pipeline_parallel: int
    context_parallel: int
    tuned: bool  # with CUDA graphs and fewer checks
    no_probe: bool  # a GPU's own quantized kernels are taken as they are, see `selfcheck/probe.py`
    overrides: dict[str, Word]  # by "section.field" of the config, sorted, beyond what is a setting itself
    config: config_file.ConfigFile | None  # whose fields go before the overrides
    plugin: Path | None  # the user's Python file
    # What a config file says and is not taken from it, by argument.
    left: Mapping[str, Any] = dataclasses.field(compare=False, repr=False)
    # Who said a setting, by its argument's name: `flags.ASKED` and its kin; defaults are not in it.
    why: Mapping[str, str] = dataclasses.field(compare=False, repr=False)

    @property
    def fewest_processes(self) -> int:
        """The fewest processes that hold the model with its experts."""
        return parallel.fewest_processes({name: getattr(self, name) for name in parallel.KINDS}, self.model)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one iteration over all processes."""
        return self.global_batch_size * self.sequence_length

    @property
    def has_own_data(self) -> bool:
        """Whether it trains on the user's data and not on what the playbook brings."""
        return self.data not in (MOCK, PYTHON_STDLIB)

    @property
    def changes(self) -> list[str]:
        """The overrides as they are written."""
        return [f"{name}={value}" for name, value in self.overrides.items()]

    @property
    def writers(self) -> dict[str, str | bool]:
        """The package of each writer that is asked for, with its project or experiment."""
        asked = {"tensorboard": self.tensorboard, "wandb": self.wandb_project, "mlflow": self.mlflow_experiment}
        return {package: value for package, value in asked.items() if value}

    @property
    def watched(self) -> list[int]:
        """The first and the last iteration that are profiled or measured, counted from 1; [] for none."""
        last = self.profile or self.sensitivity
        return [self.train_iters - last + 1, self.train_iters] if last else []

    @property
    def late_switch(self) -> LateSwitch | None:
        """Where a higher precision takes over, None for never."""
        return LateSwitch.of(self.nvfp4.switch if self.nvfp4 else self.switch)

    @property
    def trains(self) -> bool:
        """Whether the run is to train."""
        return not self.evaluate and self.export is None

    def reason(self, default: str, *names: str) -> str:
        """Who said one of these settings; `default` where nobody did."""
        said = {self.why.get(name) for name in names}
        return next((who for who in flags.SAYERS if who in said), default)

    def as_flags(self) -> list[str]:
        """The flags that give exactly these settings, whatever the defaults are where they are parsed."""
        said = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name not in _NO_FLAG}
        said |= {
            "model": self.model.name,
            "precision": self.precision.name,
            "nvfp4": self.nvfp4 and nvfp4_recipe.as_text(self.nvfp4.words(every=True)),
            "save": self.save or 0,
            "config": self.config and self.config.path,
        }
        if self.weights and not finetuning.is_run(self.weights):
            said["weights"] = pretrained.SCHEME + self.weights
        given = []
        for name, value in said.items():
            if value is not None:  # one that looks like a flag stands in one word with its own
                flag = flag_of(name)
                given += [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
        return [*given, *(flag_of(name) for name in _SWITCHES if getattr(self, name)), *self.changes]

    def ignored(self) -> str:
        """A sentence on the flags in the config file that are not taken from it; "" without any."""
        left = [flag_of(name) for name, value in self.left.items() if value != getattr(self, name)]
        return f"its {', '.join(left)} {'is' if len(left) == 1 else 'are'} ignored: give them here" if left else ""


def resolve(
    args: argparse.Namespace, *, on_gpu: bool, processes: int | None, gpu_bytes: float | None = None
) -> Settings:
    """Fill in the defaults and check what can be checked before anything heavy is imported.

    Args:
        processes: the world size; None for the fewest that hold the model.
        gpu_bytes: memory of a GPU, for the smallest split that fits into it; None for the split that is asked for.

    Raises:
        UsageError: naming the flag, what was found and what would work.
    """
    asked = flags.merged(args)
    asked.on_gpu = on_gpu
    asked.model = find_model(asked.model or (DEFAULT_ON_GPU if on_gpu else DEFAULT_ON_CPU))
    asked.precision = find_precision(asked.precision or "nvfp4")
    if not on_gpu:
        checks.check_cpu(asked.model, asked.precision)
    recipe_checks.check_precision(args.nvfp4, asked.precision.name)
    if asked.plugin:
        plugin_file.inspect(asked.plugin)
    numerics = _numerics(asked)
    past = _begins_with(asked, {**asked.overrides, "model.num_layers": numerics["num_layers"]})
    sizes = _sizes(asked, past["iteration"])
    switch = recipe_checks.late_switch(asked, numerics["nvfp4"], sizes["train_iters"], past["iteration"])
    if gpu_bytes is not None and processes is not None and processes > 1:
        word = numerics["nvfp4"].switch if numerics["nvfp4"] else switch["switch"]
        _fit(asked, sizes, processes, gpu_bytes, LateSwitch.of(word))
    split = _split(asked, {**numerics, **sizes}, processes)
    return Settings(
        model=asked.model,
        precision=asked.precision,
        **numerics,
        **past,
        **sizes,
        **split,
        **_data(asked),
        **_leaves(asked, sizes["train_iters"]),
        **switch,
        sensitivity=checks.sensitivity(asked, {**numerics, **sizes, **past, **switch}),
        no_probe=asked.no_probe,
        seed=flags.SEED if asked.seed is None else asked.seed,
        overrides=dict(sorted(asked.overrides.items())),
        config=asked.file,
        plugin=asked.plugin and asked.plugin.absolute(),
        left=asked.left,
        why=asked.why,
    )


def _numerics(asked: argparse.Namespace) -> dict[str, Any]:
    """In what it computes, and how many of how many layers at each end stay in BF16."""
    model, precision, emulator = asked.model, asked.precision, checks.emulator(asked)
    layers = model.num_layers if asked.num_layers is None else asked.num_layers
    if layers < 1:
        raise UsageError(f"--num-layers is {layers}; it must be at least 1")
    head = precision.bf16_head if asked.bf16_head_layers is None else asked.bf16_head_layers
    tail = default_tail(precision, layers) if asked.bf16_tail_layers is None else asked.bf16_tail_layers
    if not precision.quantized:
        head = tail = 0
    if min(head, tail) < 0:
        raise UsageError(f"--bf16-head-layers {head} --bf16-tail-layers {tail}: neither can be negative")
    checks.delayed_scaling(asked, head + tail)
    if head + tail >= layers:
        raise UsageError(
            f"{head} first and {tail} last layers in BF16 leave none of {model.name}'s {layers} layers in "
            f"{precision.name}; lower --bf16-head-layers or --bf16-tail-layers"
        )
    return {
        "num_layers": layers,
        "bf16_head_layers": head,
        "bf16_tail_layers": tail,
        "emulate": emulator,
        "nvfp4": recipe_checks.recipe(asked, emulator, layers, (head, tail)),
        "tuned": checks.tuned(asked),
        "engine_switches": nvfp4_recipe.engine_switches(),
    }


def _begins_with(asked: argparse.Namespace, reshaped: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint or the weights that the run begins with, and what becomes of them; `reshaped` is the model."""
    if asked.iteration is not None and asked.resume is None:
        raise UsageError(f"--iteration {asked.iteration} is one of a run's checkpoints: --resume RUN names the run")
    iteration = checkpoint.find(asked.resume, asked.iteration) if asked.resume else None
    own = asked.precision if asked.trains and not asked.sensitivity else None
    resume = checks.resume(asked.resume, asked.model, own, asked.finetune)
    if asked.weights and resume and not asked.finetune:  # adapters are continued on the weights that they adapt
        raise UsageError("--from begins with other weights and --resume with a checkpoint's; give one of them")
    weights = checks.starting_weights(asked, reshaped)
    if not asked.trains:
        checks.trains_nothing(asked)
    return {
        "resume": resume,
        "iteration": iteration,
        "weights": weights,
        "finetune": asked.finetune,
        "evaluate": asked.evaluate,
        "export": asked.export and asked.export.absolute(),
    }


def _sizes(asked: argparse.Namespace, past: int | None) -> dict[str, int]:
    """Iterations and the batch, but for the micro batch; `past`: the checkpoint's iteration."""
    asked_for = {name: getattr(asked, name) for name in ("train_iters", "warmup_iters", "global_batch_size")}
    sizes = {**asked_for, "sequence_length": asked.seq_length}
    sizes = {name: getattr(asked.model, name) if size is None else size for name, size in sizes.items()}
    # A shortened run keeps its warm-up shorter than itself; only an explicit contradiction is an error.
    if asked.warmup_iters is None:
        sizes["warmup_iters"] = min(sizes["warmup_iters"], max(1, sizes["train_iters"] // 5))
    for name, least in (("train_iters", 1), ("warmup_iters", 0), ("global_batch_size", 1), ("sequence_length", 2)):
        if sizes[name] < least:
            raise UsageError(f"{flag_of(name)} is {sizes[name]}; it must be at least {least}")
        if sizes[name] >= 2**31:
            raise UsageError(f"{flag_of(name)} is {sizes[name]}; it must be below 2147483648")
    if sizes["warmup_iters"] >= sizes["train_iters"] > 1:
        raise UsageError(
            f"--warmup-iters {sizes['warmup_iters']} is not below --train-iters {sizes['train_iters']}; lower it"
        )
    limit, length = asked.model.hf_config["max_position_embeddings"], sizes["sequence_length"]
    if length > limit:
        raise UsageError(f"--seq-length {length} is over {asked.model.name}'s {limit} positions; lower it")
    return sizes if asked.trains else sizes | {"train_iters": past, "warmup_iters": 0}


def _fit(
    asked: argparse.Namespace, sizes: dict[str, int], processes: int, gpu_bytes: float, switch: LateSwitch | None
) -> None:
    """Ask for the smallest split that fits, in place, and say why it is that."""
    whole = parallel.replicas(dict.fromkeys(parallel.KINDS, 1), asked.model, processes)
    fit = parallel.smallest(
        asked.model,
        with_switch(asked.precision, switch),
        processes=processes,
        gpu_bytes=gpu_bytes,
        micro_batch=checks.micro_batch_size(asked, sizes["global_batch_size"], whole),
        sequence=sizes["sequence_length"],
    )
    asked.tensor_parallel, asked.pipeline_parallel = fit.tensor, fit.pipeline
    asked.why["split"] = fit.reason


def _split(asked: argparse.Namespace, sizes: dict[str, Any], processes: int | None) -> dict[str, int]:
    """What each process gets of the model and of a batch."""
    model, sequence = asked.model, sizes["sequence_length"]
    split = parallel.split_of(asked, model, asked.precision)
    parallel.check(model, sizes["num_layers"], split, on_gpu=asked.on_gpu, sequence=sequence)
    recipe_checks.check_split(sizes["nvfp4"], split, native=asked.on_gpu and not sizes["emulate"])
    replicas = parallel.replicas(split, model, processes or parallel.fewest_processes(split, model))
    micro_batch = checks.micro_batch_size(asked, sizes["global_batch_size"], replicas)
    if asked.on_gpu and asked.precision.fp4 and micro_batch * sequence % _NVFP4_BLOCK:
        raise UsageError(
            f"a micro batch of {micro_batch} x {sequence} tokens: NVFP4's weight gradients take blocks of 16 of them, "
            f"so it must be a multiple of {_NVFP4_BLOCK}; --seq-length {sequence + -sequence % _NVFP4_BLOCK} would be"
        )
    return {**split, "micro_batch_size": micro_batch}


def _data(asked: argparse.Namespace) -> dict[str, Any]:
    """What it reads: each file is there and fits the model."""
    if asked.finetune:
        return {"data": checks.instructions(asked), "blends": {}, "tokenizer": checks.tokenizer(asked)}
    data, found = checks.data(asked.data or asked.model.data, asked.model)
    return {"data": data, "blends": found, "tokenizer": None}


def _leaves(asked: argparse.Namespace, iterations: int) -> dict[str, Any]:
    """What it leaves, and where. On a GPU, what was learned from one's own data is kept at the end."""
    if asked.save is not None and asked.save < 0:
        raise UsageError(f"--save is {asked.save}; it is a number of iterations, or 0 for never")
    own = asked.finetune or (asked.data or MOCK) not in (MOCK, PYTHON_STDLIB)
    save = iterations if asked.save is None and asked.on_gpu and own else asked.save
    return {
        "save": (save or None) if asked.trains else None,
        "run_dir": asked.run_dir and asked.run_dir.absolute(),
        "cache_dir": asked.cache_dir.absolute(),
        "profile": checks.profile(asked, iterations),
        "tensorboard": asked.tensorboard,
        "wandb_project": asked.wandb_project or None,
        "mlflow_experiment": asked.mlflow_experiment or None,
    }


def of_the_file_alone(file: config_file.ConfigFile, *, data: str, cache_dir: Path) -> Settings | None:
    """What a config file was saved with, before anybody edited it, but on `data`; None for one written by hand.

    On as many GPUs as hold the model, wherever this runs: nothing is trained with these settings.
    """
    if file.arguments is None:
        return None
    args = flags.words_of(file, "--data", data, "--cache-dir", str(cache_dir))
    return resolve(args, on_gpu=True, processes=None)
