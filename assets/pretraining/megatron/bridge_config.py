"""From settings to a Megatron-Bridge config: the recipe, then this run's sizes, optimizer, precision, data and folder.

A default that depends on the model stands in `request/models.py`.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from pretraining.data import builtin_text, corpus
from pretraining.errors import UsageError
from pretraining.inputs import finetuning
from pretraining.megatron import compat, linear_layers, tuning, weights, writers
from pretraining.record import run_folder
from pretraining.record.checkpoint import saved_config
from pretraining.request import blends, parallel
from pretraining.request.models import MOCK, PYTHON_STDLIB, Model
from pretraining.request.precisions import Precision

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer, GPTDatasetConfig
    from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
    from megatron.bridge.training.state import GlobalState

    from pretraining.request.settings import Settings


EVALUATION_BATCHES = 32


def build_config(settings: Settings, run_dir: Path, builtin: builtin_text.Text | None) -> ConfigContainer:
    """The config of this run on GPUs; `cpu.adapt` changes it further where there is none.

    Checkpoints go below `run_dir`, never to a folder that two runs share; `builtin` is there where the data is.
    """
    config = _from_recipe(settings.model, settings.finetune)
    config.model.num_layers = settings.num_layers
    _set_parallel_sizes(config, settings)
    _set_training(config, settings)
    config.mixed_precision = mixed_precision(settings.precision, settings.bf16_head_layers, settings.bf16_tail_layers)
    if settings.emulate:
        config.mixed_precision.fp4_recipe = "custom"
        config.model.fp4_quantizer_factory = compat.quantizer_factory(settings.emulate)
    if _needs_bf16_weights(settings):
        compat.keep_bf16_weights(config.mixed_precision)
    if settings.nvfp4 and settings.nvfp4.in_bf16:
        linear_layers.keep(config, settings.nvfp4.kept_in_bf16)
    if settings.tuned:
        _tune(config)
    _set_data(config, settings, builtin)
    _set_checkpoints(config, settings, run_dir)
    if settings.weights and not finetuning.is_run(settings.weights):
        config.model.register_pre_wrap_hook(weights.loader(settings.weights, settings.model))
    # The reference's GEMM returns the product and neither writes `out` nor accumulates: with the fusion, weight
    # gradients would be silently lost.
    if settings.emulate == "reference" or not compat.fuse_gradient_accumulation():
        config.model.gradient_accumulation_fusion = False
    config.logger.log_interval = 1
    writers.configure(config, settings, run_dir)
    return config


def check_built(state: GlobalState, settings: Settings) -> None:
    """Raise UsageError where what Megatron built is not what was asked for, before the first iteration.

    A checkpoint may already be at the end; a plugin or an override may make an evaluation train; and Megatron-Bridge
    0.6 may take a vocabulary from the tokenizer, which would silently make another model.
    """
    done, last = state.train_state.step, state.cfg.train.train_iters
    if not settings.trains and not settings.iteration == done >= last:
        raise UsageError(
            f"{'--evaluate' if settings.evaluate else '--export'} is of iteration {settings.iteration}, and "
            f"Megatron-Bridge would begin at iteration {done} and train until {last}: an override or the plugin says "
            "so; leave it out"
        )
    if settings.trains and done >= settings.train_iters:
        raise UsageError(
            f"--resume {settings.resume} is at iteration {done} and --train-iters is {settings.train_iters}: "
            "nothing is left to train; raise --train-iters"
        )
    if not settings.finetune and state.cfg.dataset.mock != (settings.data == MOCK):
        raise UsageError(
            f"Megatron-Bridge would train on {'mock' if state.cfg.dataset.mock else 'other'} data and not on "
            f"{settings.data}: this version reads the dataset from other fields; use {compat.SUPPORTED}"
        )
    wanted = parallel.padded_words(settings.model.hf_config["vocab_size"], settings.tensor_parallel)
    built = state.cfg.model.vocab_size
    if built != wanted:
        raise UsageError(
            f"Megatron-Bridge built {settings.model.name} with {built} words instead of {wanted}; "
            f"this version takes them from the tokenizer: use {compat.SUPPORTED}"
        )


def mixed_precision(precision: Precision, bf16_head: int, bf16_tail: int) -> MixedPrecisionConfig:
    """The Megatron-Bridge preset of `precision`, with that many first and last layers kept in BF16."""
    from megatron.bridge.training import mixed_precision as presets

    preset = getattr(presets, precision.preset)()
    if precision.quantized:
        preset.first_last_layers_bf16 = bf16_head + bf16_tail > 0
        preset.num_layers_at_start_in_bf16 = bf16_head
        preset.num_layers_at_end_in_bf16 = bf16_tail
    return preset


def _needs_bf16_weights(settings: Settings) -> str:
    """What of a run makes or reads the linear layers' weights by another quantizer or none; "" where nothing does."""
    if settings.emulate:
        return "--emulate"
    if settings.late_switch:
        return f"--switch {settings.late_switch}"
    said = settings.nvfp4.changed() if settings.nvfp4 else {}
    return next((f"{word}={said[word]}" for word in ("bf16", "primary") if word in said), "")


def check_weights(config: ConfigContainer, settings: Settings) -> None:
    """Raise UsageError where the user changed the weights of a run that rests on BF16 ones."""
    if (needs := _needs_bf16_weights(settings)) and (kept := compat.gathered_in(config)):
        raise UsageError(
            f"mixed_precision.{kept}_param_gather=true leaves no BF16 weights for {needs}: drop one of them"
        )


def check_resumed(config: ConfigContainer, settings: Settings) -> None:
    """Raise UsageError where the optimizer's state in the checkpoint is of weights that are kept in another format.

    Megatron's distributed optimizer holds quantized weights and BF16 ones in buffers of their own
    (`DistributedDataParallel`), and a checkpoint that is not fully reshardable stores each as a whole
    (`DistributedOptimizer.sharded_param_state_dp_reshardable`). Adapters are BF16 whatever they are added to.
    """
    loads = settings.resume and config.checkpoint.load_optim and not config.checkpoint.finetune
    if not loads or settings.finetune in finetuning.ADAPTERS:
        return
    saved = saved_config(settings.resume, settings.iteration)
    checkpoint, ddp = saved.get("checkpoint", {}), saved.get("ddp", {})
    whole = ddp.get("use_distributed_optimizer") and not checkpoint.get("dist_ckpt_optim_fully_reshardable")
    if not whole or not checkpoint.get("save_optim", True) or "mixed_precision" not in saved:
        return
    earlier = SimpleNamespace(mixed_precision=SimpleNamespace(**saved["mixed_precision"]))
    theirs, ours = _kept_weights(earlier), _kept_weights(config)
    if theirs != ours:
        needs = _needs_bf16_weights(settings)
        raise UsageError(
            f"--resume {settings.resume} kept its weights in {theirs}, and this run would in {ours}"
            f"{f' for {needs}' if needs else ''}: Megatron stores the optimizer's state by that format, and loads no "
            f"other; {_as_before(earlier, config, needs)}, or begin anew{' with it' if needs else ''}"
        )


def _kept_weights(config: Any) -> str:
    """The format of the linear layers' weights, and which layers keep BF16 all the same."""
    if not (kept := compat.gathered_in(config)):
        return "BF16"
    head, tail = _bf16_ends(config)
    return f"{kept.upper()}{f' but for the first {head} and the last {tail} layers' if head or tail else ''}"


def _bf16_ends(config: Any) -> tuple[int, int]:
    preset = config.mixed_precision
    on = preset.first_last_layers_bf16
    return (preset.num_layers_at_start_in_bf16, preset.num_layers_at_end_in_bf16) if on else (0, 0)


def _as_before(earlier: Any, config: ConfigContainer, needs: str) -> str:
    """What has a run keep its weights as an `earlier` one's config did, where `config` does not, maybe for `needs`."""
    before, now = compat.gathered_in(earlier), compat.gathered_in(config)
    if before == now:
        head, tail = _bf16_ends(earlier)
        return f"resume with --bf16-head-layers {head} --bf16-tail-layers {tail}"
    if before and not getattr(config.mixed_precision, before, None):
        return f"resume in a precision that computes in {before.upper()}"
    if needs:
        return f"leave {needs} out"
    fields = compat.gathering_fields(earlier if before else config)
    return f"resume with {' '.join(f'mixed_precision.{name}={str(bool(before)).lower()}' for name in fields)}"


def native_configs(model: Any, settings: Settings) -> Iterator[tuple[Precision, Any]]:
    """Each precision that the engine's own kernels compute in a run, and the model's built config as it is then.

    That of a late switch has the fields of its preset.
    """
    if settings.precision.quantized and not settings.emulate:
        yield settings.precision, model
    if settings.switches_at is not None and (to := settings.late_switch.precision) and to.quantized:
        preset, model = mixed_precision(to, 0, 0), copy.copy(model)
        model.fp8, model.fp8_recipe, model.fp4 = preset.fp8, preset.fp8_recipe, None
        yield to, model


def follow_changes(config: ConfigContainer) -> None:
    """Set what a user's change asks for elsewhere in the config.

    Megatron's precision-aware optimizer splits FP32 weights into the BF16 ones and 16 more bits only where no FP8
    recipe but delayed scaling is named (`OptimizerConfig.use_precision_aware_optimizer_no_fp8_or_ds_fp8`). The BF16
    preset names one that it does not use, which costs 8B parameters 16 GB.
    """
    preset = config.mixed_precision
    if config.optimizer.use_precision_aware_optimizer and preset.fp8 is None:
        preset.fp8_recipe = None


def _from_recipe(model: Model, finetune: str | None = None) -> ConfigContainer:
    family = importlib.import_module(f"megatron.bridge.recipes.{model.family}")
    name = tuning.recipe_name(model, finetune) if finetune else model.recipe
    with compat.local_hf_config(model.hf_folder):
        config = getattr(family, name)(*(() if finetune in (None, "sft") else (finetune,)))
    if not finetune:  # mock data and token ids need no tokenizer, and one by name would be downloaded
        config.tokenizer.tokenizer_type, config.tokenizer.tokenizer_model = "NullTokenizer", None
    return config


def _set_parallel_sizes(config: ConfigContainer, settings: Settings) -> None:
    model = config.model
    model.context_parallel_size = settings.context_parallel
    model.tensor_model_parallel_size = settings.tensor_parallel
    model.sequence_parallel = settings.tensor_parallel > 1
    if settings.tensor_parallel != settings.model.tensor_parallel and config.comm_overlap is not None:
        for overlap in (config.comm_overlap, getattr(config.comm_overlap, "user_comm_overlap_cfg", None)):
            if overlap is not None:
                overlap.tp_comm_overlap = False  # its buffers are laid out for the recipe's size
    if model.pipeline_model_parallel_size == settings.pipeline_parallel:
        return
    model.pipeline_model_parallel_size = settings.pipeline_parallel
    model.pipeline_dtype = torch.bfloat16 if settings.pipeline_parallel > 1 else None
    # These are the recipe's own split, and no other divides by them.
    model.virtual_pipeline_model_parallel_size = model.pipeline_model_parallel_layout = None
    counted = parallel.counts_embedding(settings.num_layers, settings.pipeline_parallel)
    model.account_for_embedding_in_pipeline_split = model.account_for_loss_in_pipeline_split = counted


def _tune(config: ConfigContainer) -> None:
    """CUDA graphs and fewer checks: faster where the CPU is the bottleneck; a NaN is noticed later, memory is spent."""
    compat.set_cuda_graphs(config)
    config.model.use_te_rng_tracker = config.rng.te_rng_tracker = True  # a graph records no other
    config.rerun_state_machine.check_for_nan_in_loss = False  # it reads the loss on the CPU, within the graph
    config.ddp.check_for_nan_in_grad = False
    linear_layers.quantize_inputs_once(config)


def _set_training(config: ConfigContainer, settings: Settings) -> None:
    train = config.train
    train.train_iters = settings.train_iters
    train.global_batch_size = settings.global_batch_size
    train.micro_batch_size = settings.micro_batch_size
    config.scheduler.lr_warmup_iters = settings.warmup_iters
    config.scheduler.lr_decay_iters = settings.train_iters
    if settings.model.learning_rate:
        config.optimizer.lr, config.optimizer.min_lr = settings.model.learning_rate
    config.rng.seed = settings.seed
    if not settings.finetune:
        config.dataset.random_seed = settings.seed
    compat.set_sequence_length(config, settings.sequence_length)


def _set_data(config: ConfigContainer, settings: Settings, builtin: builtin_text.Text | None) -> None:
    vocabulary = settings.model.hf_config["vocab_size"]
    compat.set_vocabulary(config, vocabulary, parallel.padded_words(vocabulary, settings.tensor_parallel))
    if settings.finetune:
        tuning.set_up(config, settings)
        compat.set_evaluation(config, tuning.evaluation_batches(settings), interval=settings.train_iters + 1)
        return
    dataset = config.dataset
    eval_iters = 0 if settings.data == MOCK or settings.export else settings.model.eval_iters
    if settings.evaluate:
        eval_iters = eval_iters or EVALUATION_BATCHES  # the GPU models' own number is 0: their default data is mock
    # Mock data is used exactly when both blends are None; any other field name would be silently ignored.
    dataset.blend = dataset.blend_per_split = None
    if settings.data != MOCK:
        dataset.path_to_cache = str(corpus.index_folder(settings.cache_dir, settings.blends))
    if settings.data == PYTHON_STDLIB:
        assert builtin is not None
        dataset.split = None
        dataset.blend_per_split = [([builtin.prefix(split)], None) for split in builtin_text.SPLITS]
    elif settings.data != MOCK:
        eval_iters = _set_own_data(dataset, settings.blends, eval_iters)
    compat.set_evaluation(config, eval_iters, interval=settings.train_iters + 1)  # only at the end


def _set_own_data(dataset: GPTDatasetConfig, parsed: dict[str, blends.Blend], eval_iters: int) -> int:
    """Set the blends; returns the evaluation batches, 0 where there is nothing to evaluate on."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    if blends.ALL not in parsed:
        dataset.split = None
        dataset.blend_per_split = [parsed[split].as_megatron() if split in parsed else None for split in blends.SPLITS]
        return eval_iters if {"valid", "test"} <= set(parsed) else 0
    dataset.blend = parsed[blends.ALL].as_megatron()
    # Megatron splits by whole documents and loops for ever over a split that got none: hold out only what will
    # be evaluated, and nothing where there are too few documents for 18 : 1 : 1.
    if min(len(IndexedDataset(prefix)) for prefix in parsed[blends.ALL].prefixes) < 20:
        eval_iters = 0
    dataset.split = "18,1,1" if eval_iters else "1,0,0"
    return eval_iters


def _set_checkpoints(config: ConfigContainer, settings: Settings, run_dir: Path) -> None:
    checkpoint = config.checkpoint
    # The recipes save to and load from one shared folder: a second run would resume at the end and train nothing.
    checkpoint.save = checkpoint.load = None
    if settings.save:
        checkpoint.save = str(run_dir / run_folder.CHECKPOINTS)
        checkpoint.save_interval = settings.save
        if settings.precision.fp4:
            compat.save_packed_weights(config)
    if settings.resume:
        checkpoint.load = str(settings.resume / run_folder.CHECKPOINTS)
        checkpoint.ckpt_step = settings.iteration  # the one that was looked at, whatever is saved meanwhile
        checkpoint.load_optim = checkpoint.load_rng = settings.trains
