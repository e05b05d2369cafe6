"""Pretrain in one precision, compare two, or ablate one: what `make train`, `compare` and `ablate` run, among others.

    python scripts/run.py train|nvfp4|bf16|compare [--runtime R] [--nproc N] [flags of assets/pretrain_llama.py]
    python scripts/run.py ablate [--seeds 'N M'] [the same]
    python scripts/run.py show-config [--precision P] [flags of assets/pretrain_llama.py]
    python scripts/run.py models|precisions|selfcheck
    python scripts/run.py shell|attach|stop [--run NAME]

Exit codes: 0 done, 1 a run failed or two cannot be compared, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys

from playbook.cli import entry, train

if __name__ == "__main__":
    sys.exit(entry.run("run", train.run))
