"""Pretrain in one precision, or compare two: what `make nvfp4`, `make bf16` and `make compare` run.

    python scripts/run.py nvfp4|bf16|compare [--runtime R] [--nproc N] [--fresh] [flags of assets/pretrain_llama.py]
    python scripts/run.py show-config [--precision P] [flags of assets/pretrain_llama.py]
    python scripts/run.py models|precisions
    python scripts/run.py shell|attach|stop [--run NAME]

Exit codes: 0 done, 1 a run failed or two cannot be compared, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys

from playbook import jobs
from playbook.environments import SetupError
from playbook.launch import NotStarted
from pretraining.errors import UsageError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        return jobs.run(arguments)
    except UsageError as error:
        print(f"run: {error}", file=sys.stderr)
        return 2
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except (NotStarted, OSError) as error:
        print(f"run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("run: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
