"""Puts the files of a report in their folder: all of them or none."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pretraining.record.files import beside as beside_it


def place(folder: Path, files: Mapping[str, Callable[[Path], object]], earlier: Iterable[str]) -> None:
    """Write `files`, each by its function, beside their place, synced, then move them into it.

    A new folder appears whole. In one that is there already every file of an `earlier` report is taken away before the
    first new one comes, and put back where anything fails: an OSError leaves the folder as it was. Only a crash in that
    instant leaves less than one report there: then the earlier one lies in the folder's `.report.` and sixteen digits,
    and the last file, which makes the rest a report, is missing.
    """
    is_new = not folder.exists()
    beside = beside_it(folder if is_new else folder / "report")
    try:
        for name, write in files.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            write(beside / name)
        if is_new:
            beside.rename(folder)
        else:
            _exchange(folder, list(files), beside, list(earlier), beside / ".earlier")
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _exchange(folder: Path, names: list[str], beside: Path, earlier: list[str], away: Path) -> None:
    done: list[tuple[Path, Path]] = []

    def move(name: str, source: Path, target: Path) -> None:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).rename(target / name)
        done.append((source / name, target / name))

    try:
        for name in earlier:
            move(name, folder, away)
        for name in names:
            move(name, beside, folder)
    except BaseException:  # Ctrl-C among them
        for source, target in reversed(done):
            target.rename(source)
        for parent in {(folder / name).parent for name in names} - {folder}:
            with contextlib.suppress(OSError):  # it was there before, and holds something
                parent.rmdir()
        raise


def write_synced(path: Path, content: bytes) -> None:
    """Write a file whose content is on the disk when this returns. Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write each beside its place, synced, then move all into theirs. Raises OSError where one cannot be written."""
    beside = {path: beside_it(path) for path in files}
    try:
        for path, content in files.items():
            write_synced(beside[path], content)
        for path in files:
            beside[path].replace(path)
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)
