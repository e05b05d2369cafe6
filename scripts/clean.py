"""Removes what this project's jobs left in nemo_experiments, and nothing else.

    python3 scripts/clean.py [--yes] [--dry-run] [--all] [--root FOLDER]

It says first what it removes and what it keeps, and why; see playbook/cli/clean.py for the rules. `make clean
CLEAN=all` passes --all. Exit code 0, 1 where something could not be removed, 2 for a wrong command or Python.

Any Python 3 can parse this file: it runs before any set-up, so that a wrong version gets a sentence.
"""

import sys

import setup

if sys.version_info[:2] < setup.SUPPORTED[0]:
    sys.exit(setup.main())  # says so

from playbook.cli.clean import main

if __name__ == "__main__":
    sys.exit(main())
