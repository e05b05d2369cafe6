"""Real text for the default run: the source of Python's own standard library, as bytes.

Every machine that can run the playbook has it, so the default run trains on real text without a download. A token
is a byte (0 to 255); 256 ends a document. Files are split into training, validation and test by a hash of their
name, about 18 : 1 : 1, so no file is in two splits. The result is three Megatron .bin/.idx pairs in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pretraining.request.models import PYTHON_STDLIB

END_OF_DOCUMENT = 256
SPLITS = ("train", "validation", "test")
_MANIFEST = "manifest.json"
# Not everywhere installed (Debian packages tests and idlelib apart), so left out: the text is then the same text.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}


@dataclass(frozen=True)
class Text:
    """The built-in text as Megatron datasets.

    `bigram_entropy` is the validation split's in nats a byte, by its own pair counts: what a model scores that knows
    only the previous byte. A loss below it has learned more than letter pairs.
    """

    folder: Path  # holds `train`, `validation` and `test`, each a .bin/.idx pair
    identity: str  # "python-stdlib-<version>-<hash of the content>"
    documents: dict[str, int]  # of each split
    tokens: dict[str, int]
    bigram_entropy: float

    def prefix(self, split: str) -> str:
        """The dataset prefix of a split, as Megatron wants it."""
        return str(self.folder / split)


def prepare(cache: Path) -> Text:
    """The built-in text, written on first use and reused after. Raises OSError where `cache` cannot be written."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(_sources(stdlib))
    if not files:
        raise OSError(f"{stdlib} holds no Python source; give --data a dataset of your own")
    digest = hashlib.sha256()
    documents: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for name in files:
        content = (stdlib / name).read_bytes()
        digest.update(name.encode() + b"\0" + content)
        bucket = hashlib.sha256(name.encode()).digest()[0] % 20
        split = {0: "validation", 1: "test"}.get(bucket, "train")
        documents[split].append(np.frombuffer(content, dtype=np.uint8))
    identity = f"{PYTHON_STDLIB}-{platform.python_version()}-{digest.hexdigest()[:12]}"
    folder = cache / "text" / identity
    if not (folder / _MANIFEST).exists():
        _write(folder, identity, documents)
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    return Text(**{**manifest, "folder": folder})


def _sources(stdlib: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(stdlib):
        folders[:] = [folder for folder in folders if folder not in _LEFT_OUT]
        for name in names:
            path = Path(parent, name)
            if name.endswith(".py") and path.stat().st_size:
                yield path.relative_to(stdlib).as_posix()


def _write(folder: Path, identity: str, documents: dict[str, list[np.ndarray]]) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{identity}.", dir=folder.parent))
    try:
        for split, pieces in documents.items():
            builder = IndexedDatasetBuilder(str(beside / f"{split}.bin"), dtype=np.uint16)
            for piece in pieces:
                tokens = np.append(piece.astype(np.uint16), END_OF_DOCUMENT)
                builder.add_document(tokens, [len(tokens)])
            builder.finalize(str(beside / f"{split}.idx"))
        text = Text(
            folder=folder,
            identity=identity,
            documents={split: len(pieces) for split, pieces in documents.items()},
            tokens={split: sum(len(piece) + 1 for piece in pieces) for split, pieces in documents.items()},
            bigram_entropy=_bigram_entropy(documents["validation"]),
        )
        (beside / _MANIFEST).write_text(json.dumps(asdict(text), indent=2, default=str) + "\n", encoding="utf-8")
        try:
            beside.replace(folder)
        except OSError:
            if not (folder / _MANIFEST).exists():  # else another run wrote the same text meanwhile
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _bigram_entropy(documents: list[np.ndarray]) -> float:
    counts = np.zeros((256, 256))
    for document in documents:
        np.add.at(counts, (document[:-1], document[1:]), 1)
    previous = counts.sum(axis=1, keepdims=True)
    seen = counts > 0
    conditional = np.divide(counts, previous, out=np.zeros_like(counts), where=previous > 0)
    return float(-(counts[seen] * np.log(conditional[seen])).sum() / counts.sum())
