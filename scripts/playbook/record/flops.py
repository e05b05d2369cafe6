"""A model's own FLOPs a token, from the facts of its run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from playbook.record.columns import Lines
from pretraining.request import footprint

COARSEST = 0.02  # relative rounding error of MODEL_TFLOP/s/GPU from which FLOPs are not derived

_NEEDED = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "vocab_size", "sequence_length")


def per_token(facts: dict[str, Any]) -> float | None:
    """FLOPs a token of a Llama, forward and backward, as `footprint` counts them; None where a size is not known.

    48.25 GFLOP for Llama 3 8B at 4096 tokens. Without `num_query_groups` every head has keys and values of its own.
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


def of_log(parity: dict[str, Any], lines: Lines, notes: list[str]) -> dict[str, Any]:
    """The tokens of a step, FLOPs a token and their relative rounding error, as in a run's environment.

    FLOPs are from what is printed where that is fine enough, because it knows the model as it ran: MODEL_TFLOP/s/GPU
    has one decimal, and on a small model or a slow device little is left of it. Otherwise they are counted from the
    model's sizes; where these are not known either, `notes` gets why.
    """
    sequence, batch, gpus = map(parity.get, ("sequence_length", "global_batch_size", "world_size"))
    names = ("model_tflops", "step_time_s", "global_batch_size")
    tflops, steps, batches = (lines.column(name)[:1000] for name in names)
    known = (tflops > 0) & (steps > 0)
    batched = known & (batches > 0)
    needed = {
        "MODEL_TFLOP/s/GPU": known.any(),
        "the sequence length and global batch size": sequence and (batches > 0).any(),
        "the number of GPUs": gpus,
    }
    missing = [name for name, is_known in needed.items() if not is_known]
    resolution: float | None = 0.05 / float(np.median(tflops[known])) if known.any() else math.inf
    each = per_token(parity)
    if not missing and batched.any() and resolution <= COARSEST:
        of_a_sequence = float(np.median((tflops * steps / batches)[batched]))
        each = of_a_sequence * 1e12 * gpus / sequence
    elif each is not None:
        resolution = 0.0
    else:
        resolution, why = None, "MODEL_TFLOP/s/GPU is too small for its one decimal"
        if missing:
            why = f"the log does not give {', '.join(missing)}"
        notes.append(f"FLOPs a token cannot be derived: {why}")
    tokens = {"tokens_per_step": batch * sequence} if batch and sequence else {}
    return {"flops_per_token": each, "flops_resolution": resolution, **tokens}
