"""What fine-tuning is asked for: the scheme, and files of JSON lines that have an "input" and an "output"."""

from __future__ import annotations

from pathlib import Path

from pretraining.errors import UsageError
from pretraining.inputs import contents, instructions
from pretraining.record import run_folder

SCHEMES = ("sft", "lora", "dora")
ADAPTERS = ("lora", "dora")  # whose checkpoints hold no other weights
TRAINING, VALIDATION = "training.jsonl", "validation.jsonl"


def files(data: str) -> dict[str, Path]:
    """The files that `--data` names: one .jsonl to train on, or a folder with training.jsonl and validation.jsonl.

    Raises:
        UsageError: no such file, or not every line is an instruction.
    """
    path = Path(data).absolute()
    if wrong := contents.pointer(path):
        raise UsageError(f"--data {wrong}")
    found = {TRAINING: path} if path.is_file() else {name: path / name for name in (TRAINING, VALIDATION)}
    found = {name: file for name, file in found.items() if file.is_file()}
    if TRAINING not in found:
        raise UsageError(
            f"--data {data}: give a .jsonl of instructions, or a folder with {TRAINING} (and {VALIDATION})"
        )
    for file in found.values():
        instructions.check(file)
    return found


def left_out(data: str) -> str:
    """A sentence on the blank lines of the instructions; "" without any."""
    blank = {file.name: instructions.check(file).blank for file in files(data).values()}
    told = [f"{count} blank {'line' if count == 1 else 'lines'} of {name}" for name, count in blank.items() if count]
    return f"{' and '.join(told)} left out" if told else ""


def identify(data: str) -> str:
    """A name for the instructions, equal exactly where the files are."""
    return f"{Path(data).name}-{instructions.identify(files(data))}"


def is_run(weights: str | None) -> bool:
    """Whether weights are those of a run folder's checkpoint, and not Hugging Face's."""
    return weights is not None and run_folder.has_checkpoint(Path(weights))
