"""Whether `make nvfp4` would work here: a tick or a cross a line, the remedy under each cross.

    python scripts/doctor.py [--json] [flags of scripts/run.py]

Exit codes: 0 ready, 1 the chosen job would fail, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys

from playbook.cli import doctor, entry

if __name__ == "__main__":
    sys.exit(entry.run("doctor", doctor.main))
