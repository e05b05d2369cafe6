"""Whether `make nvfp4` would work here: a tick or a cross a line, the remedy under each cross.

    python scripts/doctor.py [--json] [flags of scripts/run.py]

Exit codes: 0 ready, 1 the chosen job would fail, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

from playbook import doctor
from pretraining.errors import UsageError


def main() -> int:
    """Run the checks; returns the exit code."""
    try:
        code = doctor.main()
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"doctor: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
