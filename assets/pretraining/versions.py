"""Where Megatron-Bridge 0.3 to 0.6 differ in what this playbook touches, and nowhere else."""

from __future__ import annotations

import contextlib
import importlib
import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from . import dataset_helper
from .errors import UsageError

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer
    from megatron.bridge.training.mixed_precision import MixedPrecisionConfig

PACKAGES = ("megatron-bridge", "megatron-core", "transformer-engine", "torch", "transformers", "numpy", "numba")


def installed() -> dict[str, str]:
    """Version of each package that shapes a run's numbers, for those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def has_apex() -> bool:
    """Whether APEX's gradient accumulation kernel is installed. Megatron-Core's linear layers refuse to run without."""
    return find_spec("fused_weight_gradient_mlp_cuda") is not None


def reference_quantizer() -> str:
    """Transformer Engine's own NVFP4 quantizer in plain PyTorch, as the name of its factory.

    The module was renamed in 2.16. Raises UsageError where Transformer Engine is older than its custom recipes.
    """
    for module in ("quantization_ref_nvfp4", "quantization_nvfp4"):
        name = f"transformer_engine.pytorch.custom_recipes.{module}"
        with contextlib.suppress(ModuleNotFoundError):
            if find_spec(name):
                return f"{name}.nvfp4_ref_rht_2d_quantizer_factory"
    found = installed().get("transformer-engine", "none")
    raise UsageError(
        f"--emulate needs a Transformer Engine with custom recipes (2.10 or newer), and {found} is installed: "
        "use a newer NeMo container"
    )


def set_cuda_graphs(config: ConfigContainer) -> None:
    """Replay each iteration as one CUDA graph: an implementation of its own in 0.6, a scope of "local" before."""
    model = config.model
    if "cuda_graph_modules" in type(model).__dataclass_fields__:
        model.cuda_graph_impl = "full_iteration"
    else:
        model.cuda_graph_impl, model.cuda_graph_scope = "local", "full_iteration"


def keep_bf16_weights(preset: MixedPrecisionConfig) -> None:
    """No FP4 parameter gather, which is on from 0.4.2: a custom quantizer would make the primary weights."""
    if hasattr(preset, "fp4_param_gather"):
        preset.fp4_param_gather = False


def set_vocabulary(config: ConfigContainer, words: int, padded: int) -> None:
    """The data's vocabulary, and the model's, which may be padded.

    0.6 has `use_tokenizer_vocab_size`, on in its recipes, which would override it.
    """
    config.tokenizer.vocab_size = words
    config.model.vocab_size = padded
    for section in (config.model, config.tokenizer):
        if hasattr(section, "use_tokenizer_vocab_size"):
            section.use_tokenizer_vocab_size = False


def evaluation_section() -> str:
    """Where the evaluation's fields live: in `train` in 0.3, from 0.4 in `validation`."""
    from megatron.bridge.training.config import ConfigContainer

    return "validation" if "validation" in ConfigContainer.__dataclass_fields__ else "train"


def set_evaluation(config: ConfigContainer, iters: int, interval: int) -> None:
    """Evaluate `iters` batches every `interval` iterations and at the end (0 for never)."""
    section = getattr(config, evaluation_section())
    section.eval_iters = iters
    section.eval_interval = interval


def set_sequence_length(config: ConfigContainer, tokens: int) -> None:
    """`dataset.sequence_length` in 0.3; from 0.4 `seq_length`, which in 0.6 overwrites the other."""
    config.model.seq_length = tokens
    config.dataset.seq_length = tokens  # 0.3.1 has it as an alias
    config.dataset.sequence_length = tokens


def skip_compile_helpers() -> None:
    """Have Megatron-Core's dataset helper ready, and turn the call that makes it into nothing.

    The wheel ships the helper built, and no Makefile: there the call would exit. The NeMo image has the source in a
    tree of root's: there an ordinary user builds a copy, once. Where the tree can be written to, the call stays. Both
    modules that hold its name are changed, because Megatron-Bridge imports it.

    Raises:
        UsageError: the copy cannot be built.
    """
    import megatron.core.datasets

    source = Path(megatron.core.datasets.__path__[0])
    if find_spec("megatron.core.datasets.helpers_cpp") is None:
        if os.access(source, os.W_OK):
            return
        built = dataset_helper.built_copy(source, installed().get("megatron-core", ""))
        megatron.core.datasets.__path__.append(str(built))
        importlib.invalidate_caches()
    import megatron.bridge.training.initialize
    import megatron.core.datasets.utils

    for module in (megatron.core.datasets.utils, megatron.bridge.training.initialize):
        module.compile_helpers = lambda: None
