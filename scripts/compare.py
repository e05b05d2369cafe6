"""Compares two or more runs: a table in the terminal, and with --json a comparison.json.

    python scripts/compare.py RUN RUN ... [--base RUN] [--json PATH] [--save] [--force]

Each is a run folder, its name in nemo_experiments, or a raw Megatron-Bridge log. Of more than two, runs of one
configuration are repeats of it. Exit code 0, 1 where they cannot be compared, 2 where one of them is not there or is
neither, or for a wrong Python.

Any Python 3 can parse this file, so that a wrong version gets a sentence and not a traceback.
"""

import argparse
import gc
import shlex
import sys
from pathlib import Path

import setup

if sys.version_info[:2] < setup.SUPPORTED[0]:
    sys.exit(setup.main())  # says so

from playbook import PROJECT, report
from playbook.campaign import compare_job, reuse
from playbook.cli import entry
from playbook.compare import comparison, published, saved
from playbook.record import loading
from playbook.report import terminal
from pretraining.errors import UsageError
from pretraining.request.flags import RUNS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare pretraining runs that did the same work.")
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="a run folder, its name in " + RUNS + ", or a raw log")
    add("--base", default="", help="what to set the others against: A, a precision or a run")
    add(
        "--json",
        type=Path,
        metavar="PATH",
        help="also write the comparison to PATH.json; a PATH without .json is a folder that gets it and the report",
    )
    add("--save", action="store_true", help="the same into a new folder of " + RUNS)
    add(*("--speed-up", "--speedup"), type=published.speed_up, metavar="X", help="a speed-up, or published, to project")
    add("--typed", help=argparse.SUPPRESS)  # what make was asked for, to tell how to do it again
    add("--loss-margin", type=reuse.margin, metavar="%", help="the smallest difference in loss that matters, per cent")
    add("--force", action="store_true", help="compare although they did not do the same work")
    given = parser.parse_args(arguments)
    if len(given.runs) < 2:
        raise UsageError("two or more runs are needed, and one was given")
    if given.save and not given.json:
        given.json = saved.new_folder(PROJECT / RUNS, "runs")
    gc.disable()  # hundreds of thousands of small objects and no cycles: collecting only costs time
    target = saved.check_target(given.json) if given.json else None
    if target and target.name == saved.FILE:
        report.check_target(target.parent)
    return compare_job.conclude(
        comparison.group(loading.load_all([loading.named(path) for path in given.runs])),
        given,
        target,
        reproduce=_command(given),
        ways_out=[terminal.FORCE_BY_MAKE if given.typed else terminal.FORCE],
    )


def _command(given):
    """The command that makes this comparison again."""
    if given.typed:
        return given.typed
    words = [".venv/host/bin/python", "scripts/compare.py", *map(str, given.runs)]
    words += ["--base", given.base] if given.base else []
    speed_up = given.speed_up and (published.PUBLISHED if given.speed_up.is_published else given.speed_up.value)
    words += ["--speed-up", str(speed_up)] if speed_up else []
    words += ["--loss-margin", str(given.loss_margin)] if given.loss_margin else []
    return " ".join(shlex.quote(word) for word in words + (["--force"] if given.force else []))


if __name__ == "__main__":
    sys.exit(entry.run("compare", main))
