"""Whether a model can be cut the way it was asked for: matrices (tensor), layers (pipeline), sequences (context).

Whatever processes one copy of the model leaves over hold further copies (data parallel). No torch in this module.
"""

from __future__ import annotations

from .errors import UsageError
from .models import Model


def check(model: Model, layers: int, split: dict[str, int], *, on_gpu: bool, sequence: int) -> None:
    """Raise UsageError where a size does not divide, with the nearest that does.

    Args:
        layers: of the model as it will be built.
        split: `tensor_parallel`, `pipeline_parallel` and `context_parallel`, each at least 1.
        on_gpu: the CPU's attention has no context parallelism.
        sequence: tokens a sequence.
    """
    tensor, pipeline, context = (split[f"{kind}_parallel"] for kind in ("tensor", "pipeline", "context"))
    config = model.hf_config
    for what, size in (
        ("attention heads", config["num_attention_heads"]),
        ("key-value heads", config["num_key_value_heads"]),
        ("units of the MLP", config["intermediate_size"]),
    ):
        if size % tensor:
            raise UsageError(
                f"TP={tensor} does not divide {model.name}'s {size} {what}; TP={_below(tensor, size)} does"
            )
    if not stages_fit(layers, pipeline):
        fits = next(size for size in range(pipeline, 0, -1) if stages_fit(layers, size))
        also = ", nor these with embedding and loss" if layers + 2 >= pipeline else ""
        raise UsageError(f"PP={pipeline} does not divide {model.name}'s {layers} layers{also}; PP={fits} does")
    if context > 1 and not on_gpu:
        raise UsageError(f"CP={context}: sharing a sequence needs a GPU's attention; on the CPU leave CP out")
    if context > 1 and sequence % (2 * context):
        raise UsageError(f"SEQ={sequence} is not divisible by 2 x CP = {2 * context}; take a multiple of it")
    if on_gpu and tensor > 1 and sequence % (tensor * context):
        raise UsageError(
            f"SEQ={sequence} is not divisible by TP x CP = {tensor * context}, as sequence parallelism needs"
        )


def padded_words(words: int, tensor_parallel: int) -> int:
    """The vocabulary filled up to a multiple of the tensor parallel size: each rank holds as many words."""
    return words + -words % tensor_parallel


def stages_fit(layers: int, stages: int) -> bool:
    """Whether pipeline stages get equal shares: of the layers, or of them with embedding and loss as one layer each."""
    return layers % stages == 0 or counts_embedding(layers, stages)


def counts_embedding(layers: int, stages: int) -> bool:
    """Whether embedding and loss must count as a layer each for equal stages (405B: 126 + 2 over 8)."""
    return layers % stages != 0 and (layers + 2) % stages == 0


def _below(size: int, whole: int) -> int:
    """The largest divisor of `whole` up to `size`."""
    return next(each for each in range(min(size, whole), 0, -1) if whole % each == 0)
