"""What runs on the host. No torch here.

cli         what a person types: make's targets and options, and a file for each group of jobs
publish     records that leave the house, and the pages of `assets/results`
campaign    several trainings that belong together: a comparison's turns, an ablation
cluster     Slurm
sensitivity where NVFP4's rounding hurts, and what to keep in BF16
report      a comparison to people: terminal, page, Markdown, plots
compare     records to figures, intervals and verdicts
profile     where the time of a step goes
launch      start a training, watch it, end it; launch/container: the image and Docker
plan        what will run, where and why: GPU, place, checks on what is asked for
record      what a training left, read: run folders and raw logs
common      what all of them use

Schemas, model defaults and tables stand once, in `assets/pretraining`; importing this package makes them importable.
"""

import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
ASSETS = PROJECT / "assets"

if os.path.expanduser("~") == "~":  # a user whom this machine does not know, as in many a container
    os.environ["HOME"] = str(PROJECT / ".cache" / "container")
if str(ASSETS) not in sys.path:
    sys.path.insert(0, str(ASSETS))
