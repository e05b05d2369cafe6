"""How fast `make data` tokenizes, beside the tokenizer's own speed and Megatron-LM's per-document approach.

    PYTHONPATH=assets:scripts python tests/benchmarks/bench_data.py [CORES]

One run on the same documents, the source of Python's standard library, four times over, the better
of two rounds. In wall time, and by the CPU seconds of all processes, which a busy machine changes less:
  - `encode_batch_fast` on documents in memory, as many threads as cores: the tokenizer's own rate;
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
from dataclasses import dataclass
from pathlib import Path

import prepare_data
from pretraining.data import builtin_text, sources, tokenizers, worker
from pretraining.data.build import Build, plan_of

LEAST_OF_TOKENIZER = 0.9
LEAST_BYTES_A_CPU_SECOND = 40e6
WORDS = 32_000
REPEATS = 4
LINKS = 10  # of the corpus, for bytes: else the start of the workers would be most of it
ROUNDS = 2
ALONE = "encode_batch_fast"


def documents() -> list[str]:
    """The standard library's files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [(root / name).read_text("utf-8", "ignore") for name in sorted(builtin_text._sources(root))] * REPEATS


def train_tokenizer(texts: list[str], folder: Path) -> Path:
    """A byte-level BPE with Llama 3's kind of pre-tokenizer, as a `tokenizer.json`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=WORDS, special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@dataclass(order=True)
class Cost:
    """Seconds of wall time, and of CPU time in this process and its children that have ended."""

    wall: float
    cpu: float

    def __truediv__(self, parts: int) -> Cost:
        return Cost(self.wall / parts, self.cpu / parts)


def seconds(work: Callable[[], None]) -> Cost:
    """How long it takes."""
    began, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    return Cost(time.perf_counter() - began, sum(after[:4]) - sum(before[:4]))


def tokenizer_alone(texts: list[str], file: Path) -> Cost:
    """Seconds of `encode_batch_fast`, a quarter of the documents at a time: an encoding takes 100 bytes a token."""
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # which `make data` switches off in its process
    fast = Tokenizer.from_file(str(file))
    part = len(texts) // REPEATS

    def work() -> None:
        for start in range(0, len(texts), part):
            fast.encode_batch_fast(texts[start : start + part], add_special_tokens=False)

    return seconds(work)


def make_data(corpus: Path, folder: Path, task: worker.Task, workers: int) -> Cost:
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


def per_document(corpus: Path, folder: Path, file: Path, workers: int) -> Cost:
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
    os.environ["RAYON_NUM_THREADS"] = str(cores)
    texts = documents()
    size = sum(len(each.encode()) for each in texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        corpus.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts), encoding="utf-8")
        for number in range(LINKS):
            os.link(corpus, folder / f"link-{number}.jsonl")
        linked = folder / "link-*.jsonl"
        file = train_tokenizer(texts[: len(texts) // REPEATS], folder)
        of_words = worker.Task("bpe", file, tokenizers.Vocabulary(WORDS, 0), "text")
        of_bytes = worker.Task(tokenizers.BYTES, file, tokenizers.Bytes.vocabulary, "text")

        work = {
            ALONE: lambda number: tokenizer_alone(texts, file),
            "make data": lambda number: make_data(corpus, folder / f"{number}", of_words, cores),
            "make data, 1 worker": lambda number: make_data(corpus, folder / f"{number}", of_words, 1),
            "per document": lambda number: per_document(corpus, folder, file, cores),
            "make data, bytes": lambda number: make_data(linked, folder / f"{number}", of_bytes, cores) / LINKS,
        }
        rounds = [{what: each(number) for what, each in work.items()} for number in range(ROUNDS)]
    costs = {what: min(each[what] for each in rounds) for what in work}
    print(f"{len(texts):,} documents, {size / 1e6:.1f} MB, {cores} cores, best of {ROUNDS}")
    alone, made = costs[ALONE], costs["make data"]
    for what, cost in costs.items():
        print(
            f"  {what:<20} {size / cost.wall / 1e6:7.2f} MB/s, {alone.wall / cost.wall:6.2f} of {ALONE}"
            f"   {size / cost.cpu / 1e6:7.2f} MB a CPU second, {alone.cpu / cost.cpu:6.2f}"
        )
    print(f"  scaling over {cores} cores: {costs['make data, 1 worker'].wall / made.wall:.2f}")
    kept = max(alone.wall / made.wall, alone.cpu / made.cpu) >= LEAST_OF_TOKENIZER
    return 0 if kept and size / costs["make data, bytes"].cpu >= LEAST_BYTES_A_CPU_SECOND else 1


if __name__ == "__main__":
    sys.exit(main())
