"""Where Megatron-Bridge 0.3 to 0.6 differ in what this playbook touches, and nowhere else."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

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
