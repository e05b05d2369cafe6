"""Tokenize text into a Megatron dataset, where trainings would run: what `make data` runs.

    python scripts/data.py [--runtime R] [--tag T] --input FILES --tokenizer NAME [--out PREFIX] [flags of
                           assets/prepare_data.py]

Exit codes: 0 written, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys

from playbook import data
from playbook.environments import SetupError
from pretraining.errors import UsageError


def main() -> int:
    """Run the job; returns its exit code."""
    try:
        return data.run()
    except UsageError as error:
        print(f"data: {error}", file=sys.stderr)
        return 2
    except (SetupError, OSError) as error:
        print(f"data: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("data: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
