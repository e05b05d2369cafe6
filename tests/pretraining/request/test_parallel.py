"""Sizes that do and do not divide a model."""

import pytest

from pretraining.errors import UsageError
from pretraining.request import parallel
from pretraining.request.models import find_model


def check(model: str, tensor: int = 1, pipeline: int = 1, context: int = 1, *, on_gpu: bool = True) -> None:
    split = {"tensor_parallel": tensor, "pipeline_parallel": pipeline, "context_parallel": context}
    found = find_model(model)
    parallel.check(found, found.num_layers, split, on_gpu=on_gpu, sequence=4096)


def test_sizes_that_divide() -> None:
    check("llama31-405b", 8, 8, 4)
    check("llama31-70b", 4, 4, 2)
    check("tiny", 2, 4, on_gpu=False)


@pytest.mark.parametrize(
    ("model", "sizes", "words"),
    [
        ("llama31-8b", (3, 1, 1), "TP=3 does not divide llama31-8b's 32 attention heads; TP=2 does"),
        ("llama32-3b", (12, 1, 1), "TP=12 does not divide llama32-3b's 8192 units of the MLP; TP=8 does"),
        ("llama31-8b", (1, 5, 1), "PP=5 does not divide llama31-8b's 32 layers; PP=4 does"),
        ("llama31-8b", (1, 1, 3), "SEQ=4096 is not divisible by 2 x CP = 6"),
    ],
)
def test_sizes_that_do_not(model, sizes, words) -> None:
    with pytest.raises(UsageError) as told:
        check(model, *sizes)
    assert words in str(told.value)


def test_the_cpu_shares_no_sequence() -> None:
    with pytest.raises(UsageError, match="on the CPU leave CP out"):
        check("tiny", context=2, on_gpu=False)


@pytest.mark.parametrize(("words", "tensor", "padded"), [(257, 1, 257), (257, 2, 258), (128256, 8, 128256)])
def test_a_vocabulary_is_filled_up(words, tensor, padded) -> None:
    assert parallel.padded_words(words, tensor) == padded


def test_embedding_and_loss_count_where_layers_do_not_divide() -> None:
    assert parallel.counts_embedding(126, 8) and not parallel.counts_embedding(32, 4)
