"""Compares two runs: a table in the terminal, and with --json a comparison.json.

    python scripts/compare.py RUN_A RUN_B [--json PATH] [--force]

Each is a run folder or a raw Megatron-Bridge log. Exit code 0, 1 where they cannot be compared, 2 where one of them
is not there or is neither, or for a wrong Python.

Any Python 3 can parse this file, so that a wrong version gets a sentence and not a traceback.
"""

import argparse
import gc
import os
import sys
from pathlib import Path

import setup

if sys.version_info[:2] < setup.SUPPORTED[0]:
    sys.exit(setup.main())  # says so

from playbook import comparison, table
from pretraining.errors import UsageError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Compare two pretraining runs that did the same work.")
    parser.add_argument("a", type=Path, metavar="A", help="a run folder, or a raw Megatron-Bridge log")
    parser.add_argument("b", type=Path, metavar="B", help="another one; a BF16 run is the baseline in either place")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="also write the comparison to PATH.json; a PATH without .json is a folder that gets comparison.json",
    )
    parser.add_argument("--force", action="store_true", help="compare although they did not do the same work")
    given = parser.parse_args(arguments)
    gc.disable()  # hundreds of thousands of small dicts and no cycles: collecting only costs time
    try:
        if given.json:
            comparison.check_target(given.json)
        result = comparison.compare(comparison.load(given.a), comparison.load(given.b), force=given.force)
        written = comparison.write(result, given.json) if given.json else None  # before a closed pipe can end it
        table.print_comparison(result)
        if written:
            print("\nWritten to", written)
        sys.stdout.flush()
    except comparison.NotComparable as refusal:
        table.print_refusal(refusal, sys.stderr)
        return 1
    except UsageError as error:
        print("compare:", error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print("compare: cannot write " + str(error.filename or given.json) + ":", error.strerror, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("compare: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
