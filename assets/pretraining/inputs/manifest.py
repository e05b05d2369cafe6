"""The manifest beside a dataset: what its tokens are, so that a training can refuse what does not fit its model.

Only the standard library is used here: the host reads manifests without numpy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1
ENDING = ".manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What `make data` wrote.

    Attributes:
        tokenizer: "bytes", or a Hugging Face tokenizer's name or folder.
        vocabulary_size: token ids lie below it.
        end_of_document: the id that ends every document.
        largest_token: the largest id that occurs.
        documents, tokens: counts; tokens with the ends of documents.
        text_bytes: of the documents' text in UTF-8.
        empty_documents, bad_lines: left out.
        dtype: of a token in the .bin, numpy's name.
        sources: each input's path and size in bytes, in order.
        sha256: of ".bin" and ".idx".
        created: UTC time.
    """

    tokenizer: str
    vocabulary_size: int
    end_of_document: int
    largest_token: int
    documents: int
    tokens: int
    text_bytes: int
    empty_documents: int
    bad_lines: int
    dtype: str
    sources: list[list[Any]]
    sha256: dict[str, str]
    created: str
    schema: int = SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """What the file holds."""
        return asdict(self)


def read(prefix: str) -> Manifest | None:
    """The manifest of the dataset `prefix`, None where it has none.

    Raises:
        ValueError: there is one, and it is not a manifest of this schema.
    """
    path = Path(prefix + ENDING)
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is no manifest of `make data`: was it edited?") from error
