"""Every job of the playbook but cleaning and comparing what is there: what make's targets run.

    python scripts/run.py JOB [--help] [flags of the job]

Jobs are those of playbook/cli/train.py and `entry.JOBS`. A training's flags are those of assets/pretrain_llama.py, and
where and how to run it. Exit codes: 0 done, 1 it failed or two runs cannot be compared, 2 wrong usage, 130 interrupted.
"""

import sys

from playbook.cli import entry

if __name__ == "__main__":
    sys.exit(entry.main())
