"""A model's own FLOPs a token, as Megatron counts them."""

from __future__ import annotations

from typing import Any

_NEEDED = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "vocab_size", "sequence_length")


def per_token(facts: dict[str, Any]) -> float | None:
    """Forward and backward of a Llama: two FLOPs a product and sum, backward twice the forward.

    Linear layers, the vocabulary projection and causal attention, which computes half of the square (Megatron's
    `num_floating_point_operations`); 48.25 GFLOP for Llama 3 8B at 4096 tokens.

    Args:
        facts: parity facts; without `num_query_groups` every head has keys and values of its own.

    Returns:
        FLOPs a token, None where a size is not known.
    """
    if not all(isinstance(facts.get(name), int) and facts[name] > 0 for name in _NEEDED):
        return None
    hidden, heads = facts["hidden_size"], facts["num_attention_heads"]
    groups = facts.get("num_query_groups") or heads
    projections = 2 * hidden * hidden * (1 + groups / heads)
    feed_forward = 3 * hidden * facts["ffn_hidden_size"]  # SwiGLU has two inputs
    attention = hidden * facts["sequence_length"]  # scores and their sum over values, half of each
    products = facts["num_layers"] * (projections + feed_forward + attention) + hidden * facts["vocab_size"]
    return 6.0 * products
