"""Every job of the playbook but cleaning and comparing what is there: what make's targets run.

    python scripts/run.py JOB [--help] [flags of the job]

A job is a target of make: train, nvfp4, bf16, compare, ablate, profile, eval, export, sft, lora, show-config, models,
precisions, selfcheck, shell, attach, stop (playbook/cli/train.py), and those that `entry.JOBS` lists. A training's
flags are those of assets/pretrain_llama.py, and where and how to run it.

Exit codes: 0 done, 1 it failed or two runs cannot be compared, 2 wrong usage, 130 interrupted.
"""

import sys

from playbook.cli import entry

if __name__ == "__main__":
    sys.exit(entry.main())
