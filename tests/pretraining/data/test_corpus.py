"""What is checked of one's own data before a training, and how it is named."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pretraining.data import builtin_text, corpus
from pretraining.errors import UsageError
from pretraining.request import blends, settings
from pretraining.request import flags as training_flags


@pytest.fixture
def chosen() -> settings.Settings:
    """The defaults without a GPU."""
    return settings.resolve(training_flags.parser("x").parse_args([]), on_gpu=False, processes=1)


def test_data_shorter_than_a_sequence_is_refused(chosen, make_dataset, tmp_path: Path) -> None:
    prefix = make_dataset(tmp_path / "corpus", tokens=128)
    own = replace(chosen, data=prefix, blends=blends.parse(prefix), sequence_length=128)
    with pytest.raises(UsageError, match=rf"--seq-length 128 is longer than the data: {prefix} has 128 tokens; lower"):
        corpus.check(own, None)
    corpus.check(replace(own, sequence_length=127), None)  # a sequence needs one token more than it has
    corpus.check(replace(chosen, data="mock", sequence_length=10**9), None)


def test_the_shortest_split_of_the_builtin_text_counts(chosen, tmp_path: Path) -> None:
    made = builtin_text.prepare(tmp_path / "cache")
    shortest = min(made.tokens.values())
    corpus.check(replace(chosen, sequence_length=shortest - 1), made)
    with pytest.raises(UsageError, match=f"python-stdlib has {shortest} tokens"):
        corpus.check(replace(chosen, sequence_length=shortest), made)


def test_a_dataset_is_named_by_its_content(make_dataset, tmp_path: Path) -> None:
    first = make_dataset(tmp_path / "corpus", tokens=100_000)
    name = corpus.identify_dataset(first)
    assert name.startswith("corpus-200000-")
    (tmp_path / "copy").mkdir()
    for ending in (".bin", ".idx"):
        shutil.copy(f"{first}{ending}", tmp_path / "copy" / f"corpus{ending}")
    assert corpus.identify_dataset(str(tmp_path / "copy" / "corpus")) == name
    content = bytearray(Path(f"{first}.bin").read_bytes())
    content[-1] ^= 1
    Path(f"{first}.bin").write_bytes(content)
    changed_token = corpus.identify_dataset(first)
    other_documents = make_dataset(tmp_path / "corpus", tokens=100_000, document=50)
    assert len({name, changed_token, corpus.identify_dataset(other_documents)}) == 3


def test_a_blend_is_named_by_its_datasets_and_weights(make_dataset, tmp_path: Path) -> None:
    one, two = (make_dataset(tmp_path / name, tokens=1000, document=size) for name, size in (("one", 50), ("two", 40)))
    first, second = corpus.identify(blends.parse(one)), corpus.identify(blends.parse(two))
    assert corpus.identify(blends.parse(f"0.7 {one} 0.3 {two}")) == f"0.7 {first} 0.3 {second}"
    assert corpus.identify(blends.parse(f"train={one} valid={two}")) == f"train={first} valid={second}"


def test_other_tokens_under_an_old_path_get_another_index(make_dataset, tmp_path: Path) -> None:
    """Megatron takes an index that is there by the path alone: it would fail, or train on cut documents."""
    prefix = make_dataset(tmp_path / "corpus", tokens=1000, document=50)
    first = corpus.index_folder(tmp_path, blends.parse(prefix))
    assert first == corpus.index_folder(tmp_path, blends.parse(prefix)) and first.parent == tmp_path / "index"
    make_dataset(tmp_path / "corpus", tokens=1100, document=55)
    assert corpus.index_folder(tmp_path, blends.parse(prefix)) != first


def test_words_that_the_model_has_not(chosen, make_dataset, tmp_path: Path) -> None:
    """Without a manifest the tokens tell: here those of the last document."""
    prefix = make_dataset(tmp_path / "corpus", tokens=1000)
    corpus.check(replace(chosen, data=prefix, blends=blends.parse(prefix)), None)
    ids = np.fromfile(f"{prefix}.bin", dtype=np.uint16)
    ids[-1] = 257
    ids.tofile(f"{prefix}.bin")
    assert corpus.largest_token(prefix) == 257
    with pytest.raises(UsageError, match=r"has the token 257, and tiny has 257 words \(0 to 256\)"):
        corpus.check(replace(chosen, data=prefix, blends=blends.parse(prefix)), None)


@pytest.mark.parametrize("where", [0, 1_234_567, 2_500_001, 4_000_000])
def test_every_byte_of_up_to_four_megabytes_counts(tmp_path: Path, where: int) -> None:
    (tmp_path / "corpus.idx").write_bytes(b"index")
    content = bytearray(4_000_001)
    (tmp_path / "corpus.bin").write_bytes(content)
    name = corpus.identify_dataset(str(tmp_path / "corpus"))
    content[where] ^= 1
    (tmp_path / "corpus.bin").write_bytes(content)
    assert corpus.identify_dataset(str(tmp_path / "corpus")) != name
