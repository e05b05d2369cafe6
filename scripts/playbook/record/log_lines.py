"""A log's lines as training printed them: what terminals, container engines and launchers did to them is undone.

Three steps, each over some MiB at once: *decode* (UTF-16, gzip, JSON of `docker logs`, colours, carriage returns),
*join* (lines cut at a terminal's width) and *strip* (whatever stands before the known parts of a line: time stamps,
pods, nodes, ranks, loggers, line numbers, indentation). What to join and to strip is learnt from the first MiB.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from playbook.record.columns import whole_lines

MARK = b"\x1f"  # between two of these stands whose line it is, in a log of several ranks
_DIRT = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|[\x00\x1b\x1f]")
_TEXTS = ("log", "message", "msg", "line", "text")  # where loggers that write JSON put the line
# What Megatron-Bridge begins its lines with; the blank before the time of an iteration is its own.
_KNOWN = re.compile(
    rb" ?\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?\] iteration +\d+/|Step Time : [\d.]+s |\[after training is done\]"
    rb"|Configuration Summary \(|={50}|\[before the start of training step\]|Starting training loop at iteration"
    rb"|> initialized \w+ model parallel|Traceback \(most recent call last\)|-{20,} arguments -{20,}"
)
_ITERATION = re.compile(rb"\] iteration +\d+/ *\d+ \|")
_ITERATION_ENDS = re.compile(rb"number of nan iterations: +\d+ \|")
_RANK = rb"\[(?:rank|default)\d+\]: ?"  # of torch and torchrun, also where only some lines have it
_CLOCK = re.compile(
    rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z| ?[+-]\d\d:?\d\d)?"
    rb"|[A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d(?:\.\d+)?|\d\d:\d\d:\d\d(?:[.,]\d+)?|\d{9,}(?:\.\d+)?"
)
# Of a prefix: what differs from line to line, and what it is made general by.
_VARIES = re.compile(
    rb"(?P<month>[A-Z][a-z]{2}(?= +\d))|(?P<level>[A-Z]{4,})|(?P<number> *\d+)|(?P<other>.)", re.DOTALL
)
_GENERAL = {"month": rb"[A-Z][a-z]{2}", "level": rb"[A-Z]+", "number": rb" *\d+"}
MOST_PREFIXES = 64


def read(path: Path) -> Iterator[bytes]:
    """The log's text in pieces of whole lines, undone; a line may begin with `MARK`, whose it is, and `MARK`.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        pieces = map(_decode, whole_lines(_plain(file)))
        first = next(pieces)
        pieces = _joined(chain([first], pieces), first)
        first = next(pieces)
        strip = _stripper(first)
        yield from map(strip, chain([first], pieces))


def whose(line: bytes) -> tuple[str, bytes]:
    """Whose line it is, "" where all are one's, and the line."""
    if not line.startswith(MARK):
        return "", line
    _, name, line = line.split(MARK, 2)
    return name.decode("utf-8", "replace"), line


def _plain(file: BinaryIO) -> BinaryIO:
    """The file's UTF-8, also of one that is gzip's, or UTF-16 as PowerShell redirects."""
    start = file.read(2)
    file.seek(0)
    if start == b"\x1f\x8b":
        return gzip.open(file)
    return _Encoded(file) if start in (b"\xff\xfe", b"\xfe\xff") else file


class _Encoded:
    """A file of UTF-16, read as UTF-8."""

    def __init__(self, file: BinaryIO) -> None:
        self._text = TextIOWrapper(file, "utf-16", errors="replace")

    def read(self, size: int) -> bytes:
        return self._text.read(size).encode()


def _decode(text: bytes) -> bytes:
    if text.lstrip()[:1] == b"{":
        text = b"".join(map(_of_json, text.splitlines(keepends=True)))
    if b"\x1b" in text or b"\x00" in text or MARK in text:
        text = _DIRT.sub(b"", text)
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text


def _of_json(line: bytes) -> bytes:
    """The text in a line of a JSON log; Docker's has its own line end, or none where it was too long for one entry."""
    try:
        entry = json.loads(line)
        name = next(name for name in _TEXTS if isinstance(entry.get(name), str))
    except (ValueError, AttributeError, StopIteration, RecursionError):
        return line
    return (entry[name] if name == "log" else entry[name] + "\n").encode()


def cut_at(text: bytes) -> int | None:
    """The width at which a terminal cut the lines of a log; None where iterations are whole."""
    lines = text.split(b"\n")
    heads = [line for line in lines if _ITERATION.search(line)]
    if not heads or sum(bool(_ITERATION_ENDS.search(line)) for line in heads) > len(heads) / 2:
        return None
    width = max(map(len, lines))
    return width if sum(len(line) == width for line in lines) >= len(heads) / 2 else None


def _joined(pieces: Iterator[bytes], sample: bytes) -> Iterator[bytes]:
    """The pieces with lines whole that a terminal cut."""
    width = cut_at(sample)
    if width is None:
        yield from pieces
        return
    lines = sample.split(b"\n")
    # In a copy that is padded with blanks every line has the width: one that was cut has text up to its end.
    padded = sum(len(line) == width for line in lines) > 0.9 * len(lines)
    cut = rb"[^\n]{%d}" % (width - 1) + rb"(?:[^\n ]|(?<! )[^\n])" if padded else rb"[^\n]{%d}" % width
    cut_line, cut_at_end = (
        re.compile(rb"^(" + cut + rb")\n", re.MULTILINE),
        re.compile(rb"(?:(?<![^\n])" + cut + rb"\n)+\Z"),
    )
    held = b""
    for text in chain(pieces, [None]):
        text = held + (text or b"")
        end = cut_at_end.search(text) if text is not None else None
        text, held = (text[: end.start()], end[0]) if end else (text, b"")
        text = cut_line.sub(rb"\1", text)
        yield re.sub(rb" +\n", b"\n", text) if padded else text
    yield held


def _stripper(sample: bytes) -> Callable[[bytes], bytes]:
    """What takes the prefixes off, learnt from the lines that begin in a known way."""
    lines = sample.split(b"\n")
    shapes = Counter(_shape(line[: found.start()]) for line in lines if (found := _KNOWN.search(line)))
    bare = shapes.pop(b"", 0)
    often = [each for each, count in shapes.most_common(MOST_PREFIXES) if count > 1 and not (bare and each.isspace())]
    prefix = re.compile(rb"^(?:" + b"|".join([*sorted(often, key=len, reverse=True), _RANK]) + rb")", re.MULTILINE)
    seen = prefix.findall(sample)
    keys = {_CLOCK.sub(b"", found).strip() for found in seen}
    numbered = len(keys) > max(len(seen) / 4, 8)  # numbers of lines, not of ranks
    if (len(keys) == 1 or numbered) and len(seen) > 0.9 * len(lines):
        return lambda text: prefix.sub(b"", text)

    def mark(found: re.Match[bytes]) -> bytes:
        name = _CLOCK.sub(b"", found[0]).strip()
        return MARK + (re.sub(rb"\d+", b"", name) if numbered else name) + MARK

    return lambda text: prefix.sub(mark, text)


def _shape(prefix: bytes) -> bytes:
    """A pattern of all prefixes like this one."""
    return b"".join(
        re.escape(found[0]) if found.lastgroup == "other" else _GENERAL[found.lastgroup]
        for found in _VARIES.finditer(prefix)
    )
