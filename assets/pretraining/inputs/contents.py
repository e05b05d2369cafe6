"""What a file is by its first bytes, whatever its name says, and the command that makes JSON lines or text of it.

Signatures: the formats' own specifications and https://www.garykessler.net/library/file_sigs.html.
"""

from __future__ import annotations

import codecs
import json
import shlex
from pathlib import Path
from typing import NamedTuple

HEAD = 2**16  # bytes to look at


class Format(NamedTuple):
    """A kind of file that is told by fixed bytes, or one of several."""

    what: str
    begins: bytes | tuple[bytes, ...]
    mend: str = ""  # the shell command that makes something readable of FILE, as NEW; "" where no common one does
    at: int = 0  # where the bytes stand

    def is_in(self, head: bytes) -> bool:
        return head.startswith(self.begins, self.at)


_ROWS_OF_PARQUET = (
    "python3 -c 'import json, sys; from pyarrow import parquet; [print(json.dumps(row)) for batch in "
    "parquet.ParquetFile(sys.argv[1]).iter_batches() for row in batch.to_pylist()]' FILE > NEW.jsonl"
)
_ROWS_OF_ARROW = (
    "python3 -c 'import sys, datasets; datasets.Dataset.from_file(sys.argv[1]).to_json(sys.argv[2])' FILE NEW.jsonl"
)
_ROWS_OF_CSV = (
    "python3 -c 'import csv, json, sys; [print(json.dumps(row)) for row in csv.DictReader(sys.stdin{})]' "
    "< FILE > NEW.jsonl"
)

COMPRESSIONS = {
    "gzip": Format("gzip", b"\x1f\x8b", "gzip -dc < FILE > NEW"),
    "zstd": Format("zstd", (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"), "zstd --long=31 -dc < FILE > NEW"),
    "bzip2": Format("bzip2", b"1AY&SY", "bzip2 -dc < FILE > NEW", 4),
    "xz": Format("xz", b"\xfd7zXZ\0", "xz -dc < FILE > NEW"),
}
PARQUET = Format("Parquet", b"PAR1", _ROWS_OF_PARQUET)
_LFS = Format(
    "a Git LFS pointer and not the file itself", b"version https://git-lfs", "git -C FOLDER lfs pull --include=NAME"
)
_ANNEX = Format("a git-annex pointer and not the file itself", b"/annex/objects/", "git -C FOLDER annex get NAME")
_FORMATS = (
    *COMPRESSIONS.values(),
    PARQUET,
    _LFS,
    _ANNEX,
    Format("a tar archive", b"ustar", "tar -xf FILE", 257),
    Format("a zip archive", b"PK\3\4", "unzip FILE"),
    Format("a 7z archive", b"7z\xbc\xaf\x27\x1c", "7z x FILE"),
    Format("a RAR archive", b"Rar!\x1a\7", "unrar x FILE"),
    Format("lz4", b"\4\x22\x4d\x18", "lz4 -dc < FILE > NEW"),
    Format("lzma", b"\x5d\0\0", "xz --format=lzma -dc < FILE > NEW"),
    Format("snappy", b"\xff\6\0\0sNaPpY", "snzip -dc < FILE > NEW"),
    Format("an LZW file of `compress`", b"\x1f\x9d", "gzip -dc < FILE > NEW"),
    Format("an Arrow file", b"ARROW1", _ROWS_OF_ARROW),
    Format("an Arrow stream", b"\xff\xff\xff\xff", _ROWS_OF_ARROW),
    Format("an Avro file", b"Obj\1"),
    Format("an HDF5 file", b"\x89HDF\r\n\x1a\n"),
    Format("a NumPy array", b"\x93NUMPY"),
    Format("an SQLite database", b"SQLite format 3\0"),
    Format("a PDF", b"%PDF-", "pdftotext FILE NEW.txt"),
    Format("the index of a dataset that is tokenized already (DATA= takes its prefix)", b"MMIDIDX"),
)
# By the byte-order mark, the longer ones first; then without one, as a `{` or a `[` begins there.
_ENCODINGS = (
    ("UTF-32", codecs.BOM_UTF32_LE),
    ("UTF-32", codecs.BOM_UTF32_BE),
    ("UTF-16", codecs.BOM_UTF16_LE),
    ("UTF-16", codecs.BOM_UTF16_BE),
)
_SEPARATORS = ((",", "CSV", ""), ("\t", "TSV", ', delimiter="\\t"'), (";", "CSV", ', delimiter=";"'))
_WEB_PAGES = ("<!doctype html", "<html", "<head", "<body")


def compression(head: bytes) -> str:
    """The name in `COMPRESSIONS` of what a file's first bytes belong to, or ""."""
    return next((name for name, each in COMPRESSIONS.items() if each.is_in(head)), "")


def is_json_lines(head: bytes) -> bool:
    """Whether the first line is a JSON object."""
    return _is_object(_text(head).partition("\n")[0])


def pointer(path: Path) -> str | None:
    """What to say of a file that only stands for another: a link to nothing, or a pointer of Git's extensions."""
    if path.is_symlink() and not path.exists():
        target = str(path.readlink())
        if "annex/objects/" in target:
            return said(path, _ANNEX._replace(what="a link of git-annex to what is not here"))
        return f"{path} is a link to {target}, which is not there: fetch that file or remove the link"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(128)
    return next((said(path, each) for each in (_LFS, _ANNEX) if each.is_in(head)), None)


def fault(path: Path, head: bytes, kind: str | None, compression: str = "", *, asked: bool = False) -> str | None:
    """Why a file cannot be read as lines of JSON or as text, and the command that mends it; None where it can.

    Args:
        head: its first `HEAD` bytes, decompressed from `compression`.
        kind: "jsonl", "text", or None where its name does not tell.
        asked: that the kind was asked for, so that text may be of any look.
    """
    for each in _FORMATS:
        if each.is_in(head):
            twice = compression and each in COMPRESSIONS.values()
            return said(path, each._replace(what=f"{each.what} within {compression}") if twice else each, compression)
    if encoding := _encoding(head):
        found = Format(f"in {encoding}", b"", f"iconv -f {encoding} -t UTF-8 < FILE > NEW")
        return said(path, found, compression)
    if kind == "text" and asked:
        return None
    if b"\0" in head[:64]:  # a later one is of a line
        return f"{path} is binary (it begins with {head[:8]!r}), and neither text nor JSON lines"
    text = _text(head)
    start = text[:16].lower()
    if start.startswith(_WEB_PAGES) or (start[:1] == "<" and (start.startswith("<?xml") or kind != "text")):
        what = "a web page" if start.startswith(_WEB_PAGES) else "XML or a web page"
        return (
            f"{path} is {what}, as a server sends in place of a file: download it again, with `curl --fail -L`"
            f"{'' if kind == 'jsonl' else '; if it is the text you mean, say --format text (ARGS=)'}"
        )
    if kind == "text":
        return None
    found = _json_shape(text) or _table(path, text)
    return said(path, found, compression) if found else None


def within(path: Path, compression: str) -> str:
    """What to say of Parquet in a compressed file, which cannot be read in any order."""
    mend = COMPRESSIONS[compression].mend.replace("NEW", "NEW.parquet")
    return said(path, Format(f"Parquet within {compression}", b"", mend))


def said(path: Path, found: Format, compression: str = "") -> str:
    """The sentence on a file that is `found`, within a compression, with the command that mends it."""
    ending = path.suffix if path.suffix in (".json", ".txt", ".md") else ".jsonl"
    new = shlex.quote(str(path.with_name(f"{path.name.split('.')[0]}.mended")))
    mend = found.mend.replace("NEW.", f"{new}.").replace("NEW", f"{new}{ending}")
    if compression and "< FILE" in mend:
        unpack = COMPRESSIONS[compression].mend.removesuffix(" > NEW")
        mend = f"{unpack} | {mend.replace('< FILE ', '')}"
    for word, value in (("FILE", path), ("FOLDER", path.parent), ("NAME", path.name)):
        mend = mend.replace(word, shlex.quote(str(value)))
    return f"{path} is {found.what}: {f'`{mend}`' if mend else 'convert it to JSON lines'}"


def _text(head: bytes) -> str:
    return head.decode(errors="replace").lstrip("\ufeff \t\r\n")


def _encoding(head: bytes) -> str:
    """The name that iconv knows of an encoding whose units are wider than a byte, or ""."""
    for name, mark in _ENCODINGS:
        if head.startswith(mark):
            return name
    for name, unit, at in (("UTF-32LE", 4, 0), ("UTF-32BE", 4, 3), ("UTF-16LE", 2, 0), ("UTF-16BE", 2, 1)):
        two = head[: 2 * unit]
        zeros = all((byte == 0) == (place % unit != at) for place, byte in enumerate(two))
        if len(two) == 2 * unit and zeros and two.decode(name).strip().isprintable():
            return name
    return ""


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_shape(text: str) -> Format | None:
    """JSON that does not hold an object a line."""
    first, _, rest = text.partition("\n")
    if text[:1] == "[":
        try:
            json.loads(first)
            if rest.lstrip()[:1] == "[":
                return None  # a list a line: each is told by its number
        except (ValueError, RecursionError):
            pass
        return Format("a JSON array and not JSON lines", b"", "jq -c '.[]' < FILE > NEW.jsonl")
    if text[:1] != "{" or _is_object(first):
        return None
    if "\n" not in text and _is_object(text.partition("\r")[0]):
        return Format("JSON lines that end as on an old Macintosh", b"", "tr '\\r' '\\n' < FILE > NEW")
    try:
        end = json.JSONDecoder().raw_decode(text)[1]
    except (ValueError, RecursionError):
        end = 0
    if rest.lstrip()[:1] in ('"', "}") or (end and text[end:].lstrip()[:1] == "{"):
        return Format("JSON objects and not one a line", b"", "jq -c . < FILE > NEW.jsonl")
    return None


def _table(path: Path, text: str) -> Format | None:
    """Comma- or tab-separated values: lines of equally many cells that are no JSON."""
    if text[:1] in ("{", "["):
        return None
    lines = text.splitlines()[:3]
    for separator, name, argument in _SEPARATORS:
        cells = {line.count(separator) for line in lines}
        if len(lines) > 1 and len(cells) == 1 and cells != {0}:
            return Format(f"{name} and not JSON lines", b"", _ROWS_OF_CSV.format(argument))
    if {".csv", ".tsv"} & set(path.suffixes):
        return Format("CSV and not JSON lines", b"", _ROWS_OF_CSV.format(_SEPARATORS[".tsv" in path.suffixes][2]))
    return None
