"""How many processes share one copy of a model, and in which way: the recipe's sizes, or those asked for, checked.

Tensor parallel ranks each hold a slice of every matrix, pipeline ranks each some of the layers, context ranks each a
part of every sequence. Whatever processes are left over hold further copies (data parallel). No torch in this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import UsageError
from .models import Model, Split

if TYPE_CHECKING:
    from .settings import Settings


def resolve(
    model: Model,
    asked: tuple[int | None, int | None, int | None],
    *,
    processes: int,
    on_gpu: bool,
    sequence: int,
) -> Split:
    """The split of a run.

    Args:
        model: its recipe has a split of its own, which one process alone ignores where only the context is shared.
        asked: tensor, pipeline and context parallel size, None for the recipe's.
        processes: the world size.
        on_gpu: the CPU's attention has no context parallelism.
        sequence: tokens a sequence.

    Raises:
        UsageError: a size that does not divide, with the nearest that does.
    """
    recipe = model.split
    if processes == 1 and recipe.tensor * recipe.pipeline == 1:
        recipe = Split()  # several recipes ask for a context of 2, which one process cannot give
    split = Split(*(own if size is None else size for size, own in zip(asked, _sizes(recipe), strict=True)))
    for flag, size in zip(("TP", "PP", "CP"), _sizes(split), strict=True):
        if size < 1:
            raise UsageError(f"{flag}={size}: a parallel size is at least 1")
    if processes % split.processes:
        whose = f"{model.name}'s recipe splits" if split == recipe else f"{split} splits"
        raise UsageError(
            f"{whose} the model over {split.processes} processes (tensor x pipeline x context parallel), and "
            f"{processes} {'was' if processes == 1 else 'were'} started: use a multiple of it, NPROC={split.processes} "
            f"(torchrun --nproc_per_node {split.processes}), or other sizes (TP=, PP=, CP=)"
        )
    check(model, split, on_gpu=on_gpu, sequence=sequence)
    return split


def check(model: Model, split: Split, *, on_gpu: bool, sequence: int) -> None:
    """Raise UsageError where `model` cannot be cut into `split`."""
    config = model.hf_config
    for what, size in (
        ("attention heads", config["num_attention_heads"]),
        ("key-value heads", config["num_key_value_heads"]),
        ("units of the MLP", config["intermediate_size"]),
    ):
        if size % split.tensor:
            raise UsageError(
                f"TP={split.tensor} does not divide {model.name}'s {size} {what}; TP={_below(split.tensor, size)} does"
            )
    if split.tensor > 1 and on_gpu and sequence % (split.tensor * split.context):
        whole = split.tensor * split.context
        raise UsageError(f"SEQ={sequence} is not divisible by TP x CP = {whole}, which sequence parallelism needs")
    if not stages_fit(model.num_layers, split.pipeline):
        fits = next(size for size in range(split.pipeline, 0, -1) if stages_fit(model.num_layers, size))
        raise UsageError(
            f"PP={split.pipeline} does not divide {model.name}'s {model.num_layers} layers, "
            f"nor these and its embedding and loss; PP={fits} does"
        )
    if split.context > 1 and not on_gpu:
        raise UsageError(f"CP={split.context}: sharing a sequence needs a GPU's attention; on the CPU leave CP out")
    if split.context > 1 and sequence % (2 * split.context):
        raise UsageError(f"SEQ={sequence} is not divisible by 2 x CP = {2 * split.context}; take a multiple of it")


def padded_words(settings: Settings) -> int:
    """Words that the model is built with: the vocabulary, filled up to a multiple of the tensor parallel size."""
    words = settings.model.hf_config["vocab_size"]
    return words + -words % settings.split.tensor


def stages_fit(layers: int, stages: int) -> bool:
    """Whether pipeline stages get equal shares: of the layers, or of them with embedding and loss as one layer each."""
    return layers % stages == 0 or counts_embedding(layers, stages)


def counts_embedding(layers: int, stages: int) -> bool:
    """Whether embedding and loss must count as a layer each for the stages to be equal (405B: 126 + 2 over 8)."""
    return stages > 1 and layers % stages != 0 and (layers + 2) % stages == 0


def _sizes(split: Split) -> tuple[int, int, int]:
    return split.tensor, split.pipeline, split.context


def _below(size: int, whole: int) -> int:
    """The largest divisor of `whole` up to `size`."""
    return next(each for each in range(min(size, whole), 0, -1) if whole % each == 0)
