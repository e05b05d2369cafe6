"""What fine-tuning is asked for: the scheme, and files of JSON lines that have an "input" and an "output" each."""

from __future__ import annotations

import codecs
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from pretraining.errors import UsageError
from pretraining.inputs import contents, json_lines
from pretraining.record import run_folder
from pretraining.record.files import beside

SCHEMES = ("sft", "lora", "dora")
ADAPTERS = ("lora", "dora")  # whose checkpoints hold no other weights
TRAINING, VALIDATION = "training.jsonl", "validation.jsonl"
FIELDS = ("input", "output")
EXAMPLES = 5  # broken lines that are named one by one
_ALPACA = (
    r"""jq -c '{input: (if (.input // "") == "" then .instruction else .instruction + "\n\n" + .input end), output}' """
    "< FILE > NEW.jsonl"
)


@dataclass(frozen=True)
class Counts:
    """Instructions in a file, its blank lines, and whether it begins with a byte-order mark; these are left out."""

    lines: int
    blank: int
    marked: bool


def files(data: str) -> dict[str, Path]:
    """The files that `--data` names: one .jsonl to train on, or a folder with training.jsonl and validation.jsonl.

    Raises:
        UsageError: no such file, or not every line is an instruction.
    """
    path = Path(data).absolute()
    if wrong := contents.pointer(path):
        raise UsageError(f"--data {wrong}")
    found = {TRAINING: path} if path.is_file() else {name: path / name for name in (TRAINING, VALIDATION)}
    found = {name: file for name, file in found.items() if file.is_file()}
    if TRAINING not in found:
        raise UsageError(
            f"--data {data}: give a .jsonl of instructions, or a folder with {TRAINING} (and {VALIDATION})"
        )
    for file in found.values():
        check(file)
    return found


def check(file: Path) -> Counts:
    """Read all of a file. Raises UsageError where it holds no instructions, or other lines, by their numbers."""
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


def left_out(data: str) -> str:
    """A sentence on the blank lines of the instructions; "" without any."""
    blank = {file.name: check(file).blank for file in files(data).values()}
    told = [f"{count} blank {'line' if count == 1 else 'lines'} of {name}" for name, count in blank.items() if count]
    return f"{' and '.join(told)} left out" if told else ""


def identify(data: str) -> str:
    """A name for the instructions, equal exactly where the files are."""
    digest = hashlib.sha256()
    for name, file in files(data).items():
        digest.update(name.encode() + file.read_bytes())
    return f"{Path(data).name}-{digest.hexdigest()[:12]}"


def lay_out(files: dict[str, Path], folder: Path) -> Path:
    """A folder with these files by name, for Megatron-Bridge, which writes its index beside them: links where the lines
    are instructions alone, and copies without what is none.

    Returns:
        The folder: another one where a file is a copy, because an index knows the places of lines.
    """
    unclean = {name for name, file in files.items() if (found := check(file)).blank or found.marked}
    if unclean:
        folder = folder.with_name(f"{folder.name}-cleaned")
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():  # the same lines may have lain elsewhere before
        new = beside(folder / name)
        if name in unclean:
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


def is_run(weights: str | None) -> bool:
    """Whether weights are those of a run folder's checkpoint, and not Hugging Face's."""
    return weights is not None and run_folder.has_checkpoint(Path(weights))
