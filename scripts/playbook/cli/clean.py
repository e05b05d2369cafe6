"""Removes what this project's jobs left in `nemo_experiments`, and nothing else; see `owned` for how it is told.

A folder goes only where its own record says that this project made it, and no run in it lives. In such a folder go the
files that a job writes; whatever else is in it is named and stays, and the folder with it. No link is followed, and
one that lies in `nemo_experiments`, or is it, is somebody's own.
"""

import argparse
import os
import stat
import sys
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

from playbook import PROJECT
from playbook.cli import owned
from playbook.cli.owned import Contents
from pretraining.request.flags import RUNS

SHOWN = 10  # names of others in one folder


@dataclass(frozen=True)
class Item:
    path: Path
    size: int = 0  # bytes on disk that removing it frees
    kept: str = ""  # why all of it stays; "" where it goes
    contents: Contents = field(default_factory=Contents)  # of a folder that this project made


def find(root: Path, *, everything: bool = False) -> list[Item]:
    """What is in a project's `nemo_experiments`, and what of it stays.

    With `everything` goes also what `owned.why_asked_for` keeps, such as checkpoints of the user's own data.
    """
    experiments = root / RUNS
    if experiments.is_symlink():
        return [Item(experiments, kept=f"a link of yours to {os.readlink(experiments)}; nothing behind it is touched")]
    if not experiments.is_dir():
        return [Item(experiments, kept="no folder")] if experiments.exists() else []
    mounts = owned.mount_points()
    return [judge(path, mounts, everything=everything) for path in sorted(experiments.iterdir())]


def judge(path: Path, mounts: Set[str], *, everything: bool = False) -> Item:
    """Whether something in `nemo_experiments` goes, and what of it."""
    try:
        state = path.lstat()
        if stat.S_ISREG(state.st_mode) and owned.is_comparison(path):
            return Item(path, state.st_blocks * 512)
        if stat.S_ISLNK(state.st_mode):
            return Item(path, kept=f"a link to {os.readlink(path)}, which no job makes")
        if not stat.S_ISDIR(state.st_mode):
            return Item(path, kept="not made by this project")
        if state.st_dev != path.parent.lstat().st_dev or os.path.abspath(path) in mounts:
            return Item(path, kept="a mount point")
        layout, why = owned.layout_of(path)
        if layout is None or why:
            return Item(path, kept=why or "not made by this project, as far as its files say")
        if layout is owned.RUN:
            why = owned.why_in_use(path)
            if not why and not everything and (why := owned.why_asked_for(path)):
                why += "; CLEAN=all removes it"
        contents = owned.contents(path, layout, mounts)
        if layout is owned.MEGATRON_DEFAULT and contents.others:
            why = "not made by this project, as far as its files say"
        return Item(path, contents.size, why, contents)
    except OSError as error:
        return Item(path, kept=f"cannot be read: {error.strerror}")


def remove(item: Item) -> None:
    """Remove it, the record last: what is cut short is known again. Raises OSError where something cannot be."""
    if not item.path.is_dir():
        item.path.unlink()
        return
    for name in sorted(item.contents.files, key=lambda name: name in owned.RECORDS):
        (item.path / name).unlink(missing_ok=True)
    for name in (*reversed(item.contents.folders), ""):
        if not os.listdir(item.path / name):  # whatever is in it by now is somebody else's
            (item.path / name).rmdir()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Remove what this project's jobs left in nemo_experiments.")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be removed (DRY_RUN=1)")
    parser.add_argument("--yes", action="store_true", help="do not ask (YES=1)")
    parser.add_argument("--all", action="store_true", help="also checkpoints of your own data (CLEAN=all)")
    parser.add_argument("--root", type=Path, default=PROJECT, help="the project's folder, this repository unless given")
    given = parser.parse_args(arguments)
    if not given.root.is_dir():
        print(f"clean: {given.root} is not a folder. Nothing was removed.", file=sys.stderr)
        return 2
    freed = [0]
    try:
        root = given.root.resolve()
        items = find(root, everything=given.all)
        going = [item for item in items if not item.kept]
        _list(root, items)
        if not going:
            return 0
        if given.dry_run:
            print("Nothing was removed: this was a dry run.")
            return 0
        if not given.yes and not _agreed():
            print("Nothing was removed.")
            return 0
        failed = _remove_all(root, going, everything=given.all, freed=freed)
        print(f"Freed {_size(freed[0])}.")
        return 1 if failed else 0
    except OSError as error:
        print(f"clean: cannot read {_shown(error.filename)}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nclean: interrupted; freed {_size(freed[0])} so far", file=sys.stderr)
        return 130


def _agreed() -> bool:
    """Ask on a terminal. Where there is none, make was asked already."""
    if not sys.stdin.isatty():
        print("Removing it without asking, as there is no terminal to ask on (DRY_RUN=1 only lists).")
        return True
    print("Remove it? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _remove_all(root: Path, going: list[Item], *, everything: bool, freed: list[int]) -> bool:
    """Remove each, judged anew: a run may have begun in it meanwhile. Returns whether something could not be."""
    failed, mounts = False, owned.mount_points()
    for item in going:
        present = judge(item.path, mounts, everything=everything)
        try:
            if not present.kept:
                remove(present)
                freed[0] += present.size
        except OSError as error:
            failed = True
            print(f"clean: cannot remove {_shown(item.path.relative_to(root))}: {error.strerror}", file=sys.stderr)
            if isinstance(error, PermissionError):
                print(f"  a container may have made it as root: sudo chown -R $USER {item.path}", file=sys.stderr)
    experiments = root / RUNS
    if not any(experiments.iterdir()) and os.path.abspath(experiments) not in mounts:
        experiments.rmdir()
    return failed


def _list(root: Path, items: list[Item]) -> None:
    going = [item for item in items if not item.kept]
    print(f"To remove in {_shown(root)}:" if going else f"Nothing to remove in {_shown(root)}.")
    for item in going:
        print(f"  {_size(item.size):>9}  {_shown(item.path.relative_to(root))}")
    if going:
        print(f"  {_size(sum(item.size for item in going)):>9}  in total")
    for item in items:
        name = _shown(item.path.relative_to(root))
        if item.kept:
            print(f"  keeping {name}: {_shown(item.kept)}")
        elif others := item.contents.others:
            for other in others[:SHOWN]:
                print(f"  keeping {name}/{_shown(other)}: no job writes it")
            if len(others) > SHOWN:
                print(f"  keeping {len(others) - SHOWN} more in {name} that no job writes")


def _shown(name: object) -> str:
    """A name on one line: bytes that are no text, line ends and escape sequences are written out."""
    text = os.fsencode(str(name)).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _size(size: float) -> str:
    """A size in units of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
