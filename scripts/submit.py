"""Train on a cluster: what `make submit`, `make jobs`, `make logs` and `make cancel` run.

    python scripts/submit.py submit [--nodes N] [--nproc N] [--wait] [--dry-run] [flags of assets/pretrain_llama.py]
    python scripts/submit.py jobs|logs|cancel [--run NAME]

Exit codes: 0 submitted, or (logs, --wait) succeeded; 1 failed, 2 wrong usage, 130 interrupted or cancelled.
"""

from __future__ import annotations

import sys

from playbook.cli import cluster, entry

if __name__ == "__main__":
    interrupted = "interrupted; what was submitted goes on: make jobs, make cancel"
    sys.exit(entry.run("submit", cluster.run, interrupted=interrupted))
