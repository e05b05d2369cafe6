"""Files of instructions: JSON lines with an "input" and an "output" each. No package is needed."""

from __future__ import annotations

import codecs
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from pretraining.errors import UsageError
from pretraining.inputs import contents, json_lines
from pretraining.record.files import beside

FIELDS = ("input", "output")
EXAMPLES = 5  # broken lines that are named one by one
_ALPACA = (
    r"""jq -c '{input: (if (.input // "") == "" then .instruction else .instruction + "\n\n" + .input end), output}' """
    "< FILE > NEW.jsonl"
)


@dataclass(frozen=True)
class Counts:
    """What a file of instructions holds.

    Attributes:
        lines: instructions.
        blank: lines without anything, left out.
        marked: whether it begins with a byte-order mark, left out as well.
    """

    lines: int
    blank: int
    marked: bool


def check(file: Path) -> Counts:
    """Read all of a file.

    Raises:
        UsageError: it is no file of JSON lines, holds none, or lines in it are no instructions, by their numbers.
    """
    state = file.stat()
    return _checked(file, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _checked(file: Path, _size: int, _time: int) -> Counts:
    with file.open("rb") as opened:
        head = opened.read(contents.HEAD)
    if wrong := contents.fault(file, head, "jsonl"):
        raise UsageError(f"--data {wrong}")
    lines = blank = broken = 0
    told = []
    with file.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            if json_lines.is_blank(line):
                blank += 1
                continue
            lines += 1
            if why := _fault(line):
                broken += 1
                told += [f"{file}:{number}: {why}"] if len(told) < EXAMPLES else []
    if broken:
        more = [f"and {broken - len(told)} more"] if broken > len(told) else []
        raise UsageError("\n  ".join([f"--data {file}: {broken} of {lines} lines are no instructions:", *told, *more]))
    if not lines:
        raise UsageError(f"--data {file} is empty: every line is to have {' and '.join(map(repr, FIELDS))}")
    if b'"instruction"' in head:
        _check_not_alpaca(file, head)
    return Counts(lines, blank, head.startswith(codecs.BOM_UTF8))


def _fault(line: bytes) -> str:
    try:
        _, output = json_lines.texts(line, *FIELDS)
    except ValueError as error:
        return str(error)
    return "" if output.strip() else "its 'output' is empty: there is nothing to learn"


def _check_not_alpaca(file: Path, head: bytes) -> None:
    """Raise UsageError where the question stands in a third field, which would be trained without."""
    try:
        json_lines.texts(head.lstrip().partition(b"\n")[0], "instruction", *FIELDS)
    except ValueError:
        return
    what = "of Alpaca's form, whose 'instruction' nobody would read: it belongs into 'input'"
    raise UsageError(f"--data {contents.said(file, contents.Format(what, b'', _ALPACA))}")


def identify(files: dict[str, Path]) -> str:
    """Twelve hexadecimal digits, equal exactly where the files are."""
    digest = hashlib.sha256()
    for name, file in files.items():
        digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def lay_out(files: dict[str, Path], folder: Path) -> Path:
    """A folder with these files by name, for Megatron-Bridge, which writes its index beside them: links where the lines
    are instructions alone, and copies without what is none.

    Returns:
        The folder: another one where a file is a copy, because an index knows the places of lines.
    """
    counts = {name: check(file) for name, file in files.items()}
    if any(each.blank or each.marked for each in counts.values()):
        folder = folder.with_name(f"{folder.name}-cleaned")
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():  # the same lines may have lain elsewhere before
        new = beside(folder / name)
        if counts[name].blank or counts[name].marked:
            _copy(file, new)
        else:
            new.symlink_to(file)
        new.replace(folder / name)
    return folder


def _copy(file: Path, new: Path) -> None:
    with file.open("rb") as lines, new.open("xb") as copy:
        for line in lines:
            if not json_lines.is_blank(line):
                copy.write(line.removeprefix(codecs.BOM_UTF8))
