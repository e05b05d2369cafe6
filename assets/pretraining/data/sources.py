"""The inputs of `make data`, cut into chunks that a worker tokenizes at a time.

How a corpus is cut depends on its files alone, so the result is the same for any number of workers and after any
interruption. A slot of a file is a range of its (decompressed) bytes; the lines that start in it belong to it.
"""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import importlib
import io
import lzma
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from pretraining.errors import UsageError
from pretraining.inputs import contents

T = TypeVar("T")

MIB = 2**20
CHUNK_BYTES = MIB  # more, and the last chunks leave workers idle; less gains nothing
SLOT_BYTES = {"jsonl": CHUNK_BYTES, "text": MIB}  # a slot of plain text is a document
PARQUET_ROWS = 256

KINDS = {
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".txt": "text", ".text": "text", ".md": "text"},
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}
LONGEST_WINDOW = 2**31  # of zstd --long=31; its library alone stops at 2**27


@dataclass(frozen=True)
class Source:
    """An input file as it was found; an interrupted run goes on only from the same files."""

    path: Path
    kind: str  # "jsonl", "text" or "parquet"
    compression: str  # of `contents.COMPRESSIONS`, or ""
    size: int
    mtime_ns: int
    note: str = ""  # where it is not what its name says, what it is read as


@dataclass(frozen=True)
class Piece:
    """A part of a source: the lines that start in a range of the file, or content that is carried."""

    number: int  # of the source
    source: Source
    start: int = 0
    end: int = 0
    content: bytes | list[Any] | None = None  # what a worker could not read: decompressed lines, texts of Parquet rows
    consumed: int = 0  # bytes of the file that it stands for, for progress

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
        with self.source.path.open("rb") as file:
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
    """The files that `patterns` name, as `words` reads them, sorted within each pattern, each once.

    Raises:
        UsageError: nothing matches, a file's kind cannot be told, or its content is not of the `kind` that is asked.
    """
    found: dict[str, None] = {}
    for word in words(patterns):
        if not (matched := matching(word)):
            inside = f"; it is a folder: give {word.rstrip('/')}/*.jsonl" if os.path.isdir(word) else ""
            raise UsageError(f"--input {word}: no such file, and nothing matches it{inside}")
        found |= dict.fromkeys(matched)
    return [_described(Path(path), kind) for path in found]


def words(patterns: str) -> list[str]:
    """The files and patterns of `--input`: the whole where there is such a file or it matches, else by blanks."""
    if os.path.lexists(patterns) or matching(patterns):
        return [patterns]
    try:
        return shlex.split(patterns)
    except ValueError as error:
        raise UsageError(
            f"--input {patterns}: no such file; of several, one with a quotation mark is quoted"
        ) from error


def matching(pattern: str) -> list[str]:
    """A file of exactly this name, else those that match it as a pattern: `**` for any depth."""
    found = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))
    return [path for path in found if not os.path.isdir(path)]


def _described(path: Path, asked: str | None) -> Source:
    """What a file is: by its content, and where that does not tell, by its ending."""
    if wrong := contents.pointer(path):
        raise UsageError(wrong)
    if not path.is_file():
        raise UsageError(f"--input {path} is no file: write what comes out of it into one")
    head, compression = _head(path)
    named = COMPRESSIONS.get(path.suffix.lower(), "")
    kind = asked or KINDS.get((path.with_suffix("") if named else path).suffix.lower())
    notes = [] if named == compression else [f"it is {compression or 'not compressed'}"]
    if contents.PARQUET.is_in(head):
        found = "parquet"
        if compression:
            raise UsageError(contents.within(path, compression))
        _package("pyarrow.parquet")
    elif kind in (None, "parquet") and contents.is_json_lines(head):
        found = "jsonl"
    else:
        found = "jsonl" if kind == "parquet" else kind
        if wrong := contents.fault(path, head, found, compression, asked=asked is not None):
            raise UsageError(wrong)
        if head and kind in (None, "parquet"):
            raise UsageError(_no_kind(path, kind))
    if found != kind and head:
        notes.append(f"it holds {'Parquet' if found == 'parquet' else 'a JSON object a line'}")
    state = path.stat()
    note = f"{path} is read as what it is: {' and '.join(notes)}" if notes else ""
    if not head:
        note = f"{path} is empty"
    elif found == "text" and asked is None and contents.is_json_lines(head):
        note = f"{path} is read as plain text, by its name; it looks like JSON lines: --format jsonl (ARGS=)"
    return Source(path.absolute(), found or "text", compression, state.st_size, state.st_mtime_ns, note)


def _no_kind(path: Path, kind: str | None) -> str:
    if kind:
        return f"{path} is no Parquet file, nor lines of JSON: if it is plain text, say --format text (ARGS=)"
    return (
        f"--input {path}: cannot tell its format; known endings are {', '.join(KINDS)}, each also with "
        f"{', '.join(COMPRESSIONS)}, or say it: --format jsonl, text or parquet"
    )


def _head(path: Path) -> tuple[bytes, str]:
    """The first bytes of a file's text, and how it is compressed."""
    with path.open("rb") as raw:
        head = raw.read(contents.HEAD)
        if not (compression := contents.compression(head)):
            return head, ""
        raw.seek(0)
        with _reading(path):
            return _decompressed(raw, compression).read(contents.HEAD), compression


def chunks(sources: list[Source], field: str) -> Iterator[list[Piece]]:
    """The corpus in order, cut into lists of pieces of about CHUNK_BYTES together.

    Raises:
        UsageError: a compressed or Parquet file is damaged, or lacks the column `field`.
    """
    return grouped(_pieces(sources, field), lambda piece: piece.weight, CHUNK_BYTES)


def grouped(items: Iterable[T], weight: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Neighbours in lists that weigh up to `most` together; a heavier item is alone."""
    held: list[T] = []
    total = 0
    for item in items:
        own = weight(item)
        if held and total + own > most:
            yield held
            held, total = [], 0
        held.append(item)
        total += own
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
                yield Piece(number, source, start, end, consumed=end - start)


def _of_compressed(number: int, source: Source) -> Iterator[Piece]:
    size = SLOT_BYTES[source.kind]
    with source.path.open("rb") as raw:
        stream = _decompressed(raw, source.compression)
        position = consumed = 0
        while True:
            with _reading(source.path):
                read = stream.read(size - position % size)
                if read and not read.endswith(b"\n"):
                    read += stream.readline()
            if not read:
                return
            position += len(read)
            before, consumed = consumed, raw.tell()
            yield Piece(number, source, content=read, consumed=consumed - before)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Within: whatever a decompressor says of its input names the file."""
    try:
        yield
    except Exception as error:  # EOFError, BadGzipFile, zlib.error, LZMAError, OSError of bz2; zstandard: ZstdError
        if isinstance(error, UsageError) or (isinstance(error, OSError) and error.errno):
            raise
        if "ictionary" in str(error):
            raise UsageError(f"{path} needs the dictionary that it was made with: zstd -D DICTIONARY -d") from error
        if "Not a gzipped file" in str(error):  # the first bytes were: others follow the last member
            what = "gzip with other bytes behind it, which gzip leaves out"
            raise UsageError(contents.said(path, contents.COMPRESSIONS["gzip"]._replace(what=what))) from error
        raise UsageError(f"{path} is damaged: {error}; mend it or leave it out") from error


def _decompressed(raw: IO[bytes], compression: str) -> IO[bytes]:
    if compression == "zstd":
        return io.BufferedReader(_Zstd(raw), MIB)
    return {"gzip": gzip, "bzip2": bz2, "xz": lzma}[compression].open(raw, "rb")


class _Zstd(io.RawIOBase):
    """The text of zstd frames one after the other. zstandard's own reader takes a truncated file for a whole one."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame: Any = None
        self._input = b""
        self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, or give 0 at the end. Raises EOFError where the last frame is not whole."""
        while not self._output:
            self._input = self._input or self._raw.read(MIB // 8)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("it ends within a zstd frame")
                return 0
            if self._frame is None:
                decompressor = _package("zstandard").ZstdDecompressor(max_window_size=LONGEST_WINDOW)
                self._frame = decompressor.decompressobj()
            self._output = self._frame.decompress(self._input)
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count


def _of_parquet(number: int, source: Source, field: str) -> Iterator[Piece]:
    try:
        file = _package("pyarrow.parquet").ParquetFile(source.path)
        if field not in file.schema_arrow.names:
            raise UsageError(f"{source.path} has no column {field!r}; it has {', '.join(file.schema_arrow.names)}")
        rows = max(1, file.metadata.num_rows)
        done = 0
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[field]):
            before, done = done, done + len(batch)
            consumed = source.size * done // rows - source.size * before // rows
            yield Piece(number, source, content=batch.column(0).to_pylist(), consumed=consumed)
    except OSError as error:  # pyarrow.ArrowInvalid is a ValueError as well
        raise UsageError(f"{source.path} is damaged: {error}; mend it or leave it out") from error


_INSTALLED = {
    "pyarrow.parquet": "Parquet needs pyarrow: install it with `.venv/cpu/bin/pip install pyarrow`",
    "zstandard": "zstd needs the package zstandard: `pip install zstandard`, or recompress with gzip",
}


def _package(name: str) -> Any:
    """A package of `_INSTALLED`. Raises UsageError where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(_INSTALLED[name]) from None
