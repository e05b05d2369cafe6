"""Where Megatron-Bridge 0.3 to 0.6 differ in what this playbook touches, and nowhere else."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer

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


def set_evaluation(config: ConfigContainer, iters: int, interval: int) -> None:
    """Evaluate `iters` batches every `interval` iterations and at the end (0 for never).

    From 0.4 these fields live under `validation`; `train` keeps deprecated aliases.
    """
    section = getattr(config, "validation", None) or config.train
    section.eval_iters = iters
    section.eval_interval = interval


def set_sequence_length(config: ConfigContainer, tokens: int) -> None:
    """`dataset.sequence_length` in 0.3; from 0.4 `seq_length`, which in 0.6 overwrites the other."""
    config.model.seq_length = tokens
    config.dataset.seq_length = tokens  # 0.3.1 has it as an alias
    config.dataset.sequence_length = tokens


def skip_compile_helpers() -> None:
    """Megatron-Core's wheel ships its dataset helper built, but no Makefile: the call that makes it would exit.

    Harmless where the helper imports; where it does not, the call stays and makes it. Both modules that hold the
    name are changed, because Megatron-Bridge imports it.
    """
    try:
        import megatron.core.datasets.helpers_cpp
    except ImportError:
        return
    import megatron.bridge.training.initialize
    import megatron.core.datasets.utils

    for module in (megatron.core.datasets.utils, megatron.bridge.training.initialize):
        module.compile_helpers = lambda: None
