"""The inputs of `make data`, cut into chunks that a worker tokenizes at a time.

How a corpus is cut depends on its files alone, so the result is the same for any number of workers and after any
interruption. A slot of a file is a range of its (decompressed) bytes; the lines that start in it belong to it.
"""

from __future__ import annotations

import glob
import gzip
import io
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import UsageError

MIB = 2**20
CHUNK_BYTES = MIB  # more, and the last chunks leave workers idle; less gains nothing
SLOT_BYTES = {"jsonl": CHUNK_BYTES, "text": MIB}  # a slot of plain text is a document
PARQUET_ROWS = 256

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".txt": "text", ".text": "text", ".md": "text"}
COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}


@dataclass(frozen=True)
class Source:
    """An input file.

    Attributes:
        kind: "jsonl", "text" or "parquet".
        compression: "gzip", "zstd" or "".
        size, mtime_ns: as it was found; an interrupted run goes on only from the same files.
    """

    path: Path
    kind: str
    compression: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Piece:
    """A part of a source.

    Attributes:
        source: its number.
        kind: the source's.
        path: the source's.
        start, end: the lines that start in this range of the file; not for content that is carried.
        content: what a worker could not read for itself: decompressed lines, or the texts of Parquet rows.
        consumed: bytes of the file that it stands for, for progress.
    """

    source: int
    kind: str
    path: Path
    start: int = 0
    end: int = 0
    content: bytes | list[Any] | None = None
    consumed: int = 0

    @property
    def weight(self) -> int:
        """Bytes of text, roughly."""
        if self.content is None:
            return self.end - self.start
        return len(self.content) if isinstance(self.content, bytes) else sum(len(text or "") for text in self.content)

    def lines(self) -> bytes:
        """The whole lines of this piece of a JSONL or plain-text file."""
        if isinstance(self.content, bytes):
            return self.content
        with self.path.open("rb") as file:
            file.seek(max(0, self.start - 1))
            read = file.read(self.end - file.tell())
            if self.start:  # the line that this range begins in belongs to the one before
                _, newline, read = read.partition(b"\n")
                if not newline:
                    return b""
            if read and not read.endswith(b"\n"):
                read += file.readline()
            return read


def find(patterns: str, kind: str | None = None) -> list[Source]:
    """The files that `patterns` name, sorted within each pattern, each once.

    Args:
        patterns: a file or a glob pattern (`**` for any depth), or several separated by spaces.
        kind: "jsonl", "text" or "parquet" for all of them, or None to tell by their endings.

    Raises:
        UsageError: nothing matches, or a file's kind cannot be told.
    """
    whole = _matching(patterns)
    found = whole or [path for word in shlex.split(patterns) for path in _matching(word) or [_nothing(word)]]
    return [_described(Path(path), kind) for path in dict.fromkeys(found)]


def _matching(pattern: str) -> list[str]:
    return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))


def _nothing(pattern: str) -> str:
    inside = f"; it is a folder: give {pattern.rstrip('/')}/*.jsonl" if os.path.isdir(pattern) else ""
    raise UsageError(f"--input {pattern}: no such file, and nothing matches it{inside}")


def _described(path: Path, kind: str | None) -> Source:
    compression = COMPRESSIONS.get(path.suffix.lower(), "")
    ending = (path.with_suffix("") if compression else path).suffix.lower()
    kind = kind or ("parquet" if ending == ".parquet" else KINDS.get(ending))
    if kind is None:
        raise UsageError(
            f"--input {path}: cannot tell its format; known endings are {', '.join([*KINDS, '.parquet'])}, each also "
            f"with .gz or .zst, or say it: --format jsonl, text or parquet"
        )
    if kind == "parquet":
        _parquet()
        compression = ""
    if compression == "zstd":
        _zstandard()
    state = path.stat()
    return Source(path.absolute(), kind, compression, state.st_size, state.st_mtime_ns)


def chunks(sources: list[Source], field: str) -> Iterator[list[Piece]]:
    """The corpus in order, cut into lists of pieces of about CHUNK_BYTES together.

    Args:
        sources: the files.
        field: the column of a Parquet file.

    Raises:
        UsageError: a compressed or Parquet file is damaged or lacks the column.
    """
    held: list[Piece] = []
    weight = 0
    for piece in _pieces(sources, field):
        if held and weight + piece.weight > CHUNK_BYTES:
            yield held
            held, weight = [], 0
        held.append(piece)
        weight += piece.weight
    if held:
        yield held


def _pieces(sources: list[Source], field: str) -> Iterator[Piece]:
    for number, source in enumerate(sources):
        if source.kind == "parquet":
            yield from _of_parquet(number, source, field)
        elif source.compression:
            yield from _of_compressed(number, source)
        else:
            size = SLOT_BYTES[source.kind]
            for start in range(0, source.size, size):
                end = min(start + size, source.size)
                yield Piece(number, source.kind, source.path, start, end, consumed=end - start)


def _of_compressed(number: int, source: Source) -> Iterator[Piece]:
    size = SLOT_BYTES[source.kind]
    with source.path.open("rb") as raw:
        stream = _decompressed(raw, source.compression)
        position = consumed = 0
        while True:
            try:
                read = stream.read(size - position % size)
                if read and not read.endswith(b"\n"):
                    read += stream.readline()
            except Exception as error:  # gzip: EOFError, BadGzipFile, zlib.error; zstandard: ZstdError
                raise UsageError(f"{source.path} is damaged: {error}; mend it or leave it out") from error
            if not read:
                return
            position += len(read)
            before, consumed = consumed, raw.tell()
            yield Piece(number, source.kind, source.path, content=read, consumed=consumed - before)


def _decompressed(raw: IO[bytes], compression: str) -> IO[bytes]:
    return gzip.open(raw, "rb") if compression == "gzip" else io.BufferedReader(_Zstd(raw), MIB)


class _Zstd(io.RawIOBase):
    """The text of zstd frames one after the other. zstandard's own reader takes a truncated file for a whole one."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame: Any = None
        self._input = b""
        self._output = b""

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, or give 0 at the end. Raises EOFError where the last frame is not whole."""
        while not self._output:
            self._input = self._input or self._raw.read(MIB // 8)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("it ends within a zstd frame")
                return 0
            self._frame = self._frame or _zstandard().ZstdDecompressor().decompressobj()
            self._output = self._frame.decompress(self._input)
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count


def _of_parquet(number: int, source: Source, field: str) -> Iterator[Piece]:
    parquet = _parquet()
    try:
        file = parquet.ParquetFile(source.path)
        if field not in file.schema_arrow.names:
            raise UsageError(f"{source.path} has no column {field!r}; it has {', '.join(file.schema_arrow.names)}")
        rows = max(1, file.metadata.num_rows)
        done = 0
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[field]):
            before, done = done, done + len(batch)
            consumed = source.size * done // rows - source.size * before // rows
            yield Piece(number, "parquet", source.path, content=batch.column(0).to_pylist(), consumed=consumed)
    except OSError as error:  # pyarrow.ArrowInvalid is a ValueError as well
        raise UsageError(f"{source.path} is damaged: {error}; mend it or leave it out") from error


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UsageError("Parquet needs pyarrow: install it with `.venv/cpu/bin/pip install pyarrow`") from None
    return parquet


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise UsageError("zstd needs the package zstandard: `pip install zstandard`, or recompress with gzip") from None
    return zstandard
