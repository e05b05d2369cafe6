"""`environment.json`: what ran, where, in which precision, and the facts two runs must share to be compared."""

from __future__ import annotations

import os
import platform
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pretraining import packages
from pretraining.data import builtin_text, corpus
from pretraining.inputs import finetuning
from pretraining.megatron import compat
from pretraining.record import code_state, run_folder
from pretraining.request.models import MOCK, PYTHON_STDLIB

if TYPE_CHECKING:
    from megatron.bridge.training.callbacks import CallbackContext

    from pretraining.request.settings import Settings


class EnvironmentFile:
    """The run folder's `environment.json`: rank 0, which `writes`, does so before the model exists, and again then."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        on_gpu: bool,
        processes: int,
        builtin: builtin_text.Text | None,
        writes: bool,
    ) -> None:
        self._path, self._settings, self._builtin, self._writes = folder, settings, builtin, writes
        self._known = {
            "kind": run_folder.KIND,
            "schema": run_folder.SCHEMA,
            "started": run_folder.utc_now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "model": settings.model.name,
            "precision": describe_precision(settings, on_gpu=on_gpu),
            "versions": {"python": platform.python_version(), **packages.installed()},
            "device": describe_device(on_gpu),
            "mock_data": settings.data == MOCK,
            "tokens_per_step": settings.tokens_per_step,
            "processes": processes,
            "resumed_from": str(settings.resume) if settings.resume else None,
            "weights_from": settings.weights,
            "finetuned": settings.finetune,
            "trained": settings.trains,
            **({"measured" if settings.sensitivity else "profiled": settings.watched} if settings.watched else {}),
            **({"text": {"bigram_entropy": builtin.bigram_entropy, "tokens": builtin.tokens}} if builtin else {}),
        }
        self._write()

    def complete(self, context: CallbackContext, sampling: dict[str, Any], changed: dict[str, Any]) -> None:
        """Add what is known of the built model, whose `context` is `on_train_start`'s. Every process must call it.

        `sampling` is what rank 0's device sampler says of itself, `changed` the parity facts of the user's changes.
        """
        data = identify_data(self._settings, self._builtin) if self._writes else ""  # it reads the whole index
        facts = parity_facts(self._settings, self._known["device"], context, data) | changed
        if self._writes:
            about, flops = context_facts(self._settings, context), flops_per_token(context)
            self.add(sampling=sampling, parity=facts, context=about, flops_per_token=flops)

    def add(self, **facts: Any) -> None:
        """Add what came to be known since."""
        self._known |= facts
        self._write()

    def _write(self) -> None:
        if self._writes:
            run_folder.write_json(self._path / run_folder.ENVIRONMENT, self._known)


def describe_precision(settings: Settings, *, on_gpu: bool) -> dict[str, Any]:
    """Which arithmetic the linear layers use. Emulated: exact values, computed without tensor cores of the format."""
    facts: dict[str, Any] = {
        "name": settings.precision.name,
        "arithmetic": "native" if on_gpu and not settings.emulate else "emulated",
        "bf16_head_layers": settings.bf16_head_layers,
        "bf16_tail_layers": settings.bf16_tail_layers,
    }
    if settings.emulate:
        facts["emulator"] = settings.emulate
    if settings.nvfp4:
        facts["ingredients"] = settings.nvfp4.facts()
    elif settings.late_switch:
        facts["ingredients"] = {"switch": settings.switch}
    if settings.switches_at is not None:
        facts["switches_at"] = settings.switches_at
    return facts


def describe_device(on_gpu: bool) -> dict[str, Any]:
    """Name and size of what computes."""
    if not on_gpu:
        return {"kind": "cpu", "name": _cpu_name(), "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "kind": "gpu",
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "memory_bytes": properties.total_memory,
        "uuid": str(getattr(properties, "uuid", "")) or None,
        "driver": _driver(),
        "cuda": torch.version.cuda,
    }


def _driver() -> str | None:
    """The NVIDIA kernel driver's version, as the driver itself says."""
    return _said("/proc/driver/nvidia/version", r"\A.*?\b(\d+\.\d+(\.\d+)?)\b")


def _cpu_name() -> str:
    return _said("/proc/cpuinfo", r"(?m)^model name\s*: *(.*\S)") or platform.processor() or platform.machine()


def _said(file: str, pattern: str) -> str | None:
    """What the first group of a pattern finds in a file of the kernel's, None where there is no such file."""
    try:
        found = re.search(pattern, Path(file).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found and found[1]


# Parity facts that have the names of what they are read from.
_OF_MODEL = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "vocab_size"),
    *("sequence_parallel", "transformer_impl"),
)
_OF_TRAINING = ("global_batch_size", "micro_batch_size", "train_iters")
_PACKAGES = ("torch", "megatron-bridge", "megatron-core", "transformer-engine")


def parity_facts(
    settings: Settings, device: dict[str, Any], context: CallbackContext, data_identity: str
) -> dict[str, Any]:
    """The facts that must be equal in two runs for them to have done the same work (flat, name to value).

    `device` and `data_identity` are what `describe_device` and `identify_data` gave, `context` is `on_train_start`'s.
    """
    config = context.state.cfg
    model, optimizer = config.model, config.optimizer
    found = packages.installed()
    return {
        "model": settings.model.name,
        "parameters": _parameters(context),
        **{name: getattr(model, name) for name in _OF_MODEL},
        "sequence_length": model.seq_length,
        **{name: getattr(config.train, name) for name in _OF_TRAINING},
        "warmup_iters": config.scheduler.lr_warmup_iters,
        "decay_iters": config.scheduler.lr_decay_iters,
        "decay_style": config.scheduler.lr_decay_style,
        "start_iteration": context.state.train_state.step,
        "learning_rate": optimizer.lr,
        "min_learning_rate": optimizer.min_lr,
        "optimizer": f"{optimizer.optimizer} b1={optimizer.adam_beta1} b2={optimizer.adam_beta2} "
        f"wd={optimizer.weight_decay} clip={optimizer.clip_grad}",
        "seed": settings.seed,
        "data": data_identity,
        "tokenizer": " ".join(filter(None, (config.tokenizer.tokenizer_type, config.tokenizer.tokenizer_model))),
        "tensor_parallel": model.tensor_model_parallel_size,
        "pipeline_parallel": model.pipeline_model_parallel_size,
        "context_parallel": model.context_parallel_size,
        "world_size": torch.distributed.get_world_size(),
        "attention_backend": getattr(model.attention_backend, "name", model.attention_backend),
        "cuda_graphs": model.cuda_graph_impl,
        "recompute": model.recompute_granularity,
        "device": device["name"],
        **{name: device.get(name) for name in ("driver", "cuda", "threads")},
        **{name.replace("-", "_"): found.get(name) for name in _PACKAGES},
        **({"weights": settings.weights} if settings.weights else {}),
        **({"finetune": settings.finetune} if settings.finetune else {}),
        **({"engine_switches": " ".join(settings.engine_switches)} if settings.engine_switches else {}),
    }


def context_facts(settings: Settings, context: CallbackContext) -> dict[str, Any]:
    """What a precision or its emulation changes of itself, or no step feels (flat): listed, never refused."""
    config = context.state.cfg
    stored = str(config.model.params_dtype).removeprefix("torch.")
    return {
        "code": code_state.digest(),
        "parameter_gather": compat.gathered_in(config) or stored,
        "gradient_reduction": "float32" if config.ddp.grad_reduce_in_fp32 else stored,
        "gradient_accumulation_fusion": config.model.gradient_accumulation_fusion,
        "writers": sorted(settings.writers),
        "save_interval": settings.save,
    }


def flops_per_token(context: CallbackContext) -> float:
    """Megatron's model FLOPs a token, forward and backward (`flop_utils.num_floating_point_operations`)."""
    from megatron.bridge.training.utils.flop_utils import num_floating_point_operations

    config = context.state.cfg
    return num_floating_point_operations(config, 1) / config.model.seq_length


def identify_data(settings: Settings, builtin: builtin_text.Text | None) -> str:
    """A name that is equal for two runs exactly when they read the same tokens."""
    if settings.data == PYTHON_STDLIB and builtin is not None:
        return builtin.identity
    if settings.data == MOCK:
        return MOCK
    return finetuning.identify(settings.data) if settings.finetune else corpus.identify(settings.blends)


def _parameters(context: CallbackContext) -> int:
    from megatron.core import parallel_state

    # Each tensor-parallel rank holds its shard; what all ranks hold (norms) counts once.
    split_over = parallel_state.get_tensor_model_parallel_world_size()
    total = sum(
        parameter.numel() * (split_over if getattr(parameter, "tensor_model_parallel", False) else 1)
        for chunk in context.model
        for parameter in chunk.parameters()
    )
    counts = torch.tensor([total], dtype=torch.int64, device=torch.cuda.current_device())
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        torch.distributed.all_reduce(counts, group=parallel_state.get_pipeline_model_parallel_group())
    return int(counts.item())
