"""The manifest beside a dataset: what its tokens are, so that a training can refuse what does not fit its model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1
ENDING = ".manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What `make data` wrote."""

    tokenizer: str  # "bytes", or a Hugging Face tokenizer's name or folder
    vocabulary_size: int  # token ids lie below it
    end_of_document: int  # the id that ends every document
    largest_token: int  # that occurs
    documents: int
    tokens: int  # with the ends of documents
    text_bytes: int  # in UTF-8
    empty_documents: int  # left out, as bad lines are
    bad_lines: int
    dtype: str  # of a token in the .bin, numpy's name
    sources: list[list[Any]]  # each input's path and size in bytes, in order
    sha256: dict[str, str]  # of ".bin" and ".idx"
    created: str  # in UTC
    schema: int = SCHEMA


def read(prefix: str) -> Manifest | None:
    """The manifest of the dataset `prefix`, None where it has none. Raises ValueError for a file that is none."""
    path = Path(prefix + ENDING)
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is no manifest of `make data`: was it edited?") from error
