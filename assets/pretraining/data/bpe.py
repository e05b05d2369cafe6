"""A tokenizer trained on the text itself: `bpe:SIZE`, byte-level BPE of so many words.

The algorithm is GPT-2's (Radford et al. 2019, section 2.2) by Hugging Face's `tokenizers`: every text can be written in
it, and the same text makes the same tokenizer.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pretraining.data import sources, worker
from pretraining.data.sources import Source
from pretraining.errors import UsageError
from pretraining.inputs import tokenizer_folder

SMALLEST, LARGEST = 512, 262_144  # 256 bytes and the end are in it; beyond, no published model goes
MOST_BYTES = 2**30  # of the input, read to train on: chunks spread evenly over a longer one
_MADE_FROM = "made_from.json"


def size_of(name: str) -> int | None:
    """The words asked for by `bpe:SIZE`, None for another tokenizer. Raises UsageError for a size that is none."""
    misspelt = re.fullmatch(r"bpe\W?[\d_,]*k?", name, re.IGNORECASE) and not Path(name).exists()
    if not name.startswith("bpe:") and not misspelt:
        return None
    size = re.sub(r"(?<=\d)[_,](?=\d)", "", name.removeprefix("bpe:"))
    if not size.isdecimal() or not SMALLEST <= int(size) <= LARGEST:
        raise UsageError(f"--tokenizer {name}: bpe:SIZE takes {SMALLEST} to {LARGEST} words, for example bpe:16384")
    return int(size)


def train(size: int, inputs: list[Source], text_field: str, folder: Path) -> None:
    """Make a tokenizer's folder, whole or not at all, where an earlier run did not; the end of a document is a word.

    Raises:
        UsageError: the folder holds something else, or the text is too little for so many words.
    """
    made_from = {"words": size, "field": text_field, "input": [[each.path.name, each.size] for each in inputs]}
    if folder.exists():
        if _read(folder / _MADE_FROM) != made_from:
            raise UsageError(f"{folder} exists, and was not made of this text with {size} words: name another OUT=")
        return
    print(f"training a tokenizer of {size:,} words on the text", flush=True)
    tokenizer = _trained(size, _texts(inputs, text_field))
    words = tokenizer.get_vocab_size()
    if words < size:
        raise UsageError(f"--tokenizer bpe:{size}: the text has pieces for {words} words only; ask for no more")
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
    new.mkdir(parents=True)
    tokenizer_folder.write(new, tokenizer.to_str(pretty=True))
    (new / _MADE_FROM).write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
    new.rename(folder)
    print(f"{folder}: written; TOKENIZER={folder} takes it for other text", flush=True)


def _trained(size: int, texts: Iterator[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[tokenizer_folder.END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    _interruptibly(lambda: tokenizer.train_from_iterator(texts, trainer))
    return tokenizer


def _interruptibly(work: Callable[[], object]) -> None:
    """Do it in a thread that ends with the process: Ctrl-C waits for whatever the main thread does in Rust."""
    failures: list[Exception] = []

    def do() -> None:
        try:
            work()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _texts(inputs: list[Source], text_field: str) -> Iterator[str]:
    """The documents of every n-th chunk, so that MOST_BYTES of the input are read; broken lines are left out."""
    every = math.ceil(sum(each.size for each in inputs) / MOST_BYTES) or 1
    for number, chunk in enumerate(sources.chunks(inputs, text_field)):
        if number % every == 0:
            for piece in chunk:
                for _, text in worker.documents(piece, text_field):
                    if isinstance(text, str):
                        yield text


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
