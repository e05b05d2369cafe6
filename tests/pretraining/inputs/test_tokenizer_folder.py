"""A folder with `tokenizer.json` alone is a tokenizer; one that is none is told by its files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from pretraining.errors import UsageError
from pretraining.inputs import manifest, tokenizer_folder
from pretraining.megatron import weights
from pretraining.record import run_folder
from pretraining.request import config_file
from pretraining.request import flags as training_flags

TEXT = 'def f(x):\n    return "\x00\x7f é ☃"  # ende'


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A folder with a `tokenizer.json` and nothing else."""
    folder = tmp_path / "alone"
    folder.mkdir()
    tokenizer_folder.save("bytes", folder)
    (folder / "tokenizer_config.json").unlink()
    return folder


def ends(folder: Path, *names: str) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    first = content["added_tokens"][0]
    content["added_tokens"] = [{**first, "id": 256 + n, "content": name} for n, name in enumerate(names)]
    file.write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as told:
        tokenizer_folder.check(folder, "--tokenizer")
    assert "\n" not in str(told.value)
    return str(told.value)


def test_bytes_are_their_own_numbers(tmp_path: Path) -> None:
    """As the built-in text and `make data TOKENIZER=bytes` have them, so that what was trained on these can be used."""
    tokenizer_folder.save("bytes", tmp_path)
    tokenizer = tokenizer_folder.load(str(tmp_path))
    assert tokenizer(TEXT).input_ids == list(TEXT.encode())
    assert tokenizer.decode(list(TEXT.encode())) == TEXT
    assert (tokenizer.eos_token_id, len(tokenizer)) == (256, 257)


def test_without_a_config_it_is_completed_in_the_cache(alone: Path, tmp_path: Path) -> None:
    tokenizer_folder.check(alone, "--tokenizer")
    whole = tokenizer_folder.completed(str(alone), tmp_path / "cache")
    assert Path(whole).parent == tmp_path / "cache" / "tokenizers"
    assert [path.name for path in alone.iterdir()] == ["tokenizer.json"]
    assert tokenizer_folder.completed(str(alone), tmp_path / "cache") == whole
    assert tokenizer_folder.load(str(alone))("abc").input_ids == [97, 98, 99]
    assert tokenizer_folder.completed("meta-llama/Llama-3.1-8B", tmp_path) == "meta-llama/Llama-3.1-8B"
    assert tokenizer_folder.completed(whole, tmp_path) == whole


@pytest.mark.parametrize(
    ("names", "end"),
    [
        (("<|endoftext|>", "<|pad|>"), "<|endoftext|>"), (("<unk>", "<s>", "</s>"), "</s>"),
        (("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"), "<|end_of_text|>"),
        (("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|endoftext|>"), (("<pad>", "<eos>", "<bos>"), "<eos>"),
    ],
)  # fmt: skip
def test_which_token_ends_a_document(alone: Path, names: tuple[str, ...], end: str) -> None:
    ends(alone, *names)
    assert tokenizer_folder.load(str(alone)).eos_token == end


def test_one_that_does_not_say_is_refused_with_what_to_write(alone: Path) -> None:
    ends(alone, "<fin>")
    said = refusal(alone)
    assert "does not say which of ['<fin>'] ends a document: write" in said and '"eos_token"' in said
    (alone / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<fin>"})
    )
    assert tokenizer_folder.load(str(alone)).eos_token_id == 256


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"), (b"", "is empty (0 bytes)"),
        (b"<html>", "is a web page"), (b'{"a": ', "is not JSON at line 1 column"), (b"[1]", "holds a list"),
    ],
)  # fmt: skip
def test_a_damaged_file(alone: Path, name: str, content: bytes, words: str) -> None:
    (alone / name).write_bytes(content)
    assert f"{alone / name} {words}" in refusal(alone)


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_one_with_more_words_than_the_model(alone: Path, kind: str) -> None:
    tokenizer_folder.check(alone, "--tokenizer", 257)
    with pytest.raises(UsageError, match="it has 257 words, and the model has 256: take the model's own tokenizer"):
        tokenizer_folder.check(alone, "--tokenizer", 256)
    if kind == "Unigram":
        content = json.loads((alone / "tokenizer.json").read_text())
        content |= {
            "model": {"type": kind, "vocab": [["a", -1.0]] * 300},
            "added_tokens": [{"id": 0, "content": "</s>"}],
        }
        (alone / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(UsageError, match="it has 300 words, and the model has 257"):
            tokenizer_folder.check(alone, "--tokenizer", 257)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("holds no tokenizer (tokenizer.json): --tokenizer names one")
    tokenizer_folder.check(tmp_path / "nowhere", "--tokenizer")  # may be a repository


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (("--data", "python-stdlib"), "bytes"), (("--data", "mock"), None), ((), None),
        (("--tokenizer", "my/words", "--finetune", "sft", "--data", "x.jsonl"), "my/words"),
        (("--data", "PREFIX"), "gpt2"), (("--data", "train=PREFIX valid=PREFIX"), "gpt2"),
    ],
)  # fmt: skip
def test_the_tokenizer_of_a_run(tmp_path: Path, flags: tuple[str, ...], found: str | None) -> None:
    for ending in ("bin", "idx"):
        (tmp_path / f"text.{ending}").touch()
    none = dict.fromkeys(("end_of_document", "largest_token", "documents", "tokens", "text_bytes"), 0)
    none |= dict.fromkeys(("empty_documents", "bad_lines", "vocabulary_size"), 0)
    known = manifest.Manifest(tokenizer="gpt2", dtype="uint16", sources=[], sha256={}, created="", **none)
    (tmp_path / "text.manifest.json").write_text(json.dumps(asdict(known)))
    words = [word.replace("PREFIX", str(tmp_path / "text")) for word in flags]
    (tmp_path / run_folder.CONFIG).write_text(json.dumps({config_file.PLAYBOOK: {config_file.ARGUMENTS: words}}))
    assert training_flags.parser("x").parse_args(words)
    assert weights.tokenizer_of(tmp_path) == found
    assert weights.tokenizer_of(tmp_path / "nowhere") is None
