"""Removes what training left in the project: run folders, logs, nemo_experiments.

    python scripts/clean.py [--dry-run] [--all] [--root FOLDER]

It says first what it removes and what it keeps, and why; see playbook/cleaning.py for the rules. CLEAN=all in the
environment is --all. Exit code 0, 1 where something could not be removed, 2 for a wrong command.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from playbook import cleaning

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Remove what training left in the project.")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be removed")
    parser.add_argument("--all", action="store_true", help="also checkpoints of your own data, and unknown files")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder, this repository unless given")
    given = parser.parse_args(arguments)
    wanted = os.environ.get("CLEAN", "")
    if wanted not in ("", "all"):
        print(f"clean: CLEAN={wanted} is unknown; there is CLEAN=all. Nothing was removed.", file=sys.stderr)
        return 2
    if not given.root.is_dir():
        print(f"clean: {given.root} is not a folder. Nothing was removed.", file=sys.stderr)
        return 2
    freed = 0
    try:
        root = given.root.resolve()
        items = cleaning.find(root, everything=given.all or wanted == "all")
        going = [item for item in items if not item.kept]
        _list(root, items, given.dry_run)
        if given.dry_run or not going:
            return 0
        failed = 0
        for item in going:
            try:
                cleaning.remove(item)
                freed += item.size
            except OSError as error:
                failed += 1
                print(f"clean: cannot remove {item.path.relative_to(root)}: {error.strerror}", file=sys.stderr)
                if isinstance(error, PermissionError):
                    print(f"  a container may have made it as root: sudo rm -r {item.path}", file=sys.stderr)
        print(f"Freed {_size(freed)}.")
        return 1 if failed else 0
    except OSError as error:
        print(f"clean: cannot read {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nclean: interrupted; freed {_size(freed)} so far", file=sys.stderr)
        return 130


def _list(root: Path, items: list[cleaning.Item], dry_run: bool) -> None:
    going = [item for item in items if not item.kept]
    if going:
        print(f"{'Would remove' if dry_run else 'Removing'} in {root}:")
    else:
        print(f"Nothing to remove in {root}.")
    for item in going:
        link = f"  (the link only, nothing of {item.link})" if item.link else ""
        print(f"  {_size(item.size):>9}  {item.path.relative_to(root)}{link}")
    for item in items:
        if item.kept:
            print(f"  keeping {item.path.relative_to(root)}: {item.kept}")
    if dry_run and going:
        print(f"  {_size(sum(item.size for item in going)):>9}  in total")


def _size(size: float) -> str:
    """A size in units of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


if __name__ == "__main__":
    sys.exit(main())
