"""The linear layers of a model that Megatron built, and what keeps some of them in BF16.

On a GPU, native or emulated, it is Megatron-Core's own override of a module's precision, its `quant_recipe` since 0.16.
That chooses by a module's path, in which layers are counted from 0 in each pipeline stage; here it is given by the
layer's number in the whole model. On the CPU the module computes in BF16 arithmetic instead.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pretraining.megatron import compat
from pretraining.request.recipe.kept_in_bf16 import PROJECTIONS, KeptInBf16

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer
    from torch.nn import Module

_NAMES = {f"linear_{each}": each for each in PROJECTIONS}
# Of Megatron-Core's `TEQuantizationParams`: a recipe without FP8 or FP4, in training and in evaluation.
_BF16 = {"transformer_engine_config_type": "TEQuantizationParams", "training_recipe": {}}


def linear_layers(chunks: list[Module]) -> Iterator[tuple[int, str, Module]]:
    """This process's linear layers: the layer's number in the whole model, counted from 0, one of PROJECTIONS, module.

    `chunks`: the models of its pipeline stage, as Megatron-Bridge builds them.
    """
    for chunk in chunks:
        for layer in chunk.decoder.layers:
            for path, module in layer.named_modules():
                if projection := _NAMES.get(path.rpartition(".")[2]):
                    yield layer.layer_number - 1, projection, module


def keep(config: ConfigContainer, kept: KeptInBf16) -> None:
    """Have a model that is built from `config` compute these products in BF16."""
    config.model.register_pre_wrap_hook(functools.partial(_in_bf16, kept=kept))


def quantize_inputs_once(config: ConfigContainer) -> None:
    """Have attention's output projection keep its quantized input until the backward pass, as the other layers do.

    Megatron-Core lets it keep what attention keeps anyway, to save memory, and quantize that once more.
    """
    config.model.register_pre_wrap_hook(_keep_quantized)


def _keep_quantized(chunks: list[Module]) -> list[Module]:
    for _, projection, module in linear_layers(chunks):
        if projection == "proj":
            module.save_original_input = False
    return chunks


def _in_bf16(chunks: list[Module], *, kept: KeptInBf16) -> list[Module]:
    for number, projection, module in linear_layers(chunks):
        if kept.holds(projection, number):
            _set_bf16(module)
    return chunks


def _set_bf16(module: Any) -> None:
    if compat.is_emulated(module):  # the CPU's
        from pretraining.numerics.cpu_layers import BF16, set_arithmetic

        set_arithmetic(module, BF16())
    else:
        from megatron.core.quantization.quant_config import MatchContext, QuantizationConfig

        module.finish_init(QuantizationConfig(_BF16, match_input=MatchContext("", None), config_key="bf16"))
