"""`make selfcheck`: assets/selfcheck.py in the foreground of the place where trainings on a GPU run."""

import argparse
import os
import shlex
from dataclasses import replace
from pathlib import Path

from playbook import ASSETS, PROJECT
from playbook.launch import local, start
from playbook.plan import gpus, local_python, plan
from playbook.plan.place import Place, Wanted
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.request.precisions import find_precision
from pretraining.selfcheck import FAST_MATH

SCRIPT = ASSETS / "selfcheck.py"
VECTORS = PROJECT / "tests" / "vectors"
# Of what this proves, what can be done without such a GPU.
ELSEWHERE = """\
  would work here: make test       this project's arithmetic against 24 results of Transformer Engine's reference
  on another GPU:  make test-gpu   its kernels and its training against that reference, in the engine's own layers"""


def run(args: argparse.Namespace, wanted: Wanted) -> int:
    """Check on the GPU that has FP4 tensor cores. Returns 0: equal, 1: differs or failed, 2: not possible.

    Raises UsageError where no such GPU is here, and EngineError where no engine can hand it over.
    """
    where = _place(wanted)
    folder = (args.run_dir or args.runs / run_folder.run_name("nvfp4", "selfcheck")).absolute()
    words = ["--folder", str(folder), "--commit", plan.git_commit() or ""]
    if where.runtime == "container":
        return _in_container(words, where, folder, args)
    visible = [f"CUDA_VISIBLE_DEVICES={where.uuids}"] if where.uuids else []
    command = ["env", *visible, local_python.python(), str(SCRIPT), *words]
    if args.dry_run:
        print(shlex.join(command))
        return 0
    return local.in_foreground(command)


def _place(wanted: Wanted) -> Place:
    """Where trainings in NVFP4 run. Raises UsageError where none could."""
    precision = find_precision("nvfp4")
    found = gpus.read()
    able = wanted.dry_run or any(gpu.trains_in(precision) for gpu in found.gpus)
    if wanted.runtime == "cpu" or not able:
        listed = found.problem or ", ".join(map(str, found.gpus)) or "no NVIDIA GPU"
        raise UsageError(
            f"Transformer Engine's native NVFP4 kernels need {precision.needs}.\n  found: {listed}\n{ELSEWHERE}"
        )
    runtime = "container" if wanted.dry_run and wanted.runtime == "auto" and not found.gpus else wanted.runtime
    return start.find_place(replace(wanted, runtime=runtime, emulate=False, processes=1), precision)


def _in_container(words: list[str], where: Place, folder: Path, args: argparse.Namespace) -> int:
    """Run it there, with what a training gets but for data and secrets, and the vectors."""
    from playbook.launch.container import foreground, spec

    if not args.dry_run:
        where = start.ready(where, args.runs)
    asked = spec.inside(
        where,
        ["python", str(SCRIPT), *words],
        cache=args.cache_dir.absolute(),
        folders=[spec.Folder(VECTORS), spec.Folder(folder, True)],
        workdir=folder,
        variables={name: os.environ[name] for name in (FAST_MATH,) if name in os.environ},
        gpu=where.uuids or spec.PLACEHOLDER,
    )
    if args.dry_run:
        print(spec.script(asked, asked.in_foreground()))
        return 0
    return foreground.run(asked, "make selfcheck")
