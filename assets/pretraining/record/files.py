"""Files that are written whole or not at all, by several machines into one folder. Standard library only."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

_UNFINISHED = re.compile(r"\..+\.(json|yaml)\.[0-9a-f]{16}")


def beside(path: Path) -> Path:
    """A name beside `path` that no other writer has: process numbers repeat in containers and on other machines."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def write_text(path: Path, text: str, *, keep_existing: bool = False) -> bool:
    """Write a file in UTF-8 whole or not at all: beside it, synced, then moved into place.

    With `keep_existing` a file that is there is left, however close the race. Returns whether it now holds `text`.
    """
    new = beside(path)
    try:
        _write_new(new, text)
        if not keep_existing:
            new.replace(path)
            return True
        try:
            os.link(new, path)
        except FileExistsError:
            return False
        except OSError:  # no hard links here: only a power cut can leave half of it; another problem comes up again
            try:
                _write_new(path, text)
            except FileExistsError:
                return False
        return True
    finally:
        new.unlink(missing_ok=True)


def _write_new(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def sweep(folder: Path) -> None:
    """Remove what killed processes were about to move into place. Only for who knows that nobody writes there."""
    for path in folder.glob(".*"):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)
