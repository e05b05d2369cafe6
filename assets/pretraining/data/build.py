"""A dataset under construction: tokens appended in order, so that an interruption costs seconds and never tears it.

`PREFIX.building/` holds `tokens` (the .bin to be), `lengths` (of documents, int32), the tokenizer, and `state.json`:
how much of both belongs to how many chunks. The state is renamed into place after both are on the disk; whatever lies
beyond it is cut off when a run goes on. The finished files are renamed into place, the .idx last: a dataset that
Megatron can open is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from pretraining.data import sources, tokenizers
from pretraining.data.sources import Piece, Source
from pretraining.data.worker import Result
from pretraining.errors import UsageError
from pretraining.inputs import manifest
from pretraining.record import run_folder

COMMIT_SECONDS = 2.0
EXAMPLES = 20  # broken lines that are named one by one
BLOCK = 2**20  # documents, of an index written at a time
INDEX_TYPES = {"int32": 4, "uint16": 8}  # Megatron's numbers of them, `DType`


@dataclass
class State:
    """What is on the disk: counts as in `manifest.Manifest`; `source` and `lines` say where line numbers stand."""

    chunks: int = 0
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    empty: int = 0
    largest: int = -1
    bad: int = 0
    examples: list[str] = field(default_factory=list)
    source: int = 0
    lines: int = 0


class Build(contextlib.AbstractContextManager):
    """A dataset under construction, held by this process alone; an unfinished one goes on only from an equal plan.

    Raises:
        UsageError: the dataset exists, or an unfinished one is of another plan or is being worked on.
    """

    def __init__(self, prefix: Path, plan: dict[str, Any]) -> None:
        self.prefix = prefix
        self.folder = prefix.with_name(f"{prefix.name}.building")
        self._refuse_finished()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {prefix}: {self.folder} cannot be made: {error.strerror}") from error
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--out {prefix}: another `make data` writes it; wait for it or name another") from None
        self._check_plan(plan)
        state = self.folder / "state.json"
        self.state = State(**json.loads(state.read_text(encoding="utf-8"))) if state.exists() else State()
        self.resumed = self.state.chunks
        self._committed = time.monotonic()
        self._digest = hashlib.sha256()

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / "tokenizer.json"

    def _refuse_finished(self) -> None:
        there = [end for end in (".idx", ".bin") if self.prefix.with_name(self.prefix.name + end).exists()]
        if there and not (self.folder / "finishing").exists():
            raise UsageError(
                f"--out {self.prefix}: {self.prefix.name}{there[0]} exists, and a dataset is never overwritten: name "
                "another or remove it"
            )

    def _check_plan(self, plan: dict[str, Any]) -> None:
        path = self.folder / "plan.json"
        plan = json.loads(json.dumps(plan, default=str))
        if not path.exists():
            run_folder.write_json(path, plan)
            return
        begun = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in plan if plan[name] != begun.get(name)]
        if differing:
            raise UsageError(
                f"--out {self.prefix}: an unfinished run in {self.folder} had other {' and '.join(differing)}: go on "
                "with the same, or remove that folder"
            )

    def open(self, dtype: type[np.number]) -> None:
        """Open the files for appending, cut to what the state says; tokens so far are read once for the checksum."""
        self._dtype = np.dtype(dtype)
        self._tokens = self._opened("tokens", self.state.tokens * self._dtype.itemsize)
        self._lengths = self._opened("lengths", self.state.documents * 4)
        self._tokens.seek(0)
        while block := self._tokens.read(2**22):
            self._digest.update(block)

    def _opened(self, name: str, size: int) -> IO[bytes]:
        path = self.folder / name
        path.touch()
        file = path.open("r+b")
        file.truncate(size)
        file.seek(size)
        return file

    def append(self, chunk: list[Piece], result: Result) -> None:
        """Add the next chunk's tokens. Raises OSError where the disk is full; nothing is torn then."""
        state = self.state
        self._tokens.write(result.tokens)
        self._lengths.write(result.lengths)
        self._digest.update(result.tokens)
        state.chunks += 1
        state.documents += len(result.lengths) // 4
        state.tokens += len(result.tokens) // self._dtype.itemsize
        state.text_bytes += result.text_bytes
        state.empty += result.empty
        state.largest = max(state.largest, result.largest)
        for piece, lines, bad in zip(chunk, result.lines, result.bad, strict=True):
            if piece.number != state.source:
                state.source, state.lines = piece.number, 0
            state.bad += len(bad)
            for each in bad[: EXAMPLES - len(state.examples)]:
                state.examples.append(f"{piece.source.path}:{state.lines + each.line}: {each.why}")
            state.lines += lines
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Put what was appended on the disk, then the state that counts it."""
        for file in (self._tokens, self._lengths):
            file.flush()
            os.fsync(file.fileno())
        run_folder.write_json(self.folder / "state.json", asdict(self.state))
        self._committed = time.monotonic()

    def close(self) -> None:
        self.commit()
        self._tokens.close()
        self._lengths.close()

    def finish(self, name: str, vocabulary: tokenizers.Vocabulary, inputs: list[Source]) -> manifest.Manifest:
        """Write the index and the manifest, and move all three into place. Call after `close`."""
        state = self.state
        index = self.folder / "index"
        _write_index(index, self.folder / "lengths", vocabulary.dtype)
        with index.open("rb") as file:
            index_digest = hashlib.file_digest(file, "sha256").hexdigest()
        written = manifest.Manifest(
            tokenizer=name,
            vocabulary_size=vocabulary.size,
            end_of_document=vocabulary.end_of_document,
            largest_token=state.largest,
            documents=state.documents,
            tokens=state.tokens,
            text_bytes=state.text_bytes,
            empty_documents=state.empty,
            bad_lines=state.bad,
            dtype=np.dtype(vocabulary.dtype).name,
            sources=[[str(source.path), source.size] for source in inputs],
            sha256={".bin": self._digest.hexdigest(), ".idx": index_digest},
            created=run_folder.utc_now(),
        )
        run_folder.write_json(self.folder / "manifest", asdict(written))
        (self.folder / "finishing").touch()
        self._move_into_place()
        return written

    def finish_interrupted(self) -> bool:
        """Finish a run that was interrupted while it moved its files into place. Returns whether there was one."""
        if interrupted := (self.folder / "finishing").exists():
            self._move_into_place()
        return interrupted

    def _move_into_place(self) -> None:
        for name, ending in (("tokens", ".bin"), ("manifest", manifest.ENDING), ("index", ".idx")):
            if (self.folder / name).exists():
                (self.folder / name).replace(self.prefix.with_name(self.prefix.name + ending))
        self.discard()

    def discard(self) -> None:
        shutil.rmtree(self.folder)


def _write_index(path: Path, lengths: Path, dtype: type[np.number]) -> None:
    """Megatron's .idx of one sequence a document, a block at a time.

    Its own builder keeps a Python integer for every document and for every pointer, some 100 bytes a document, where
    this needs none. The format is that of its `indexed_dataset._IndexWriter`.
    """
    count = lengths.stat().st_size // 4
    with path.open("wb") as file:
        # Version 1, the ids' type, then the numbers of sequences and of the documents' bounds.
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, INDEX_TYPES[np.dtype(dtype).name], count, count + 1))
        for block in _blocks(lengths):
            file.write(block.tobytes())
        offset = 0
        for block in _blocks(lengths):
            ends = offset + np.cumsum(block, dtype=np.int64) * np.dtype(dtype).itemsize
            file.write(np.concatenate(([offset], ends[:-1])).astype(np.int64).tobytes())
            offset = int(ends[-1])
        for start in range(0, count + 1, BLOCK):
            file.write(np.arange(start, min(start + BLOCK, count + 1), dtype=np.int64).tobytes())


def _blocks(lengths: Path) -> Iterator[np.ndarray]:
    with lengths.open("rb") as file:
        while block := file.read(4 * BLOCK):
            yield np.frombuffer(block, dtype=np.int32)


def plan_of(inputs: list[Source], tokenizer: str, text_field: str) -> dict[str, Any]:
    """What a dataset is made from, to tell whether an unfinished one can go on."""
    return {
        "tokenizer": tokenizer,
        "field": text_field,
        "input": [[str(each.path), each.kind, each.size, each.mtime_ns] for each in inputs],
        "chunk bytes": [sources.CHUNK_BYTES, sources.SLOT_BYTES],
    }
