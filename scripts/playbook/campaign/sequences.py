"""Checkpoints on one text: their losses for every sequence, and their differences paired by sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from playbook.compare import stats
from playbook.compare.stats import Figure
from pretraining.errors import UsageError
from pretraining.record import run_folder, schema
from pretraining.record.run_folder import Run

SPLITS = ("validation", "test")
FEWEST = 5  # sequences, of which fewer say too little of how they differ
# What makes two evaluators one: fact of an evaluation's record, and what sets it.
EVALUATOR = {
    "data": "DATA=",
    "sequence_length": "SEQ=",
    "global_batch_size": "GBS=",
    "vocab_size": "no option: checkpoints with other tokenizers have no loss in common",
    "tokenizer": "no option: checkpoints with other tokenizers have no loss in common",
    **dict.fromkeys(("megatron_bridge", "megatron_core", "transformer_engine", "torch"), "one environment for all"),
    "device": "GPU=",
}


def read(folder: Path) -> dict[str, dict[str, float]]:
    """The loss of each sequence, nats a token, by split and by a name made of its tokens. Raises Damaged, OSError."""
    found: dict[str, dict[str, float]] = {}
    for path in (folder / run_folder.SEQUENCES, *sorted(folder.glob(run_folder.sequences_of("*")))):
        if path.is_file():
            with path.open("rb") as file:
                for line in schema.lines(file, schema.SEQUENCE, path):
                    if line.get("loss") is not None:
                        found.setdefault(line["split"], {})[line["sequence"]] = line["loss"]
    return found


def check_evaluators(runs: Mapping[str, Run]) -> None:
    """Raise UsageError for unequal evaluators: the first fact that differs, both values, and what would make it one."""
    for name, way_out in EVALUATOR.items():
        refuse_unequal(name, {called: run.parity.get(name) for called, run in runs.items()}, way_out)
    for name in ("name", "arithmetic", "ingredients", "switches_at"):
        refuse_unequal(f"precision ({name})", {called: run.precision.get(name) for called, run in runs.items()},
                       "PRECISION=bf16")  # fmt: skip


def refuse_unequal(what: str, values: Mapping[str, object], way_out: str) -> None:
    """Raise UsageError where the values, by what they are of, are not all one."""
    if len(set(map(str, values.values()))) > 1:
        (first, value), *others = values.items()
        other, another = next(each for each in others if str(each[1]) != str(value))
        raise UsageError(
            f"checkpoints are compared by one evaluator, and {what.replace('_', ' ')} differs: {value} for {first}, "
            f"{another} for {other} (to make it one: {way_out})"
        )


def check_same(losses: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Raise UsageError for evaluations of other sequences, or of none, by what `read` gave of each."""
    for called, found in losses.items():
        if not found:
            raise UsageError(
                f"the evaluation of {called} wrote the loss of no sequence: the text needs 20 documents or more, or a "
                "split of its own (DATA='train=... valid=... test=...'), and CP=1"
            )
    for (first, one), (other, another) in zip(losses.items(), list(losses.items())[1:], strict=False):
        for split in SPLITS:
            mine, theirs = one.get(split, {}).keys(), another.get(split, {}).keys()
            if mine != theirs:
                raise UsageError(
                    f"{first} and {other} were evaluated on other sequences: {len(mine & theirs)} in common of "
                    f"{len(mine)} and {len(theirs)} of the {split} split; one of them was evaluated while it trained, "
                    "and goes on there: take checkpoints of runs that were not"
                )


def mean(losses: Mapping[str, float]) -> float:
    """The mean loss, nats a token."""
    return float(np.mean(list(losses.values())))


def difference(new: Mapping[str, float], base: Mapping[str, float]) -> Figure:
    """The mean difference over the sequences of both, with a t-interval over them; they are taken as independent."""
    values = np.array([new[name] - base[name] for name in base if name in new])
    found = Figure(float(values.mean()), "nats a token", count=len(values))
    if found.count < FEWEST:
        return found
    low, high = map(float, stats.over(values).ends())
    return replace(found, low=low, high=high)


def sentence(found: Figure, new: str, base: str) -> str:
    """What a difference comes to."""
    said = f"{new} {found.value:+.4f} nats a token from {base}"
    if found.low is None or found.high is None:
        return f"{said}: {found.count} sequences are too few for an interval"
    over = f"95 % interval {found.low:+.4f} to {found.high:+.4f}, paired over {found.count} sequences"
    verdict = "no difference is shown" if found.low <= 0 <= found.high else "higher" if found.value > 0 else "lower"
    return f"{said} ({over}): {verdict}"
