"""A tokenizer's folder for `transformers`: one with a `tokenizer.json` alone completed, and one written."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining import huggingface
from pretraining.errors import UsageError
from pretraining.inputs.safetensors_files import read_json
from pretraining.record import files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES = "bytes"
_FAST, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_FILES = (_FAST, _CONFIG, "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# The token that ends a document, where only its name says so; a chat model's end of a turn comes after these.
_ENDS = ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "[EOS]", "<end>")
END = _ENDS[0]  # of a tokenizer that is made here


def check(folder: Path, flag: str, most: int | None = None) -> None:
    """Raise UsageError where a local folder is no tokenizer, by its files, or has more than `most` words.

    Nothing is said of one that is not there, which may be a repository.
    """
    if not folder.is_dir():
        return
    if not any((folder / name).is_file() for name in _FILES):
        raise UsageError(f"{flag} {folder} holds no tokenizer ({_FAST}): --tokenizer names one")
    try:
        for name in (_FAST, _CONFIG):
            if (folder / name).is_file():
                read_json(folder / name)
        if _lacks_config(folder):
            _end_of(folder)
        words = _words(folder)
        if most is not None and words > most:
            raise UsageError(f"it has {words} words, and the model has {most}: take the model's own tokenizer")
    except UsageError as error:
        raise UsageError(f"{flag} {folder}: {error}") from error


def completed(tokenizer: str, cache: Path) -> str:
    """A name for `transformers`: the same, or of a folder with `tokenizer.json` alone one in `cache` with its class.

    Raises:
        UsageError: it does not say which token ends a document.
    """
    folder = Path(tokenizer)
    if not _lacks_config(folder):
        return tokenizer
    content = (folder / _FAST).read_text(encoding="utf-8")
    whole = cache / "tokenizers" / hashlib.sha256(content.encode()).hexdigest()[:16]
    whole.mkdir(parents=True, exist_ok=True)
    files.write_text(whole / _FAST, content)
    _write_config(whole, _end_of(folder))
    return str(whole)


def save(tokenizer: str, folder: Path) -> None:
    """Write "bytes", or a tokenizer of a repository or folder, into a model's folder. Raises UsageError as `load`."""
    if tokenizer == BYTES:
        write(folder, json.dumps(_of_bytes(), indent=1) + "\n")
    else:
        load(tokenizer).save_pretrained(folder)


def write(folder: Path, fast: str) -> None:
    """Write a tokenizer that was made here, which ends documents with END; `fast` is its `tokenizer.json`."""
    (folder / _FAST).write_text(fast, encoding="utf-8")
    _write_config(folder, END)


def load(tokenizer: str) -> PreTrainedTokenizerBase:
    """A tokenizer of `transformers`. Raises UsageError where it cannot be had."""
    check(Path(tokenizer), "--tokenizer")
    with huggingface.explained(tokenizer, "--tokenizer"), tempfile.TemporaryDirectory() as beside:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(completed(tokenizer, Path(beside)))


def _lacks_config(folder: Path) -> bool:
    return (folder / _FAST).is_file() and not (folder / _CONFIG).is_file()


def _words(folder: Path) -> int:
    """One more than the largest id in a `tokenizer.json`, 0 where there is none."""
    whole = read_json(folder / _FAST) if (folder / _FAST).is_file() else {}
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbers = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary or ()))  # Unigram: a list
    found = [*numbers, *(each.get("id") for each in _added(whole))]
    return 1 + max((each for each in found if isinstance(each, int)), default=-1)


def _added(whole: dict[str, Any]) -> list[dict[str, Any]]:
    added = whole.get("added_tokens")
    return [each for each in added if isinstance(each, dict)] if isinstance(added, list) else []


def _end_of(folder: Path) -> str:
    added = [str(each.get("content")) for each in _added(read_json(folder / _FAST))]
    known = next((name for name in _ENDS if name in added), None)
    if known is None:
        raise UsageError(
            f"its {_FAST} does not say which of {added or 'its tokens'} ends a document: write "
            f'{{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "..."}} to {_CONFIG} beside it'
        )
    return known


def _write_config(folder: Path, end: str) -> None:
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": end}
    files.write_text(folder / _CONFIG, json.dumps(described, indent=2) + "\n")


def _of_bytes() -> dict[str, Any]:
    """The `tokenizer.json` of which a byte is a token and 256 the end: the letters of GPT-2's byte-level BPE."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    end = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [{"id": 256, "content": END, **end, "special": True}],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {letters[byte]: byte for byte in range(256)}, "merges": []},
    }
