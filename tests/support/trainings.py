"""What trainings of the tiny model are compared by."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pretraining.record.run_folder import Run

PRECISIONS = ("bf16", "nvfp4")


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.train]


def in_both(train_one: Callable[[str], Path]) -> dict[str, Path]:
    """Both precisions at once: a training has one thread here."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(PRECISIONS, pool.map(train_one, PRECISIONS), strict=True))
