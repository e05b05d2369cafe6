"""The forward pass in BF16 and the backward pass by an engine's own kernels, in Transformer Engine from 2.19.

Its `HybridQuantizer` has a quantizer for each direction: what the forward pass multiplies, rows, stays as it is.
"""

from __future__ import annotations

from typing import Any

_usual: Any = None


def use(recipe: Any) -> None:
    """Compute gradients by this recipe, one of Transformer Engine's."""
    global _usual
    _usual = recipe


def quantizer_factory(role: Any) -> Any:
    """The quantizer of one tensor of a linear layer, for Transformer Engine's ``CustomRecipe``.

    Args:
        role: a ``QuantizerRole``, or None for a result whose reader is unknown.
    """
    from transformer_engine.pytorch.quantization import RecipeState
    from transformer_engine.pytorch.tensor.hybrid_tensor import HybridQuantizer
    from transformer_engine.pytorch.tensor.identity_tensor import IdentityQuantizer

    tensor = getattr(role, "tensor_type", "")
    if tensor in ("grad_output", "grad_input"):
        return RecipeState.create(_usual, mode="backward", num_quantizers=2).make_quantizers()[0]
    usual = RecipeState.create(_usual, mode="forward", num_quantizers=3).make_quantizers()  # input, weight, result
    return HybridQuantizer(rowwise_quantizer=IdentityQuantizer(), columnwise_quantizer=usual[tensor == "weight"])
