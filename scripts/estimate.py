"""Memory a GPU, step time, days and energy of a training that is past the hardware here: what `make estimate` runs.

    python scripts/estimate.py --model llama31-405b --gpus 512 --gpu-kind gb300 [--tokens 1e12] [--precision fp8]

Exit codes: 0 estimated, 2 wrong usage or nothing that fits.
"""

from __future__ import annotations

import sys

from playbook.cli import entry
from playbook.plan import estimate

if __name__ == "__main__":
    sys.exit(entry.run("estimate", estimate.main))
