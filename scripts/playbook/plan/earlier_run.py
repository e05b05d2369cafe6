"""A run's checkpoint, as another job's beginning: what was not asked for is as it was there."""

import argparse
from pathlib import Path

from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.request.flags import OF_RUN, asked_precision, fill_in
from pretraining.request.precisions import PRECISIONS

# flag: the fact of `environment.json` that it was
FACTS = {
    "model": "model",
    "seq_length": "sequence_length",
    "global_batch_size": "global_batch_size",
    "micro_batch_size": "micro_batch_size",
}


def folder_of(name: Path | str, runs: Path) -> Path:
    """The run folder that a path, or its name alone, means."""
    return Path(name) if Path(name).is_dir() or not (runs / name).is_dir() else runs / name


def of_run(args: argparse.Namespace) -> None:
    """Make `args` the evaluation or export of `--run`. Raises UsageError where none is named, or it is no run."""
    if not args.run:
        raise UsageError(f"make {args.job} needs the run whose checkpoint it means: RUN=nemo_experiments/...")
    folder = folder_of(args.run, args.runs)
    like_run(args, folder)
    if args.job == "eval":
        args.evaluate = True
    elif args.export is None:
        raise UsageError("make export needs a folder to write: OUT=...")


def like_run(args: argparse.Namespace, folder: Path) -> None:
    """Fill in what `args` leaves open from the run it begins with. Raises UsageError where the folder is none."""
    try:
        run = run_folder.read_facts(folder)
    except FileNotFoundError as error:
        asked = "RESUME" if _trains(args) and not args.run else "RUNS" if getattr(args, "checkpoints", None) else "RUN"
        raise UsageError(f"{asked}={folder}: {error}; make history lists the runs") from error
    args.resume = folder
    there = {flag: run.parity.get(fact) for flag, fact in FACTS.items()}
    there["data"] = run.plan.get("request", {}).get("data")
    trained = run.precision.get("name", "bf16")
    if not _trains(args):
        args.precision = asked_precision(args) or trained
    named = asked_precision(args) or (args.job if _job(args) in PRECISIONS else "nvfp4")
    if named == trained:
        there |= {side: run.precision.get(side) for side in ("bf16_head_layers", "bf16_tail_layers")}
    fill_in(args, OF_RUN, **there)


def _job(args: argparse.Namespace) -> str:
    """What the launcher was asked to do; what is submitted to a cluster trains."""
    return getattr(args, "job", "train")


def _trains(args: argparse.Namespace) -> bool:
    return _job(args) not in ("eval", "export")
