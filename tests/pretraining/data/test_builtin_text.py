"""The built-in text: what the Megatron datasets made from it hold, and what `.identity` promises."""

import itertools
import math
import shutil
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from pretraining.data import builtin_text
from pretraining.request import models

SOURCES = {
    "a.py": b"import os\n",
    "pkg/__init__.py": b"# caf\xc3\xa9\n",
    "pkg/b.py": bytes(range(256)),
    "pkg/deep/c.py": b"x" * 300,
} | {f"m{number}.py": f"value = {number}\n".encode() * (number % 7 + 1) for number in range(150)}


@pytest.fixture
def stdlib(tmp_path: Path, monkeypatch) -> Path:
    """A small standard library in the place of Python's."""
    folder = tmp_path / "stdlib"
    for name, content in SOURCES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    left_out = ("test/test_a.py", "pkg/tests/t.py", "site-packages/s.py", "idlelib/i.py", "__pycache__/c.py")
    for name in left_out:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("left out")
    (folder / "empty.py").touch()
    (folder / "notes.txt").write_text("not source")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(folder)})
    return folder


def documents(made: builtin_text.Text) -> dict[str, list[bytes]]:
    """The documents of each split as bytes, read by Megatron; every one ends with the end-of-document token."""
    found = {}
    for split in builtin_text.SPLITS:
        dataset = IndexedDataset(made.prefix(split))
        assert dataset.index.dtype == np.uint16
        pieces = [dataset[number] for number in range(len(dataset))]
        assert all(piece[-1] == builtin_text.END_OF_DOCUMENT and (piece[:-1] < 256).all() for piece in pieces)
        found[split] = [bytes(piece[:-1].astype(np.uint8)) for piece in pieces]
    return found


def test_every_source_file_is_one_document_of_one_split(stdlib: Path, tmp_path: Path) -> None:
    made = builtin_text.prepare(tmp_path / "cache")
    found = documents(made)
    assert Counter(piece for pieces in found.values() for piece in pieces) == Counter(SOURCES.values())
    assert all(found.values())
    assert made.documents == {split: len(pieces) for split, pieces in found.items()}
    assert made.tokens == {split: sum(len(piece) + 1 for piece in pieces) for split, pieces in found.items()}


def test_the_second_call_reads_what_the_first_wrote(stdlib: Path, tmp_path: Path) -> None:
    made = builtin_text.prepare(tmp_path / "cache")
    before = {path: path.stat().st_mtime_ns for path in made.folder.iterdir()}
    assert builtin_text.prepare(tmp_path / "cache") == made
    assert {path: path.stat().st_mtime_ns for path in made.folder.iterdir()} == before
    assert [path.name for path in made.folder.parent.iterdir()] == [made.identity]  # nothing half-made is left


def test_a_half_written_text_is_written_anew(stdlib: Path, tmp_path: Path) -> None:
    made = builtin_text.prepare(tmp_path / "cache")
    shutil.rmtree(made.folder)
    (made.folder.parent / f".{made.identity}.killed").mkdir()
    assert builtin_text.prepare(tmp_path / "cache") == made
    documents(made)


def test_identity_is_the_content(stdlib: Path, tmp_path: Path) -> None:
    first = builtin_text.prepare(tmp_path / "one")
    assert builtin_text.prepare(tmp_path / "two").identity == first.identity
    (stdlib / "empty.py").unlink()
    (stdlib / "test" / "test_a.py").write_text("changed, and left out")
    assert builtin_text.prepare(tmp_path / "one").identity == first.identity
    (stdlib / "a.py").write_bytes(b"import so\n")
    changed = builtin_text.prepare(tmp_path / "one")
    assert changed.identity != first.identity
    (stdlib / "a.py").write_bytes(SOURCES["a.py"])
    (stdlib / "a.py").rename(stdlib / "z.py")
    assert builtin_text.prepare(tmp_path / "one").identity not in (first.identity, changed.identity)


def test_a_file_stays_in_its_split_whatever_is_beside_it(stdlib: Path, tmp_path: Path) -> None:
    before = documents(builtin_text.prepare(tmp_path / "cache"))
    (stdlib / "new.py").write_text("one more")
    after = documents(builtin_text.prepare(tmp_path / "cache"))
    for split in builtin_text.SPLITS:
        assert set(before[split]) <= set(after[split])


def test_no_source_is_an_error_that_names_the_way_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(OSError, match=r"holds no Python source; give --data"):
        builtin_text.prepare(tmp_path / "cache")


def slow_bigram_entropy(pieces: list[bytes]) -> float:
    pairs, firsts = Counter(), Counter()
    for piece in pieces:
        for first, second in itertools.pairwise(piece):
            pairs[first, second] += 1
            firsts[first] += 1
    total = sum(pairs.values())
    return -sum(count / total * math.log(count / firsts[first]) for (first, _), count in pairs.items())


def test_bigram_entropy_is_that_of_the_validation_split(stdlib: Path, tmp_path: Path) -> None:
    made = builtin_text.prepare(tmp_path / "cache")
    assert made.bigram_entropy == pytest.approx(slow_bigram_entropy(documents(made)["validation"]), rel=1e-12)


@pytest.mark.parametrize(
    ("pieces", "nats"), [([b"abab"], 0.0), ([b"aab", b"aab"], math.log(2)), ([b"a", b"", b"abcabd"], 0.4 * math.log(2))]
)
def test_bigram_entropy_by_hand(pieces: list[bytes], nats: float) -> None:
    arrays = [np.frombuffer(piece, dtype=np.uint8) for piece in pieces]
    assert builtin_text._bigram_entropy(arrays) == pytest.approx(nats, abs=1e-12)
    assert slow_bigram_entropy(pieces) == pytest.approx(nats, abs=1e-12)


def test_pythons_own_standard_library(project: Path) -> None:
    made = builtin_text.prepare(project / ".cache")
    assert made.identity.startswith("python-stdlib-3.")
    share = {split: made.tokens[split] / sum(made.tokens.values()) for split in builtin_text.SPLITS}
    assert share["train"] > 0.8 and min(share.values()) > 0.02
    assert made.tokens["train"] > 5_000_000
    assert 2.0 < made.bigram_entropy < 3.0
    found = documents(made)
    shared = set(found["train"]) & set(found["validation"] + found["test"])
    assert sum(map(len, shared)) < 0.001 * sum(made.tokens.values())  # a licence header or two, no more
    ours = models.MODELS["tiny"].hf_config
    assert (ours["vocab_size"], ours["eos_token_id"]) == (
        builtin_text.END_OF_DOCUMENT + 1,
        builtin_text.END_OF_DOCUMENT,
    )
