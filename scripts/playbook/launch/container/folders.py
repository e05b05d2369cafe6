"""The user's folders that a training reads: what a container has to mount, on this machine or on a cluster."""

import os
from pathlib import Path

from pretraining.inputs import finetuning
from pretraining.request import blends
from pretraining.request.settings import Settings


def read_by(settings: Settings) -> set[Path]:
    """Absolute folders of the data, weights, tokenizer, config file and plugin, and of the run that is continued.

    A file behind a link adds the folder where it really lies: a link alone would point nowhere inside. Raises
    UsageError for instructions or a blend that cannot be read.
    """
    files = [path for path in (settings.config and settings.config.path, settings.plugin) if path]
    if settings.finetune:
        files += finetuning.files(settings.data).values()
    files += [Path(f"{prefix}{end}") for prefix in blends.prefixes(settings.blends) for end in (".bin", ".idx")]
    folders = {settings.resume} if settings.resume else set()
    for name in (settings.weights, settings.tokenizer):
        if name and Path(name).is_dir():
            folders |= behind_links(Path(name))
    return folders.union((file.parent for file in files), *map(behind_links, files))


def behind_links(path: Path) -> set[Path]:
    """The folders that have to be there for everything in a folder, or for a file, to be found.

    Links of Hugging Face's cache lead from a snapshot into the blobs beside it, and a whole folder may be a link to
    another disk; the folders of every link on the way are given too. None for what does not exist.
    """
    found: set[Path] = set()
    seen: set[Path] = set()
    rest = [path]
    while rest:
        path = rest.pop()
        if path in seen:  # links can lead in a circle
            continue
        seen.add(path)
        if path.is_symlink():
            found.add(path.parent)
            rest.append(Path(os.path.normpath(path.parent.resolve() / path.readlink())))
        elif path.is_dir():
            found.add(path)
            entries = (Path(at, name) for at, folders, files in os.walk(path) for name in (*folders, *files))
            rest += [each for each in entries if each.is_symlink()]
        elif path.exists():
            found.add(path.parent)
    return found
