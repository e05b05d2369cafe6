"""What lets Megatron-Bridge's own `pretrain()` run on a CPU; imported only where there is no GPU.

`enable()` comes before the first import of Megatron-Bridge, `adapt()` after a recipe has made its config.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer


def enable() -> None:
    """Prepare this process: stand-ins for packages that need CUDA, `torch.cuda` answered by the CPU."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # Megatron's jit_fuser is torch.compile, which wants a C++ compiler

    # First, so that Megatron-Core looks for Transformer Engine and does not find the stand-in.
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.optimizer  # noqa: F401

    from pretraining.megatron.cpu import absent, cuda

    absent.install()
    cuda.enable()


def adapt(config: ConfigContainer) -> None:
    """Change a recipe's config, in place, to what a CPU can do. The training it describes stays the same."""
    from pretraining.megatron.cpu.cpu_config import adapt as adapt_config

    adapt_config(config)
