"""What `probe.py` asks of configs: presets, overrides, files, plugins, splits, footprints."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from megatron.bridge.training import mixed_precision
from megatron.bridge.training.config import ConfigContainer
from megatron.bridge.training.utils import mlflow_utils

import pretrain_llama
from pretraining.errors import UsageError
from pretraining.megatron import bridge_config, changes, compat, cpu, fields
from pretraining.megatron.plugin import Plugin
from pretraining.request import flags as training_flags
from pretraining.request import models, overrides, settings
from pretraining.request.precisions import PRECISIONS

FOLDER = Path(sys.argv[1])


def presets() -> dict[str, Any]:
    """The preset of each precision: its formats, its head and tail layers."""
    answer = {}
    for name, row in PRECISIONS.items():
        found = getattr(mixed_precision, row.preset)()
        kept = found.first_last_layers_bf16
        answer[name] = {
            "bf16": found.bf16,
            "fp8": found.fp8,
            "recipe": found.fp8_recipe,
            "fp4": found.fp4,
            "head": found.num_layers_at_start_in_bf16 if kept else 0,
            "tail": found.num_layers_at_end_in_bf16 if kept else 0,
        }
    return answer


def missing_recipes() -> list[str]:
    """Recipes of the table that this Megatron-Bridge does not have."""
    families = {model.name: f"megatron.bridge.recipes.{model.family}" for model in models.MODELS.values()}
    return [
        model.recipe
        for model in models.MODELS.values()
        if not callable(getattr(importlib.import_module(families[model.name]), model.recipe, None))
    ]


def resolved(*flags: str, processes: int = 1, on_gpu: bool = False) -> tuple[settings.Settings, ConfigContainer]:
    """Settings and config of a command line."""
    args = training_flags.parser("probe").parse_args(list(flags))
    chosen = settings.resolve(args, on_gpu=on_gpu, processes=processes)
    return chosen, bridge_config.build_config(chosen, FOLDER / "run", None)


def primary_weights() -> dict[str, bool]:
    """Of words of the NVFP4 recipe: whether the preset is told to keep BF16 weights; only 0.4.2 has what to tell."""
    told: list[Any] = []
    keep, compat.keep_bf16_weights = compat.keep_bf16_weights, told.append
    try:
        answer = {}
        for word in ("primary=fp4", "primary=bf16", "bf16=qkv"):
            told.clear()
            resolved("--model", "llama32-1b", "--nvfp4", word, on_gpu=True)
            answer[word] = bool(told)
    finally:
        compat.keep_bf16_weights = keep
    return answer


def fewest(*flags: str) -> int:
    """Processes that hold the model of a command line."""
    return settings.resolve(
        training_flags.parser("probe").parse_args(list(flags)), on_gpu=True, processes=None
    ).fewest_processes


def changed(*flags: str, on_gpu: bool = True) -> tuple[settings.Settings, ConfigContainer, dict[str, changes.Change]]:
    """Settings, config and changes of a command line."""
    args = training_flags.parser("probe").parse_args(["--data", "mock", *flags])
    chosen = settings.resolve(args, on_gpu=on_gpu, processes=1)
    plugin = Plugin(chosen.plugin) if chosen.plugin else None
    config, found = changes.configured(chosen, FOLDER / "run", plugin, None)
    return chosen, config, found


def refused(*flags: str, on_gpu: bool = True) -> str:
    """What is said of a command line."""
    try:
        changed(*flags, on_gpu=on_gpu)
    except UsageError as error:
        return str(error)
    return "accepted"


OVERRIDES = (
    "optimizer.lr=1e-4", "optimizer.lr=x", "model.hidden_size=64", "model.hidden_size=6.5",
    "model.attention_backend=flash", "model.attention_backend=flahs", "model.recompute_modules=[core_attn,mlp]",
    "model.recompute_granularity=null", "optimizer.exp_avg_dtype=bf16", "optimizer.exp_avg_dtype=x",
    "model.activation_func=torch.nn.functional.gelu", "model.activation_func=torch.nn.functional.gelo",
    "model.activation_func=os.system", "model.activation_func=megatron.core.utils.warnings.warn",
    "comm_overlap={_target_: megatron.core.utils.divide, numerator: 4, denominator: 2}",
    "ddp.overlap_grad_reduce=false", "ddp.overlap_grad_reduce=0", "logger.wandb_project=12",
    "comm_overlap.tp_comm_overlap=true", "model.num_layer=8", "modle.num_layers=8", "optimizer.train_iters=3",
    "model.bf16=false", "ddp.grad_reduce_in_fp32=false", "mixed_precision.grad_reduce_in_fp32=false",
)  # fmt: skip


def overridden() -> dict[str, Any]:
    """For each override: the value that the config's own field holds, or what is said."""
    answer = {}
    for word in OVERRIDES:
        try:
            _, config, found = changed(word)
            name = word.partition("=")[0]
            value = fields.read_field(config, name)
            assert value == found[name].value
            answer[word] = str(value)
        except UsageError as error:
            answer[word] = f"! {error}"
    return answer


def split_weights() -> dict[str, Any]:
    """Whether Megatron's optimizer would keep 16 more bits of each BF16 weight, and whether a saved config says so."""
    answer, aware = {}, "optimizer.use_precision_aware_optimizer=true"
    for flags in (("bf16",), ("nvfp4",), ("bf16", aware), ("nvfp4", aware), ("fp8", aware)):
        chosen, config, found = changed("--precision", *flags)
        path = FOLDER / "split.yaml"
        path.write_text(changes.as_text(config, chosen, found))
        _, again, taken = changed("--config", str(path))
        recipe = again.mixed_precision.fp8_recipe
        split = again.optimizer.use_precision_aware_optimizer and recipe in (None, "delayed")
        answer[" ".join(flags)] = [recipe == config.mixed_precision.fp8_recipe, split, sorted(taken)]
    return answer


def undone() -> str:
    """What is said of an override that the CPU runtime undoes."""
    _, config, found = changed("--model", "tiny", "model.transformer_impl=transformer_engine", on_gpu=False)
    cpu.adapt(config)
    try:
        changes.check_kept(config, found, changes.CPU)
    except UsageError as error:
        return str(error)
    return "accepted"


GATHER, SHARED = "mixed_precision.fp8_param_gather", "mixed_precision.reuse_grad_buf_for_mxfp8_param_ag"
# Precision, flags and overrides of an earlier run, and of the one that continues it.
RESUMED = (
    "fp8 | fp8", "fp8 | fp8 --switch 6", f"fp8 | fp8 {GATHER}=false", "fp8 | fp8 mixed_precision.fp8_param=false",
    "fp8 | bf16", "bf16 | fp8", "fp8 | nvfp4 --emulate", "fp8 | fp8 --switch 6 checkpoint.load_optim=false",
    "fp8 checkpoint.save_optim=false | fp8 --switch 6", "fp8 ddp.use_distributed_optimizer=false | fp8 --switch 6",
    "fp8 checkpoint.dist_ckpt_optim_fully_reshardable=true | fp8 --switch 6",
    "fp8 | fp8 --bf16-tail-layers 3", "fp8 --bf16-head-layers 0 --bf16-tail-layers 0 | fp8",
    "fp8 --switch 6 | fp8", "fp8 --switch 6 | fp8 --switch 7 --bf16-tail-layers 3",
    f"fp8 --switch 6 | fp8 {GATHER}=false", "mxfp8 --switch 6 | mxfp8",
    f"mxfp8 --switch 6 | mxfp8 {GATHER}=false {SHARED}=false", f"mxfp8 | mxfp8 {GATHER}=false {SHARED}=false",
    "fp8_blockwise | fp8_blockwise --switch 6", "nvfp4 --save 3 | nvfp4 --emulate",
    "nvfp4 --save 3 --emulate | nvfp4 --switch 6",
)  # fmt: skip


def resumed() -> dict[str, str]:
    """Of each pair of `RESUMED`, and of what loads no optimizer of the weights: what is said of the checkpoint."""
    earlier = FOLDER / "earlier"
    file = earlier / "checkpoints" / "iter_0000003" / "run_config.yaml"
    file.parent.mkdir(parents=True)
    answer = {}
    for pair in RESUMED:
        before, now = (("--model", "llama32-1b", "--precision", *words.split()) for words in pair.split(" | "))
        changed(*before)[1].to_yaml(str(file))
        chosen, config, _ = changed(*now)
        answer[pair] = _said_of(config, replace(chosen, resume=earlier, iteration=3))
    changed("--model", "llama32-1b", "--precision", "fp8")[1].to_yaml(str(file))
    chosen, config, _ = changed("--model", "llama32-1b", "--precision", "bf16")
    chosen = replace(chosen, resume=earlier, iteration=3)
    answer["lora"] = _said_of(config, replace(chosen, finetune="lora"))
    for way, flags in {"evaluate": {"evaluate": True}, "export": {"export": FOLDER}, "train": {}}.items():
        config = bridge_config.build_config(replace(chosen, **flags), FOLDER / "run", None)
        answer[way] = _said_of(config, replace(chosen, **flags))
    try:
        pretrain_llama.make_ready(config, {}, chosen, SimpleNamespace(rank=1, folder=FOLDER), on_gpu=True)
    except UsageError as error:
        answer["as a run"] = str(error)
    return answer


def _said_of(config: ConfigContainer, chosen: settings.Settings) -> str:
    try:
        bridge_config.check_resumed(config, chosen)
    except UsageError as error:
        return str(error).removeprefix(f"--resume {chosen.resume} ")
    return "accepted"


OVERLAP = "{_target_: megatron.bridge.training.comm_overlap.CommOverlapConfig, tp_comm_overlap: true}"


def changes_in(text: str) -> list[str]:
    """The overrides among the arguments of a saved config."""
    return training_flags.parser("probe").parse_args(yaml.safe_load(text)["playbook"]["arguments"]).overrides or []


def config_files() -> dict[str, Any]:
    """A saved config, taken back as it is, edited, with other flags, and in another precision."""
    path, by_hand = FOLDER / "saved.yaml", FOLDER / "hand.yaml"
    chosen, config, found = changed("optimizer.lr=0.001", "model.num_layers=8", "--seed", "5")
    text = changes.as_text(config, chosen, found)

    def taken(*flags: str, edit: tuple[str, str] = ("", "")) -> dict[str, Any]:
        path.write_text(text.replace(*edit) if edit[0] else text)
        chosen, config, found = changed("--config", str(path), *flags)
        return {
            "changes": {name: change.value for name, change in found.items()},
            "seed": chosen.seed,
            "iterations": (config.train.train_iters, config.scheduler.lr_decay_iters),
            "layers": (chosen.num_layers, chosen.bf16_tail_layers),
            "beta": config.optimizer.adam_beta2,
            "fp4": config.mixed_precision.fp4,
            "overlap": config.comm_overlap and config.comm_overlap.tp_comm_overlap,
            "parsed": sorted(overrides.parse(changes_in(changes.as_text(config, chosen, found)))),
            "same": changes.as_text(config, chosen, found) == text,
        }

    by_hand.write_text("optimizer:\n  lr: 1.0e-3\nmodel: {seq_length: 128}\ntrain: {manual_gc_interval: 7}\n")
    chosen, _, found = changed("--config", str(by_hand))
    answer: dict[str, Any] = {
        "again": taken(),
        "edited": taken(edit=("adam_beta2: 0.95", "adam_beta2: 0.9")),
        "edited setting": taken(edit=("train_iters: 50", "train_iters: 70")),
        "flags": taken("--train-iters", "90", "optimizer.lr=0.002"),
        "bf16": taken("--precision", "bf16"),
        "whole section": taken(edit=("comm_overlap: null", f"comm_overlap: {OVERLAP}")),
        "empty section": taken(edit=("comm_overlap: null", "comm_overlap:")),
        "another model": taken("--model", "llama32-1b"),
        "by hand": [{name: change.value for name, change in found.items()}, chosen.sequence_length],
    }
    path.write_text(text.replace("adam_beta2", "adam_betta2"))
    answer["unknown field"] = refused("--config", str(path))
    path.write_text("a: [")
    answer["no yaml"] = refused("--config", str(path))
    path.write_text("optimizer.lr: 3")
    answer["no sections"] = refused("--config", str(path))
    return answer


PLUGIN = """
def configure(config):
    config.optimizer.lr = 0.5
    config.optimizer.min_lr = 0.25
"""


def plugins() -> dict[str, Any]:
    """A plugin's change, an override that wins over it, and what is said of plugins that fail."""
    path = FOLDER / "my.py"
    path.write_text(PLUGIN)
    _, config, _ = changed("--plugin", str(path), "optimizer.lr=0.125")
    answer: dict[str, Any] = {"rates": (config.optimizer.lr, config.optimizer.min_lr)}
    for name, text in {
        "fails": PLUGIN + "    1 / 0\n",
        "at import": "import nowhere_to_be_found\ncallbacks = []\n",
        "syntax": "def configure(config)\n",
        "nothing": "def configre(config): ...\n",
        "two": "def loss(m, o): ...\ndef forward_step(s, d, m, r=False): ...\n",
    }.items():
        path.write_text(text)
        answer[name] = refused("--plugin", str(path))
    return answer


def gpu_configs() -> dict[str, Any]:
    """What would train on GPUs, for every model, on as many processes as its recipe wants."""
    answer = {}
    for name, model in models.MODELS.items():
        if model.on_cpu:
            continue
        if "hybrid_override_pattern" in model.hf_config:
            continue
        flags = ("--model", name, "--data", models.MOCK)  # the built-in text need not be there to be sized
        chosen, config = resolved(*flags, on_gpu=True, processes=fewest(*flags))
        provider, preset = config.model, config.mixed_precision
        answer[name] = {
            "num_hidden_layers": provider.num_layers,
            "hidden_size": provider.hidden_size,
            "intermediate_size": provider.ffn_hidden_size,
            "num_attention_heads": provider.num_attention_heads,
            "num_key_value_heads": provider.num_query_groups,
            "vocab_size": provider.vocab_size,
            "head_dim": provider.kv_channels,
            "rms_norm_eps": provider.layernorm_epsilon,
            "rope_theta": provider.rotary_base,
            "tie_word_embeddings": provider.share_embeddings_and_output_weights,
            "rope_factor": provider.rope_scaling_factor if provider.rope_scaling else None,
            "run": {
                "sequence": (provider.seq_length, config.dataset.seq_length),
                "batch": (config.train.global_batch_size, config.train.micro_batch_size),
                "iterations": (config.train.train_iters, config.scheduler.lr_warmup_iters),
                "decay": config.scheduler.lr_decay_iters,
                "rate": (config.optimizer.lr, config.optimizer.min_lr),
                "blend": (config.dataset.blend, config.dataset.blend_per_split),
                "checkpoint": (config.checkpoint.save, config.checkpoint.load),
                "fp4": preset.fp4,
                "tail": (preset.first_last_layers_bf16, preset.num_layers_at_end_in_bf16, chosen.bf16_tail_layers),
                "head": preset.num_layers_at_start_in_bf16,
            },
        }
    return answer


def splits() -> dict[str, Any]:
    """How the recipes split the models."""
    answer = {}
    for name, model in models.MODELS.items():
        provider = bridge_config._from_recipe(model).model
        answer[name] = {
            "tensor": provider.tensor_model_parallel_size,
            "pipeline": provider.pipeline_model_parallel_size,
            "virtual": provider.virtual_pipeline_model_parallel_size or 1,
            "expert": provider.expert_model_parallel_size,
            "context": provider.context_parallel_size,
        }
    return answer


def megatrons_footprints() -> dict[str, Any]:
    """Megatron's own count of weight, gradient and optimizer bytes, of activation bytes, and of FLOPs a token."""
    from megatron.bridge.training.utils import theoretical_memory_utils as theirs
    from megatron.bridge.training.utils.flop_utils import num_floating_point_operations

    answer = {}
    for name in models.MODELS:
        for replicas in (1, 4):
            processes = fewest("--model", name) * replicas
            flags = ("--model", name, "--data", "mock", "--precision", "bf16")
            chosen, config = resolved(*flags, on_gpu=True, processes=processes)
            config.data_parallel_size = processes // (chosen.tensor_parallel * chosen.pipeline_parallel)
            microbatches = chosen.global_batch_size // chosen.micro_batch_size // config.data_parallel_size
            answer[f"{name} {processes}"] = {
                "state": theirs.compute_weight_and_optimizer_memory(config),
                "activations": theirs.compute_activation_memory(config, microbatches),
                "flops": num_floating_point_operations(config, 1) / chosen.sequence_length,
            }
    return answer


def copied_to_mlflow() -> list[str]:
    """What Megatron-Bridge hands to MLflow of a saved checkpoint where its config has no switch against it."""
    copied = []
    compat.keep_checkpoints_out_of_mlflow(SimpleNamespace(logger=SimpleNamespace()))
    logger = SimpleNamespace(log_artifacts=lambda folder, **more: copied.append(folder))
    mlflow_utils.on_save_checkpoint_success("/c/iter_0000001", "/c", 1, logger)
    return copied
