"""A chunk of text to the tokens of its documents: what a worker does, a thread or a process."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pretraining.data import tokenizers
from pretraining.data.sources import Piece
from pretraining.inputs import json_lines


@dataclass
class Bad:
    """A line (or Parquet row, or plain-text document) that is no document: its number, from 1, within its piece."""

    line: int
    why: str


@dataclass
class Result:
    """What became of a chunk."""

    tokens: bytes = b""  # the ids of every document and its end, as the .bin has them
    lengths: bytes = b""  # of each document in tokens, int32
    lines: list[int] = field(default_factory=list)  # read of each piece
    bad: list[list[Bad]] = field(default_factory=list)  # of each piece, the broken ones
    empty: int = 0  # documents without text, left out
    text_bytes: int = 0  # of the documents in UTF-8
    largest: int = -1  # id, -1 where there is none


@dataclass(frozen=True)
class Task:
    """What every chunk shares: the tokenizer's name, its file and vocabulary, and the text's field in JSON."""

    tokenizer: str
    file: Path
    vocabulary: tokenizers.Vocabulary
    field: str


_task: Task
_tokenizer: tokenizers.Bytes | tokenizers.HuggingFace


def start(task: Task) -> None:
    """Load the tokenizer, once a process: its threads share it."""
    global _task, _tokenizer
    _task = task
    is_bytes = task.tokenizer == tokenizers.BYTES
    _tokenizer = tokenizers.Bytes() if is_bytes else tokenizers.HuggingFace(task.file, task.vocabulary.dtype)


def work(chunk: list[Piece]) -> Result:
    result = Result()
    texts: list[str | bytes] = []
    for piece in chunk:
        bad: list[Bad] = []
        lines = 0
        for number, text in documents(piece, _task.field, as_bytes=_task.tokenizer == tokenizers.BYTES):
            lines = number
            if isinstance(text, Bad):
                bad.append(text)
            elif text:
                texts.append(text)
            else:
                result.empty += text is not None
        result.lines.append(lines)
        result.bad.append(bad)
    _tokenize(texts, result)
    return result


def _tokenize(texts: list[str | bytes], result: Result) -> None:
    vocabulary = _task.vocabulary
    documents = list(_tokenizer.encode(texts))
    lengths = np.array([len(ids) + 1 for ids in documents], dtype=np.int32)
    tokens = np.full(int(lengths.sum()), vocabulary.end_of_document, dtype=vocabulary.dtype)
    position = 0
    for ids in documents:
        tokens[position : position + len(ids)] = ids
        position += len(ids) + 1
    result.tokens, result.lengths = tokens.tobytes(), lengths.tobytes()
    result.text_bytes = sum(len(text if isinstance(text, bytes) or text.isascii() else text.encode()) for text in texts)
    result.largest = int(tokens.max()) if len(tokens) else -1


def documents(
    piece: Piece, text_field: str, *, as_bytes: bool = False
) -> Iterator[tuple[int, str | bytes | Bad | None]]:
    """Each document of a piece with the number of its line; None for a blank line; plain text as bytes if asked."""
    if piece.source.kind == "parquet":
        assert isinstance(piece.content, list)
        for number, text in enumerate(piece.content, 1):
            yield number, text if isinstance(text, str) else Bad(number, f"no text but {type(text).__name__}")
    elif piece.source.kind == "text":
        yield from _of_text(piece.lines(), as_bytes)
    else:
        content = piece.lines()
        for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else [], 1):
            yield number, _of_json(number, line, text_field)


def _of_text(content: bytes, as_bytes: bool) -> Iterator[tuple[int, str | bytes | Bad]]:
    """A piece of plain text is one document; its number is that of its last line."""
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content:
        return
    count = content.count(b"\n") + (not content.endswith(b"\n"))
    if as_bytes:
        yield count, content
        return
    try:
        yield count, content.decode()
    except UnicodeDecodeError as error:
        yield count, Bad(content.count(b"\n", 0, error.start) + 1, f"not UTF-8 ({error.reason})")


def _of_json(number: int, line: bytes, text_field: str) -> str | Bad | None:
    if json_lines.is_blank(line):
        return None
    try:
        return json_lines.texts(line, text_field)[0]
    except ValueError as error:
        return Bad(number, str(error))
