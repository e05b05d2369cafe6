"""Tokenize text into a Megatron dataset, where trainings would run: what `make data` runs.

    python scripts/data.py [--runtime R] [--tag T] --input FILES --tokenizer NAME [--out PREFIX] [flags of
                           assets/prepare_data.py]

Exit codes: 0 written, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys

from playbook.cli import data, entry

if __name__ == "__main__":
    sys.exit(entry.run("data", data.run, interrupted="interrupted; the same command goes on from here"))
