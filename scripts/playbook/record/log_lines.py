"""A log's lines as training printed them: without prefixes, colours and what else launchers and terminals put there.

Three steps, each over some MiB at once: *decode* (UTF-16, gzip, JSON of `docker logs`, colours, carriage returns),
*join* (lines cut at a terminal's width) and *strip* (whatever stands before the known parts of a line: time stamps,
pods, nodes, ranks, loggers, line numbers, indentation). What to join and to strip is learnt from the first MiB.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from playbook.record.columns import whole_lines

MARK = b"\x1f"  # between two of these stands whose line it is, in a log of several ranks
_DIRT = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|[\x00\x1b\x1f]")
# Where loggers that write JSON put the line.
_TEXTS = ("log", "message", "MESSAGE", "msg", "line", "text", "textPayload")
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
_VARIES = re.compile(rb"(?P<month>[A-Z][a-z]{2}(?= +\d))|(?P<level>[A-Z]{4,})|(?P<number> *\d+)|.", re.DOTALL)
_GENERAL = {"month": rb"[A-Z][a-z]{2}", "level": rb"[A-Z]+", "number": rb" *\d+"}
MOST_PREFIXES = 64


def read(path: Path) -> Iterator[bytes]:
    """The log's text in pieces of whole lines, undone; a line may begin with `MARK`, whose it is, and `MARK`.

    Raises OSError.
    """
    with path.open("rb") as file:
        try:
            pieces = map(_decode, whole_lines(_plain(file)))
            for step in (_joined, _stripped):
                sample = next(pieces)
                pieces = step(chain([sample], pieces), sample)
            yield from pieces
        except (EOFError, zlib.error) as error:
            raise OSError(f"it is compressed, and damaged or cut: {error}") from error


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
    return codecs.EncodedFile(file, "utf-8", "utf-16", "replace") if start in (b"\xff\xfe", b"\xfe\xff") else file


def _decode(text: bytes) -> bytes:
    if text.lstrip()[:1] == b"{":
        text = b"".join(map(_of_json, text.splitlines(keepends=True)))
    text = text.replace(b"\xc2\xa0", b" ")  # of a web page
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
    return (entry[name] if name == "log" else entry[name] + "\n").encode(errors="replace")


def _joined(pieces: Iterator[bytes], sample: bytes) -> Iterator[bytes]:
    """The pieces with lines whole that a terminal cut."""
    lines = sample.split(b"\n")
    heads = [line for line in lines if _ITERATION.search(line)]
    width = max(map(len, lines))
    full = sum(len(line) == width for line in lines)
    whole = sum(bool(_ITERATION_ENDS.search(line)) for line in heads)
    if not heads or whole > len(heads) / 2 or full < len(heads) / 2:
        yield from pieces
        return
    # In a copy that is padded with blanks every line has the width: one that was cut has text up to its end.
    padded = full > 0.9 * len(lines)
    end = rb"(?:[^\n ]|(?<! )[^\n])" if padded else rb"[^\n]"
    cut = re.compile(rb"^((?:[^\n]{%d})*[^\n]{%d}%s)\n" % (width, width - 1, end), re.MULTILINE)
    rest = b""
    for text in pieces:
        text, newline, rest = cut.sub(rb"\1", rest + text).rpartition(b"\n")
        yield re.sub(rb" +$", b"", text, flags=re.MULTILINE) + newline if padded else text + newline
    yield rest


def _stripped(pieces: Iterator[bytes], sample: bytes) -> Iterator[bytes]:
    """The pieces without the prefixes, which are learnt from the lines that begin in a known way."""
    lines = sample.split(b"\n")
    shapes = Counter(_shape(line[: found.start()]) for line in lines if (found := _KNOWN.search(line)))
    bare = shapes.pop(b"", 0)
    often = [each for each, count in shapes.most_common(MOST_PREFIXES) if count > 1 and not (bare and each.isspace())]
    prefix = re.compile(rb"^(?:" + b"|".join([*sorted(often, key=len, reverse=True), _RANK]) + rb")", re.MULTILINE)
    seen = prefix.findall(sample)
    keys = {_CLOCK.sub(b"", found).strip() for found in seen}
    numbered = len(keys) > max(len(seen) / 4, 8)  # numbers of lines, not of ranks
    of_one = (len(keys) == 1 or numbered) and len(seen) > 0.9 * len(lines)

    def mark(found: re.Match[bytes]) -> bytes:
        name = _CLOCK.sub(b"", found[0]).strip()
        return MARK + (re.sub(rb"\d+", b"", name) if numbered else name) + MARK

    return map(partial(prefix.sub, b"" if of_one else mark), pieces)


def _shape(prefix: bytes) -> bytes:
    """A pattern of all prefixes like this one."""
    return _VARIES.sub(lambda found: _GENERAL.get(found.lastgroup) or re.escape(found[0]), prefix)
