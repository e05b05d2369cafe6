"""Text to token ids: bytes, or a Hugging Face tokenizer, in the same words for both.

A process loads one of these, which its threads share. It needs a `tokenizer.json` alone: a worker process starts in a
fraction of a second and without `transformers`.
"""

from __future__ import annotations

import array
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretraining.data import sources
from pretraining.errors import UsageError
from pretraining.inputs import tokenizer_folder

BYTES = tokenizer_folder.BYTES
BATCH_CHARACTERS = 2**20


@dataclass(frozen=True)
class Vocabulary:
    """What the ids mean: `size` is above every id; `end_of_document` ends each document."""

    size: int
    end_of_document: int

    @property
    def dtype(self) -> type[np.number]:
        """The smallest type that Megatron stores such ids in (its `DType.optimal_dtype`)."""
        return np.uint16 if self.size < 65500 else np.int32


class Bytes:
    """A token is a byte."""

    vocabulary = Vocabulary(257, 256)

    def encode(self, texts: list[str | bytes]) -> Iterator[np.ndarray]:
        """The ids of each text, without the end of the document, in the vocabulary's dtype."""
        for text in texts:
            yield np.frombuffer(text if isinstance(text, bytes) else text.encode(), dtype=np.uint8)


class HuggingFace:
    """A fast tokenizer by its `tokenizer.json`, encoding a batch at a time on one thread."""

    def __init__(self, file: Path, dtype: type[np.number]) -> None:
        from tokenizers import Tokenizer as Fast

        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
        self._fast = Fast.from_file(str(file))
        self._fast.no_truncation()
        self._fast.no_padding()
        self._dtype = dtype

    def encode(self, texts: list[str | bytes]) -> Iterator[np.ndarray]:
        """See `Bytes`. No beginning-of-text token is added."""
        # An encoding takes some 100 bytes a token: so many characters at once.
        for batch in sources.grouped(texts, len, BATCH_CHARACTERS):
            for encoding in self._fast.encode_batch_fast(batch, add_special_tokens=False):
                # Through array: numpy takes three times as long to convert a list.
                yield np.frombuffer(array.array("i", encoding.ids), dtype=np.int32).astype(self._dtype, copy=False)


def prepare(name: str, file: Path) -> Vocabulary:
    """Get a tokenizer ready: its vocabulary, and its `tokenizer.json` in `file`. Raises UsageError for an unfit one."""
    if name == BYTES:
        return Bytes.vocabulary
    os.environ.setdefault("USE_TORCH", "0")  # transformers without torch: a tenth of the memory
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    tokenizer = tokenizer_folder.load(name)
    if not tokenizer.is_fast:
        raise UsageError(f"--tokenizer {name} has no fast version (a tokenizer.json), and a slow one takes days")
    if tokenizer.eos_token_id is None:
        raise UsageError(f"--tokenizer {name} names no end-of-text token (eos_token), and every document needs one")
    tokenizer.backend_tokenizer.save(str(file))
    return Vocabulary(max(tokenizer.get_vocab().values()) + 1, tokenizer.eos_token_id)
