"""Who watches a run in a container: a lock in its folder, which the kernel releases when the launcher dies.

Standard library alone, because cleaning asks before anything is set up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import IO

LOCK = ".launcher"


def hold(run_dir: Path) -> IO[str]:
    """Mark the run as watched by this process, as long as the file is open. Raises BlockingIOError where it is."""
    file = (run_dir / LOCK).open("a+")
    for _ in range(10):  # `watcher`, elsewhere, holds it for a moment
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(0.05)
    else:
        file.close()
        raise BlockingIOError(f"{run_dir} is watched already")
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def watcher(run_dir: Path) -> int | None:
    """The process that watches a run, None where none does (or nobody can tell)."""
    try:
        with (run_dir / LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read().strip() or 0)
    except (OSError, ValueError):
        pass
    return None
