"""How fast `make data` tokenizes, beside the tokenizer's own speed and Megatron-LM's per-document approach.

    PYTHONPATH=assets:scripts python tests/benchmarks/bench_data.py [CORES]

One run on the same documents, the source of Python's standard library: bytes per second of
  - `encode_batch_fast` on all of them in memory, as many threads as cores: the tokenizer's own rate;
  - `make data`, from JSONL to .bin, and with one worker for the scaling;
  - Megatron-LM's tools/preprocess_data.py: a pool that encodes a document at a time, a builder that adds it.
Fails where `make data` is under 0.9 of the first (Hugging Face), or under 40 MB/s a core (bytes).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import prepare_data
from pretraining import text
from pretraining.data import sources, tokenizers, worker
from pretraining.data.build import Build, plan_of

LEAST_OF_TOKENIZER = 0.9
LEAST_BYTES_A_CORE = 40e6
WORDS = 32_000


def documents() -> list[str]:
    """The standard library's files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [(root / name).read_text("utf-8", "ignore") for name in sorted(text._sources(root))]


def train_tokenizer(texts: list[str], folder: Path) -> Path:
    """A byte-level BPE with Llama 3's kind of pre-tokenizer, as a `tokenizer.json`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=WORDS, special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def seconds(work: Callable[[], None]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def make_data(corpus: Path, folder: Path, task: worker.Task, workers: int) -> float:
    """Seconds from JSONL to .bin, the start of the workers included."""
    inputs = sources.find(str(corpus))
    build = Build(folder / f"{task.tokenizer}-{workers}", plan_of(inputs, task.tokenizer, "text"))
    build.open(task.vocabulary.dtype)

    def work() -> None:
        for chunk, result in prepare_data.in_order(sources.chunks(inputs, "text"), task, workers):
            build.append(chunk, result)
        build.close()

    return seconds(work)


_tokenizer: tokenizers.HuggingFace


def _start(file: Path) -> None:
    global _tokenizer
    _tokenizer = tokenizers.HuggingFace(file, tokenizers.Vocabulary(WORDS, 0).dtype)


def _one_document(line: str) -> list[int]:
    return [*_tokenizer._fast.encode(json.loads(line)["text"], add_special_tokens=False).ids, 0]


def per_document(corpus: Path, folder: Path, file: Path, workers: int) -> float:
    """Seconds of Megatron-LM's way: `pool.imap(encode, lines, 32)`, `add_document` for each."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    def work() -> None:
        builder = IndexedDatasetBuilder(str(folder / "megatron.bin"), tokenizers.Vocabulary(WORDS, 0).dtype)
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers, _start, (file,)) as pool, corpus.open(encoding="utf-8") as lines:
            for ids in pool.imap(_one_document, lines, 32):
                builder.add_document(ids, [len(ids)])
        builder.finalize(str(folder / "megatron.idx"))

    return seconds(work)


def main() -> int:
    """Print the table; 1 where a bar is missed."""
    cores = int(sys.argv[1]) if len(sys.argv) > 1 else len(os.sched_getaffinity(0))
    texts = documents()
    size = sum(len(each.encode()) for each in texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        corpus.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts), encoding="utf-8")
        file = train_tokenizer(texts, folder)
        of_words = worker.Task("bpe", file, tokenizers.Vocabulary(WORDS, 0), "text")
        of_bytes = worker.Task(tokenizers.BYTES, file, tokenizers.Bytes.vocabulary, "text")

        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(str(file))
        os.environ["RAYON_NUM_THREADS"] = str(cores)
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        rates = {"encode_batch_fast": size / seconds(lambda: fast.encode_batch_fast(texts, add_special_tokens=False))}
        rates["make data"] = size / make_data(corpus, folder, of_words, cores)
        rates["make data, 1 worker"] = size / make_data(corpus, folder, of_words, 1)
        rates["per document"] = size / per_document(corpus, folder, file, cores)
        rates["make data, bytes"] = size / make_data(corpus, folder, of_bytes, cores)
    print(f"{len(texts):,} documents, {size / 1e6:.1f} MB, {cores} cores")
    for what, rate in rates.items():
        print(f"  {what:<22} {rate / 1e6:7.2f} MB/s  {rate / rates['encode_batch_fast']:6.2f} of encode_batch_fast")
    kept = rates["make data"] >= LEAST_OF_TOKENIZER * rates["encode_batch_fast"]
    print(f"  scaling over {cores} cores    {rates['make data'] / rates['make data, 1 worker']:.2f}")
    return 0 if kept and rates["make data, bytes"] >= LEAST_BYTES_A_CORE * cores else 1


if __name__ == "__main__":
    sys.exit(main())
