"""Checks on one's own data before a training: what it is, that it is long enough, that it fits the model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pretraining.data.builtin_text import Text
from pretraining.errors import UsageError
from pretraining.inputs import manifest
from pretraining.request import blends

if TYPE_CHECKING:
    from pretraining.request.settings import Settings

BLOCK_BYTES = 64 * 1024
BLOCKS = 64


def identify(parsed: dict[str, blends.Blend]) -> str:
    """A name for datasets, equal exactly where the tokens and their mixture are."""
    names = {prefix: identify_dataset(prefix) for prefix in blends.prefixes(parsed)}
    named = {
        split: blends.Blend(tuple(names[prefix] for prefix in blend.prefixes), blend.weights)
        for split, blend in parsed.items()
    }
    return blends.as_words(named)


def identify_dataset(prefix: str) -> str:
    """Name a Megatron dataset by content: its sizes, its whole index, and samples of its tokens.

    The .bin of a real corpus is too large to read at every start, so 64 evenly spaced blocks of 64 KiB stand for it.
    """
    with open(f"{prefix}.idx", "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    size = Path(f"{prefix}.bin").stat().st_size
    for block in _samples(prefix, 1):
        digest.update(block)
    return f"{Path(prefix).name}-{size}-{digest.hexdigest()[:12]}"


def index_folder(cache: Path, parsed: dict[str, blends.Blend]) -> Path:
    """Where Megatron keeps which tokens make which sample of these datasets; their own folder may be read-only.

    It knows an index again by the datasets' paths and the settings, and would go on with it where other tokens have
    come under an old path: a folder for each content keeps that from happening.
    """
    return cache / "index" / hashlib.sha256(identify(parsed).encode()).hexdigest()[:12]


def _samples(prefix: str, itemsize: int) -> list[bytes]:
    """Blocks of the .bin, evenly spaced and on whole items; all of it where it is up to 4 MiB."""
    size = Path(f"{prefix}.bin").stat().st_size
    found = []
    with open(f"{prefix}.bin", "rb") as file:
        for number in range(BLOCKS):
            start = max(0, size - BLOCK_BYTES) * number // (BLOCKS - 1)
            file.seek(start - start % itemsize)
            found.append(file.read(BLOCK_BYTES))
    return found


def check(settings: Settings, builtin: Text | None) -> None:
    """Raise UsageError where the data is shorter than a sequence or has words that the model has not."""
    if builtin is not None:
        _check_length(settings, min(builtin.tokens.values()))
    for blend in settings.blends.values():
        _check_length(settings, sum(_tokens(prefix) for prefix in blend.prefixes))
    for prefix in blends.prefixes(settings.blends):
        if manifest.read(prefix) is None:  # else `settings.resolve` has compared the vocabularies
            _check_largest(settings, prefix)


def _check_length(settings: Settings, tokens: int) -> None:
    """Megatron would fail on an index of nothing."""
    if tokens <= settings.sequence_length:
        raise UsageError(
            f"--seq-length {settings.sequence_length} is longer than the data: {settings.data} has {tokens} tokens; "
            "lower it or give more data"
        )


def _tokens(prefix: str) -> int:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(prefix)  # named: its arrays lie in a file mapping that ends with it
    return int(dataset.sequence_lengths.sum())


def largest_token(prefix: str) -> int:
    """The largest id in samples of a dataset: in all of it up to 4 MiB, and no proof above."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dtype = np.dtype(IndexedDataset(prefix).index.dtype)
    blocks = _samples(prefix, dtype.itemsize)
    return max(int(np.frombuffer(block, dtype, len(block) // dtype.itemsize).max()) for block in blocks)


def _check_largest(settings: Settings, prefix: str) -> None:
    largest, words = largest_token(prefix), settings.model.hf_config["vocab_size"]
    if largest >= words:
        raise UsageError(
            f"--data {prefix} has the token {largest}, and {settings.model.name} has {words} words (0 to {words - 1}): "
            "tokenize it with a tokenizer of the model's"
        )
