# ruff: noqa: E402 - cpu.enable() comes before the imports of Megatron
"""Run by the tests with one version of Megatron-Bridge: every model in every precision, built, validated, read back.

    python contract.py ANSWERS.json

No weights are made. Transformer Engine is a stand-in that has a version and nothing else.
"""

from __future__ import annotations

import inspect
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from pretraining import packages
from pretraining.megatron import cpu

cpu.enable()

import torch
from megatron.bridge.training.config import ConfigContainer, runtime_config_update

from pretraining.megatron import changes, compat
from pretraining.numerics import late_switch
from pretraining.request import flags as training_flags
from pretraining.request import footprint, models, precisions, settings

RUN = Path("/nowhere/run")


def settings_of(*flags: str) -> tuple[settings.Settings, int]:
    """Settings of a command line on GPUs, on as few processes as hold the model."""
    args = training_flags.parser("contract").parse_args(list(flags))
    chosen = settings.resolve(args, on_gpu=True, processes=None)
    return chosen, chosen.fewest_processes


def built(*flags: str) -> tuple[settings.Settings, ConfigContainer, int]:
    """The config of a command line, and the processes it is for."""
    chosen, processes = settings_of(*flags)
    config, _ = changes.configured(chosen, RUN, None, None)
    return chosen, config, processes


def validated(config: ConfigContainer, processes: int) -> None:
    """What `pretrain()` does to a config first."""
    # Kernels of Transformer Engine's, and the stand-in has none.
    config.model.apply_rope_fusion = config.model.moe_permute_fusion = False
    os.environ["WORLD_SIZE"] = str(processes)
    runtime_config_update(config)


def asked(chosen: settings.Settings) -> dict[str, Any]:
    """Each field that the playbook sets, and its value."""
    model, row = chosen.model, chosen.precision
    words = model.hf_config["vocab_size"]
    eval_section = compat.evaluation_section()
    wanted = {
        "train.train_iters": chosen.train_iters,
        "train.global_batch_size": chosen.global_batch_size,
        "train.micro_batch_size": chosen.micro_batch_size,
        "scheduler.lr_warmup_iters": chosen.warmup_iters,
        "scheduler.lr_decay_iters": chosen.train_iters,
        "model.seq_length": chosen.sequence_length,
        "dataset.seq_length": chosen.sequence_length,
        "rng.seed": chosen.seed,
        "dataset.random_seed": chosen.seed,
        "dataset.blend": None,
        "dataset.blend_per_split": None,
        "model.vocab_size": words,
        "tokenizer.vocab_size": words,
        "model.num_layers": chosen.num_layers,
        "model.tensor_model_parallel_size": chosen.tensor_parallel,
        "model.pipeline_model_parallel_size": chosen.pipeline_parallel,
        "model.context_parallel_size": 1,
        f"{eval_section}.eval_iters": 0,
        f"{eval_section}.eval_interval": chosen.train_iters + 1,
        "checkpoint.save": None,
        "checkpoint.load": None,
        "logger.log_interval": 1,
        "logger.tensorboard_dir": None,
        "model.bf16": True,
        "model.fp4": "e2m1" if row.name == "nvfp4" else None,
        "model.fp8": None if row.name in ("bf16", "nvfp4") else config_of_preset(row).fp8,
    }
    if row.name != "bf16":
        kept = chosen.bf16_head_layers + chosen.bf16_tail_layers > 0
        wanted |= {
            "model.first_last_layers_bf16": kept,
            "model.num_layers_at_start_in_bf16": chosen.bf16_head_layers,
            "model.num_layers_at_end_in_bf16": chosen.bf16_tail_layers,
        }
    return wanted


def config_of_preset(row: precisions.Precision) -> Any:
    """The preset, untouched."""
    from megatron.bridge.training import mixed_precision

    return getattr(mixed_precision, row.preset)()


def lost(config: ConfigContainer, wanted: dict[str, Any]) -> dict[str, Any]:
    """The fields of which something else is read back, with that."""
    from pretraining.megatron import fields

    answer = {}
    for name, value in wanted.items():
        section, _, last = name.partition(".")
        known = last in fields.field_names(getattr(config, section))
        found = fields.read_field(config, name)
        if not known or found != value:
            answer[name] = {"wanted": value, "found": str(found) if known else "no such field"}
    return answer


def every_config() -> dict[str, Any]:
    """For "model precision": the fields that were lost, {} where none was."""
    answer: dict[str, Any] = {}
    for name in models.MODELS:
        experts = footprint.shape_of(models.MODELS[name].hf_config).experts
        for row in precisions.PRECISIONS:
            if experts and precisions.PRECISIONS[row].delayed:
                continue  # refused
            try:
                chosen, config, processes = built("--model", name, "--precision", row, "--data", "mock")
                validated(config, processes)
                answer[f"{name} {row}"] = lost(config, asked(chosen))
            except Exception:
                answer[f"{name} {row}"] = {"error": traceback.format_exc()[-1500:]}
    return answer


def words() -> dict[str, int]:
    """The vocabulary that mock-data models end up with: 0.6 would take a tokenizer's 32,000."""
    answer = {}
    for name in ("llama31-8b", "llama32-1b", "llama3-8b"):
        _, config, processes = built("--model", name)
        validated(config, processes)
        answer[name] = config.model.vocab_size
    return answer


def gathers() -> dict[str, str]:
    """In which format each preset stores and gathers weights."""
    answer = {}
    for name, row in precisions.PRECISIONS.items():
        preset = config_of_preset(row)
        quantized = {"FP8": preset.fp8_param_gather, "FP4": getattr(preset, "fp4_param_gather", False)}
        answer[name] = next((kind for kind, on in quantized.items() if on), "BF16")
    _, config, _ = built("--model", "llama32-1b", "--precision", "nvfp4", "--nvfp4", "primary=bf16")
    kept = not getattr(config.mixed_precision, "fp4_param_gather", False)
    answer["nvfp4 primary=bf16"] = "BF16" if kept else "FP4"
    return answer


def tuned() -> dict[str, Any]:
    """What the tuned preset comes to, after Megatron's own checks of it."""
    _, config, processes = built("--tuned", "--precision", "nvfp4", "--model", "llama31-8b")
    validated(config, processes)
    scope = getattr(config.model, "cuda_graph_scope", None) or []
    return {
        "impl": config.model.cuda_graph_impl,
        "scope": [each.name for each in scope],
        "rng": (config.model.use_te_rng_tracker, config.rng.te_rng_tracker),
        "checks": (config.rerun_state_machine.check_for_nan_in_loss, config.ddp.check_for_nan_in_grad),
        "tail": config.model.num_layers_at_end_in_bf16,
    }


OVERRIDES = ("optimizer.lr=1e-4", "model.attention_backend=flash", "model.recompute_modules=[core_attn]",
             "optimizer.exp_avg_dtype=bf16", "comm_overlap.tp_comm_overlap=true")  # fmt: skip


def kept_in_bf16() -> dict[str, Any]:
    """How Megatron-Core reads what its layers are told, and how weights are gathered then."""
    from megatron.core.extensions import transformer_engine

    _, config, _ = built("--model", "llama31-8b", "--nvfp4", "bf16=qkv,layers:0")
    told = []
    chunk = torch.nn.Module()
    chunk.decoder, layer = torch.nn.Module(), torch.nn.Module()
    layer.linear_fc1, layer.layer_number = torch.nn.Module(), 1
    layer.linear_fc1.finish_init = told.append
    chunk.decoder.layers = torch.nn.ModuleList([layer])
    config.model.pre_wrap_hook([chunk])
    read = transformer_engine.TEQuantizationParams.parse_from_config(told[0])
    return {
        "quantized": [
            transformer_engine._get_should_context_be_quantized_params(read, training, True)
            for training in (True, False)
        ],
        "gather": compat.gathered_in(config),
    }


SWITCHES = ("fp8 6:bf16", "mxfp8 6:bf16", "fp8_blockwise 6:bf16", "nvfp4 6:bf16", "nvfp4 6:fp8")


def switched() -> dict[str, Any]:
    """The weights' format under a late switch, and what its layers ask Megatron-Core for before and after it."""
    from megatron.core import fp4_utils, fp8_utils
    from megatron.core.transformer import transformer_block

    from pretraining.megatron import switching

    contexts = {"get_fp8_context": fp8_utils, "get_fp4_context": fp4_utils}
    answer: dict[str, Any] = {
        name: list(inspect.signature(getattr(module, name)).parameters) for name, module in contexts.items()
    }
    for words in SWITCHES:
        precision, to = words.split()
        chosen, config, processes = built("--model", "llama32-1b", "--precision", precision, "--switch", to)
        switching.check(config, chosen)
        validated(config, processes)
        seen: list[str] = []
        for name, module in contexts.items():
            setattr(module, name, _seeing(name, seen))
            setattr(transformer_block, name, getattr(module, name))
        switching.provide(config, chosen)
        for done in (5, 6):
            late_switch.use(chosen.late_switch, chosen.switches_at, done=done)
            block = "get_fp4_context" if config.model.fp4 else "get_fp8_context"
            getattr(transformer_block, block)(config.model, 4)
        answer[words] = [compat.gathered_in(config), *seen]
    return answer


def _seeing(name: str, seen: list[str]) -> Any:
    """In place of a context of Megatron-Core's, one that keeps of which format and recipe it was asked for."""

    def context(config: Any, layer_no: int, is_init: bool) -> None:
        number = name[4:7]
        seen.append(f"{getattr(config, number)} {getattr(config, f'{number}_recipe')}")

    context.__name__ = name
    return context


def saved() -> dict[str, Any]:
    """A config with overrides, saved and taken back: what the overrides came to, and whether both are the same."""
    path = Path(sys.argv[1]).with_name("saved.yaml")
    chosen, _ = settings_of("--model", "llama31-8b", *OVERRIDES)
    config, changed = changes.configured(chosen, RUN, None, None)
    text = changes.as_text(config, chosen, changed)
    path.write_text(text)
    again, _ = settings_of("--config", str(path))
    config, changed = changes.configured(again, RUN, None, None)
    return {"same": changes.as_text(config, again, changed) == text, "facts": changes.facts(again, changed)}


def main() -> None:
    """Write the answers."""
    answers: dict[str, Any] = {"versions": packages.installed(), "import_seconds": time.process_time()}
    for question in (every_config, words, gathers, tuned, kept_in_bf16, switched, saved):
        try:
            answers[question.__name__] = question()
        except Exception:
            answers[question.__name__] = {"error": traceback.format_exc()}
    answers["cpu_seconds"] = time.process_time()
    answers["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(sys.argv[1]).write_text(json.dumps(answers, indent=1, default=str))


if __name__ == "__main__":
    main()
