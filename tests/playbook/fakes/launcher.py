"""scripts/run.py with `training.py` in the place of the training script, on the CPU runtime."""

import os
import sys
from pathlib import Path

from playbook.cli import entry, train
from playbook.launch import local, process, progress, start

local.SCRIPT = str(Path(__file__).with_name("training.py"))
start.ensure = local.python_of = lambda name: Path(sys.executable)
progress.PLAIN_EVERY_SECONDS = float(os.environ.get("PLAIN_EVERY_SECONDS", progress.PLAIN_EVERY_SECONDS))
process.LocalProcess.grace_seconds = float(os.environ.get("GRACE", process.LocalProcess.grace_seconds))
sys.exit(entry.run("run", train.run))
