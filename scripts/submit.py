"""Train on a cluster: what `make submit`, `make jobs`, `make logs` and `make cancel` run.

    python scripts/submit.py submit [--nodes N] [--nproc N] [--wait] [--dry-run] [flags of assets/pretrain_llama.py]
    python scripts/submit.py jobs|logs|cancel [--run NAME]

Exit codes: 0 submitted, or (logs, --wait) succeeded; 1 failed, 2 wrong usage, 130 interrupted or cancelled.
"""

from __future__ import annotations

import sys

from playbook.cluster import jobs
from playbook.cluster.head import ClusterError
from playbook.environments import SetupError
from pretraining.errors import UsageError


def main() -> int:
    """Run the command; returns its exit code."""
    try:
        return jobs.run()
    except UsageError as error:
        print(f"submit: {error}", file=sys.stderr)
        return 2
    except (ClusterError, SetupError, OSError) as error:
        print(f"submit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsubmit: interrupted; what was submitted goes on: make jobs, make cancel", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
