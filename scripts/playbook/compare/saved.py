"""`comparison.json`: written whole or not at all, never over a file of somebody else, and read back."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from playbook.compare.model import KIND, SCHEMA, Comparison
from pretraining.errors import UsageError
from pretraining.record.run_folder import run_name, write_json

Content = TypeVar("Content")

FILE = "comparison.json"
PAGE, TABLE, MARKDOWN, PLOTS = "report.html", "comparison.csv", "comparison.md", "plots"  # written by `report`, with it


def is_comparison(path: Path, kind: str = KIND) -> bool:
    """Whether `path` is a file written by `write`, of any schema; or another result, of that `kind`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("kind") == kind


def read(path: Path, shape: type[Content] = dict[str, Any]) -> Content:
    """The content of a comparison.json, given itself or its folder; all of it, or the fields of a `msgspec.Struct`.

    Raises UsageError: it is not there, is none, is of another schema, or has another shape.
    """
    import msgspec  # which cleaning up does without

    path = path / FILE if path.is_dir() else path
    try:
        text = path.read_bytes()
        head = msgspec.json.decode(text, type=msgspec.defstruct("Head", [("kind", str, ""), ("schema", int, 0)]))
        if head.kind != KIND:
            raise UsageError(f"{path} is not a comparison of this playbook. Give a {FILE} that `make compare` wrote.")
        if head.schema != SCHEMA:
            newer = head.schema > SCHEMA
            by = "a newer playbook: update this one" if newer else "an earlier playbook: compare its runs again"
            said = f"{path} has schema {head.schema}, and this playbook reads {SCHEMA}"
            raise UsageError(f"{said}; it was written by {by}.")
        return msgspec.json.decode(text, type=shape)
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist. Give a {FILE}, or the folder that holds one.") from error
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise UsageError(
            f"cannot read {path} as a comparison: {error}; was it edited? Compare its runs again"
        ) from error


def new_folder(runs: Path, of: str, kind: str = "comparison") -> Path:
    """The path of a folder for a new comparison or ablation, beside the runs; it does not exist yet."""
    while (folder := runs / run_name(kind, of)).exists():
        time.sleep(0.2)  # two within one second
    return folder


def check_target(path: Path) -> Path:
    """Where to write for a `--json PATH` given: that file, or in the folder that it is or, not ending in .json, names.

    Raises UsageError where a file is not a comparison of ours, as it is never overwritten, and NotADirectoryError.
    """
    if path.is_dir() or (path.suffix != ".json" and not os.path.lexists(path)):
        path = path / FILE
    if path.is_symlink() or (path.exists() and not is_comparison(path)):
        raise UsageError(f"{path} exists and is not a comparison; it is not overwritten. Choose another --json path.")
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    return path


def write(comparison: Comparison, path: Path) -> Path:
    """Write `comparison.json` whole or not at all, and make its folder. Returns the path written.

    Raises as `check_target`, and OSError.
    """
    path = check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"kind": comparison.kind, "schema": comparison.schema} | asdict(comparison, dict_factory=flat))
    return path


def flat(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dataclass as JSON has it: figures beside the other facts of what they are of, an empty `setting` left out."""
    found: dict[str, Any] = {}
    for name, value in fields:
        found |= value if name == "figures" else {} if (name, value) == ("setting", "") else {name: value}
    return found
