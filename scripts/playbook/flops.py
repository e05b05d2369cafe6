"""A model's own FLOPs a token, from the facts of its run."""

from __future__ import annotations

from typing import Any

from pretraining import footprint

_NEEDED = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "vocab_size", "sequence_length")


def per_token(facts: dict[str, Any]) -> float | None:
    """Forward and backward of a Llama, as `footprint` counts them: 48.25 GFLOP for Llama 3 8B at 4096 tokens.

    Args:
        facts: parity facts; without `num_query_groups` every head has keys and values of its own.

    Returns:
        FLOPs a token, None where a size is not known.
    """
    if not all(isinstance(facts.get(name), int) and facts[name] > 0 for name in _NEEDED):
        return None
    heads = facts["num_attention_heads"]
    shape = footprint.Shape(
        hidden=facts["hidden_size"],
        heads=heads,
        groups=facts.get("num_query_groups") or heads,
        head_size=facts["hidden_size"] // heads,
        words=facts["vocab_size"],
        tied=False,  # which changes no FLOP
        attention_layers=facts["num_layers"],
        mlp_layers=facts["num_layers"],
        mlp_size=facts["ffn_hidden_size"],
    )
    return footprint.flops_per_token(shape, facts["sequence_length"])
