"""Finds what training left in the project, and removes it: run folders, logs, `nemo_experiments`.

Nothing outside the project is touched. No symbolic link is followed: a link is removed itself, what it points to
stays. That holds for `nemo_experiments` too, where somebody moved it to a larger disk: the link goes, its target is
named and untouched, and the link stays as long as anything behind it has to be kept, because a run still writing
through it would lose its way.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playbook import PROJECT, ablation_file
from playbook.comparison_file import FILE as COMPARISON
from playbook.comparison_file import MARKDOWN, PAGE, PLOTS, TABLE, is_comparison
from playbook.log_facts import looks_like_log
from playbook.repeats import BEGUN
from pretraining import lock
from pretraining.record import CHECKPOINTS, ENVIRONMENT, JOB, METRICS, OUTCOME, PLAN, SELFCHECK
from pretraining.settings import RUNS

MEGATRON_DEFAULT = {CHECKPOINTS, "tb_logs"}  # what Megatron-Bridge's own recipes make in nemo_experiments/default
RESULT = {COMPARISON, PAGE, TABLE, MARKDOWN, PLOTS}
ABLATION = {ablation_file.FILE, ablation_file.MARKDOWN, ablation_file.PICTURE}


@dataclass(frozen=True)
class Item:
    """Something that training left.

    Attributes:
        size: bytes on disk that removing it frees; a link's own only.
        link: what it points to, where it is a symbolic link.
        kept: why it stays; "" where it goes.
    """

    path: Path
    size: int
    link: str = ""
    kept: str = ""


def find(root: Path, *, everything: bool = False) -> list[Item]:
    """What training left under `root`, and what of it has to stay.

    Args:
        root: the project's folder.
        everything: also checkpoints of the user's own data, and unknown things in `nemo_experiments`. Runs that are
            still running stay in any case.
    """
    items = [_log(path) for folder in (root, root / "logs") if not folder.is_symlink() for path in _logs(folder)]
    experiments = root / RUNS
    if experiments.is_symlink():
        return [_linked(experiments, everything), *items]
    if experiments.is_dir():
        found = [_item(path, everything) for path in sorted(experiments.iterdir())]
        items = found + items
        if not any(item.kept for item in found):
            items.insert(len(found), Item(experiments, 0))
    return items


def remove(item: Item) -> None:
    """Remove one item. Raises OSError where it cannot be, such as for files that a container left to root."""
    if item.path.is_symlink() or item.path.is_file():
        item.path.unlink()
    elif item.path.name == RUNS:
        item.path.rmdir()  # emptied by now; whatever appeared in it meanwhile stays
    else:
        shutil.rmtree(item.path)  # unlinks links and does not follow them


def _logs(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.glob("*.log") if path.is_symlink() or path.is_file())


def _log(path: Path) -> Item:
    """A log, or a link to something: it goes only where that is a log of a training, and then the link alone."""
    link = os.readlink(path) if path.is_symlink() else ""
    try:
        kept = "" if path.is_file() and looks_like_log(path) else "not a log of a training"
    except OSError as error:
        kept = f"cannot be read: {error.strerror}"
    return Item(path, path.lstat().st_blocks * 512, link, kept)


def _linked(experiments: Path, everything: bool) -> Item:
    target = os.readlink(experiments)
    kept = [path.name for path in _children(experiments) if _why_kept(path, everything)]
    why = f"a link to {target}, which holds what must stay: {', '.join(kept)}" if kept else ""
    return Item(experiments, 0, target, why)


def _item(path: Path, everything: bool) -> Item:
    if path.is_symlink():  # kept with what it points to, such as a link to a run that still runs
        return Item(path, 0, os.readlink(path), _why_kept(path, everything) if path.exists() else "")
    size, mount = _measure(path)
    kept = _why_kept(path, everything) or (f"{mount} is a mount point" if mount else "")
    return Item(path, size, kept=kept)


def _why_kept(path: Path, everything: bool) -> str:
    """Why something in `nemo_experiments` stays, "" where it goes. Reads through links, removes nothing."""
    if _is_run(path):
        return _running(path) or ("" if everything else _own_checkpoints(path))
    if everything or _is_result(path):
        return ""
    if path.name == "default" and path.is_dir() and {child.name for child in _children(path)} <= MEGATRON_DEFAULT:
        held = _children(path / CHECKPOINTS)
        return "holds checkpoints that no run of this project made; CLEAN=all removes it" if held else ""
    return "not made by a training"


def _is_run(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in (PLAN, ENVIRONMENT, METRICS, OUTCOME))


def _is_result(path: Path) -> bool:
    """A comparison.json of ours, or a folder of a comparison, an ablation, a begun one or a selfcheck, and no more."""
    if path.is_dir():
        names = {child.name for child in _children(path)}
        if names <= ABLATION and is_comparison(path / ablation_file.FILE, ablation_file.KIND):
            return True
        return not names or names in ({BEGUN}, {SELFCHECK}) or (names <= RESULT and is_comparison(path / COMPARISON))
    return is_comparison(path)


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _running(folder: Path) -> str:
    """Why the run may still be running, "" where it has surely ended."""
    if used := lock.in_use(folder):
        return used
    if (folder / JOB).exists() and not (folder / OUTCOME).exists():  # it may wait for days; following it writes its end
        return "a job of a cluster that may still wait or run: `make jobs` says so, and records its end"
    return ""


def _own_checkpoints(folder: Path) -> str:
    environment = _environment(folder)
    if not _children(folder / CHECKPOINTS) or environment.get("mock_data") is True or environment.get("text"):
        return ""  # "text" describes the built-in one, and is there for that alone
    parity = environment.get("parity")
    data = parity.get("data") if isinstance(parity, dict) else None
    of = f"your own data ({data})" if data else "unknown data"
    return f"holds checkpoints of {of}; CLEAN=all removes it"


def _environment(folder: Path) -> dict[str, Any]:
    try:
        environment = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return environment if isinstance(environment, dict) else {}


def _measure(path: Path) -> tuple[int, Path | None]:
    """Bytes on disk, a file with several names once, and a mount point inside, if any: it is not the project's."""
    top = path.lstat()
    if not path.is_dir():
        return top.st_blocks * 512, None
    size, seen = top.st_blocks * 512, set()
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            try:
                found = os.lstat(os.path.join(folder, name))
            except OSError:
                continue  # gone meanwhile
            if found.st_dev != top.st_dev:
                return size, Path(folder, name)
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                size += found.st_blocks * 512
    return size, None


def main(arguments: list[str] | None = None) -> int:
    """Run `scripts/clean.py`; returns its exit code."""
    parser = argparse.ArgumentParser(description="Remove what training left in the project.")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be removed")
    parser.add_argument("--all", action="store_true", help="also checkpoints of your own data, and unknown files")
    parser.add_argument("--root", type=Path, default=PROJECT, help="the project's folder, this repository unless given")
    given = parser.parse_args(arguments)
    if not given.root.is_dir():
        print(f"clean: {given.root} is not a folder. Nothing was removed.", file=sys.stderr)
        return 2
    freed = 0
    try:
        root = given.root.resolve()
        items = find(root, everything=given.all)
        going = [item for item in items if not item.kept]
        _list(root, items, given.dry_run)
        if given.dry_run or not going:
            return 0
        failed = 0
        for item in going:
            try:
                remove(item)
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


def _list(root: Path, items: list[Item], dry_run: bool) -> None:
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
