"""The words of `--data`, and what Megatron gets of them."""

from pathlib import Path

import pytest

from pretraining.errors import UsageError
from pretraining.request import blends
from pretraining.request.blends import Blend


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch) -> Path:
    """Empty datasets a, b, "my corpus", 0.5 and x=y in the working folder."""
    for name in ("a", "b", "my corpus", "0.5", "x=y"):
        for ending in (".bin", ".idx"):
            (tmp_path / f"{name}{ending}").touch()
    (tmp_path / "half.bin").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a", {"all": (["a"], None)}),
        ("a.bin", {"all": (["a"], None)}),
        ("my corpus", {"all": (["my corpus"], None)}),
        ("x=y", {"all": (["x=y"], None)}),
        ("0.5", {"all": (["0.5"], None)}),
        ("a b", {"all": (["a", "b"], None)}),
        ("0.7 a 30 b", {"all": (["a", "b"], [0.7, 30.0])}),
        ("1 a 2 'my corpus'", {"all": (["a", "my corpus"], [1.0, 2.0])}),
        ("train=a valid=b", {"train": (["a"], None), "valid": (["b"], None)}),
        ("train=0.7 a 0.3 b valid=b test='my corpus'",
         {"train": (["a", "b"], [0.7, 0.3]), "valid": (["b"], None), "test": (["my corpus"], None)}),
    ],
)  # fmt: skip
def test_what_megatron_gets(datasets: Path, words: str, expected: dict) -> None:
    parsed = blends.parse(words)
    absolute = {
        split: ([str(datasets / name) for name in names], weights) for split, (names, weights) in expected.items()
    }
    assert {split: blend.as_megatron() for split, blend in parsed.items()} == absolute
    assert blends.parse(blends.as_words(parsed)) == parsed  # as the training script is given them
    assert set(blends.prefixes(parsed)) == {name for names, _ in absolute.values() for name in names}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("c", "there is no "),
        ("a c", "--data c: there is no "),
        ("half", "half.idx is missing"),
        ("0.7 a b", "a weight before every dataset or before none"),
        ("0.7 a 0.3", "a weight before every dataset or before none"),
        ("a 0.3 b", "a weight before every dataset or before none"),
        ("0 a 1 b", "a weight is a finite number above 0"),
        ("nan a inf b", "a weight is a finite number above 0"),
        ("1e999 a 1 b", "a weight is a finite number above 0"),
        ("-1 a 2 b", "a weight is a finite number above 0"),
        ("1 a 1e999 b", "a weight is a finite number above 0"),
        ("traim=a", "unknown split in --data 'traim': did you mean train?"),
        ("valid=a", "name what to train on, as train=PREFIX"),
        ("a valid=b", "a belongs to no split; begin with train="),
        ("train= valid=b", "a split without a dataset"),
        ("a 'b", "No closing quotation"),
    ],
)
def test_what_is_refused(words: str, said: str) -> None:
    with pytest.raises(UsageError) as told:
        blends.parse(words)
    assert said in str(told.value)


def test_one_dataset_stays_a_plain_prefix(datasets: Path) -> None:
    assert blends.as_words({blends.ALL: Blend((str(datasets / "my corpus"),))}) == str(datasets / "my corpus")


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_pointer_in_place_of_a_dataset(datasets: Path, ending: str) -> None:
    (datasets / f"a{ending}").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(
        UsageError, match=rf"a{ending} is a Git LFS pointer .*`git -C \S+ lfs pull --include=a{ending}`"
    ):
        blends.parse("a b")
    (datasets / f"a{ending}").unlink()
    (datasets / f"a{ending}").symlink_to("../.git/annex/objects/x")
    with pytest.raises(UsageError, match=rf"a{ending} is a link of git-annex"):
        blends.parse("0.5 a 0.5 b")
