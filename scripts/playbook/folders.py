"""The user's folders that a training reads: what a container has to mount, on this machine or on a cluster."""

from __future__ import annotations

from pathlib import Path

from pretraining import blends, finetuning
from pretraining.models import MOCK, PYTHON_STDLIB
from pretraining.settings import Settings


def read_by(settings: Settings) -> set[Path]:
    """Absolute folders of the data, weights, tokenizer, config file and plugin, and of the run that is continued.

    A file behind a link adds the folder where it really lies: a link alone would point nowhere inside.

    Raises:
        UsageError: instructions or a blend that cannot be read.
    """
    files = [path for path in (settings.config, settings.plugin) if path]
    if settings.finetune:
        files += finetuning.files(settings.data).values()
    elif settings.data not in (MOCK, PYTHON_STDLIB):
        files += [Path(f"{prefix}{end}") for prefix in blends.prefixes(settings.data) for end in (".bin", ".idx")]
    folders = {Path(name) for name in (settings.weights, settings.tokenizer) if name and Path(name).is_dir()}
    folders |= {settings.resume} if settings.resume else set()
    return folders | {folder for file in files for folder in (file.parent, file.resolve().parent)}
