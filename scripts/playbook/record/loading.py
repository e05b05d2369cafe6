"""Reads what is compared: run folders and raw logs, large ones side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from playbook import PROJECT
from playbook.record import metrics
from playbook.record.megatron_log import NotAMegatronLog, read_log
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.record.run_folder import ENVIRONMENT, Run
from pretraining.request.flags import RUNS

LARGE = 1 << 25  # bytes of log or metrics, from which processes of their own pay


def load_all(paths: Sequence[Path]) -> list[Run]:
    """Read several, each in a process of its own where they are large. Raises as `load` does."""
    workers = min(len(paths), len(os.sched_getaffinity(0)))
    if workers == 1 or max(map(_size, paths)) < LARGE:
        return list(map(load, paths))
    ignoring = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is this process's to answer
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), signal.signal, ignoring) as pool:
        try:
            return list(pool.map(load, paths))
        except BrokenProcessPool as error:
            raise UsageError("a reading process was killed from outside, often for want of memory") from error
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _size(path: Path) -> int:
    file = run_folder.there(path / run_folder.METRICS) if path.is_dir() else path
    return file.stat().st_size if file.is_file() else 0


def named(path: Path) -> Path:
    """The path, or the run folder of that name where there is no such path."""
    folder = PROJECT / RUNS / path
    return folder if not path.exists() and len(path.parts) == 1 and folder.exists() else path


def load(path: Path, *, samples: bool = True) -> Run:
    """Read a run folder, with or without its samples, or a raw log. Raises UsageError for anything else, and damage."""
    try:
        if path.is_dir():
            return run_folder.read_run(path, metrics.read, samples=samples)
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is neither a run folder nor a log file.")
        return read_log(path)
    except FileNotFoundError as error:
        if not path.is_dir():
            raise UsageError(f"{path} does not exist. Give two run folders or Megatron-Bridge logs.") from error
        runs = sorted(child.name for child in path.iterdir() if (child / ENVIRONMENT).exists())
        hint = f"It holds {len(runs)} of them, such as {path / runs[-1]}." if runs else "It holds none either."
        raise UsageError(f"{path} is not a run folder. {hint}") from error
    except NotAMegatronLog as error:
        raise UsageError(f"{error}. Give a run folder, or what training printed.") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
