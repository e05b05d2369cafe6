#!/usr/bin/env python3
"""Tokenize text into a Megatron dataset: PREFIX.bin, PREFIX.idx and PREFIX.manifest.json.

    python3 assets/prepare_data.py --input 'corpus/*.jsonl' --tokenizer meta-llama/Llama-3.1-8B --out data/mine

Input: JSONL with a text field, plain text (a file is a document; longer ones are cut at the first line end after each
MiB), Parquet; JSONL and text also compressed with gzip, zstd, bzip2 or xz. A file's content tells what it is, and its
ending where that does not. Broken lines are an error unless --skip-bad. After
Ctrl-C or a crash the same command goes on from where it was; the result is the same for any number of workers.

Exit codes: 0 written, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as in pretrain_llama.py

from pretraining.console import outlive_readers
from pretraining.data import OUT_OF_MEMORY, bpe, sources, tokenizers, worker
from pretraining.data.build import Build, State, plan_of
from pretraining.data.sources import Piece
from pretraining.errors import UsageError
from pretraining.inputs.manifest import Manifest
from pretraining.run import ending

PLAIN_EVERY_SECONDS = 15.0
MOST_THREADS = 16


class BadLines(Exception):
    """The input has broken lines, and nobody said to skip them."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` lists the flags")


def parser() -> argparse.ArgumentParser:
    """The flags. Raises UsageError where argparse would exit."""
    flags = _Parser(prog="prepare_data.py", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False)
    add = flags.add_argument
    add("--input", required=True, metavar="FILES", help="a file or glob pattern, or several separated by spaces")
    add("--tokenizer", required=True, help="a Hugging Face tokenizer's name or folder, bytes, or bpe:SIZE")
    add("--out", required=True, type=Path, metavar="PREFIX", help="of the dataset, without .bin and .idx")
    add("--field", default="text", help="the field of a JSON line or column of a Parquet file (default text)")
    add("--format", choices=("jsonl", "text", "parquet"), help="of all files (default: by content and endings)")
    add("--skip-bad", action="store_true", help="leave broken lines out; they are counted in the manifest")
    add("--workers", type=int, metavar="N", default=len(os.sched_getaffinity(0)), help="at once (default: a core)")
    return flags


class Progress:
    """A live line on a terminal, a plain one every 15 seconds otherwise."""

    def __init__(self, total: int, start: int) -> None:
        self._total, self._start = total, start  # bytes of all, and those that an earlier run finished
        self._began = time.monotonic()
        self._live = sys.stdout.isatty()
        self._said = 0.0 if self._live else self._began

    def show(self, done: int, state: State) -> None:
        """Bytes of the input that are done, and what they came to."""
        now = time.monotonic()
        if now - self._said < (0.2 if self._live else PLAIN_EVERY_SECONDS):
            return
        self._said = now
        speed = (done - self._start) / max(now - self._began, 1e-3)
        left = (self._total - done) / speed if speed else 0
        line = (
            f"{100 * done / max(self._total, 1):.0f} % of {self._total / 1e6:.1f} MB, {speed / 1e6:.1f} MB/s, "
            f"{state.documents:,} documents, {state.tokens:,} tokens, {left:.0f} s left"
        )
        print(f"\r\033[K{line}" if self._live else line, end="" if self._live else "\n", flush=True)

    def clear(self) -> None:
        if self._live:
            print("\r\033[K", end="", flush=True)


def prepare(args: argparse.Namespace) -> Manifest | None:
    """Make the dataset, or go on with it. Returns its manifest, None where only the last renames were left to do.

    Raises:
        BadLines: after all of the input was read; what was tokenized stays.
    """
    if args.workers < 1:
        raise UsageError(f"--workers {args.workers}: at least one is needed")
    inputs = sources.find(args.input, args.format)
    for source in inputs:
        if source.note:
            print(source.note, flush=True)
    prefix = args.out.absolute()
    if prefix.suffix in (".bin", ".idx"):
        prefix = prefix.with_suffix("")
    name = str(Path(args.tokenizer).absolute()) if os.path.isdir(args.tokenizer) else args.tokenizer
    words = bpe.size_of(args.tokenizer)
    if words:
        name = str(prefix.with_name(f"{prefix.name}-tokenizer"))
    with Build(prefix, plan_of(inputs, name, args.field)) as build:
        if build.finish_interrupted():
            return None
        try:
            if words:
                bpe.train(words, inputs, args.field, Path(name))
            vocabulary = tokenizers.prepare(name, build.tokenizer_file)
            build.open(vocabulary.dtype)
            _tokenize(build, worker.Task(name, build.tokenizer_file, vocabulary, args.field), inputs, args)
            if build.state.bad and not args.skip_bad:
                raise BadLines(_told(build.state))
            if not build.state.documents:
                raise UsageError(f"--input {args.input}: {len(inputs)} files, and no document in them")
        except UsageError:
            if not build.state.documents:
                build.discard()  # nothing to go on from
            raise
        return build.finish(name, vocabulary, inputs)


def _tokenize(build: Build, task: worker.Task, inputs: list[sources.Source], args: argparse.Namespace) -> None:
    """Append every chunk that is not yet in the build, in order."""
    total = sum(source.size for source in inputs)
    chunks = sources.chunks(inputs, args.field)
    done = sum(piece.consumed for _ in range(build.resumed) for piece in next(chunks))
    if build.resumed:
        print(f"going on at {100 * done / total:.0f} % of an earlier run", flush=True)
    progress = Progress(total, done)
    told = build.state.bad > 0
    try:
        for chunk, result in in_order(chunks, task, args.workers):
            with _uninterrupted():
                build.append(chunk, result)
            if build.state.bad and not args.skip_bad:
                if not build.state.documents:  # it is the wrong field, or no JSON at all
                    raise UsageError(f"no document in the first {build.state.bad} lines: {build.state.examples[0]}")
                if not told:
                    progress.clear()
                    print(f"{build.state.examples[0]}; going on to find the others", flush=True)
                told = True
            done += sum(piece.consumed for piece in chunk)
            progress.show(done, build.state)
    finally:
        progress.clear()
        build.close()


def in_order(
    chunks: Iterator[list[Piece]], task: worker.Task, workers: int
) -> Iterator[tuple[list[Piece], worker.Result]]:
    """Each chunk with its result, in the order of `chunks`; at most two a worker are under way."""
    pool = _pool(task, workers)
    waiting: collections.deque[tuple[list[Piece], Future[worker.Result]]] = collections.deque()
    try:
        for chunk in chunks:
            with _uninterrupted():
                waiting.append((chunk, pool.submit(worker.work, chunk)))
            if len(waiting) >= 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise UsageError(f"a worker process was killed; {OUT_OF_MEMORY}") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an early end waits for no chunk; a worker writes nothing


def _pool(task: worker.Task, workers: int) -> Executor:
    """Threads for a Hugging Face tokenizer, which encodes outside Python's lock: its cache is shared, and warm.

    Some 3 % of a chunk's work holds the lock, so beyond MOST_THREADS processes scale better, as for bytes always.
    """
    if task.tokenizer != tokenizers.BYTES and workers <= MOST_THREADS:
        worker.start(task)
        return ThreadPoolExecutor(workers)
    # An early end leaves the pool's semaphores to multiprocessing's tracker, which need not warn when it removes them.
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), worker.start, (task,))


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Within: Ctrl-C waits. A worker that is started here never gets it: it would die of it in its imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _told(state: State) -> str:
    more = state.bad - len(state.examples)
    lines = [*state.examples, f"and {more} more"] if more else state.examples
    return "\n".join([f"{state.bad} broken lines:", *(f"  {line}" for line in lines)])


def _summary(written: Manifest, prefix: Path, seconds: float) -> str:
    left_out = ""
    if written.bad_lines or written.empty_documents:
        left_out = f"\n  left out: {written.bad_lines} broken lines, {written.empty_documents} empty documents"
    return (
        f"{prefix}: {written.documents:,} documents, {written.tokens:,} tokens of {written.vocabulary_size:,} words, "
        f"{written.text_bytes:,} bytes of text in {seconds:.0f} s{left_out}\n"
        f"  train on it: DATA={shlex.quote(str(prefix))}"
    )


def main() -> int:
    for each in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a script's background job inherits it as ignored
        signal.signal(each, signal.default_int_handler)
    began = time.monotonic()
    try:
        args = parser().parse_args()
        written = prepare(args)
    except UsageError as error:
        code, said = 2, str(error)
    except BadLines as error:
        mend = "Mend them, or leave them out: SKIP_BAD=1 (--skip-bad) goes on from here and only writes the dataset"
        code, said = 1, f"{error}\n{mend}"
    except OSError as error:
        code, said = 1, f"{error.filename or args.out}: {error.strerror}; the same command goes on from here"
    except KeyboardInterrupt:
        code, said = 130, "interrupted; the same command goes on from here"
    else:
        print(_summary(written, args.out, time.monotonic() - began) if written else f"{args.out}: finished")
        return 0
    print(f"data: {said}", file=sys.stderr)
    return code


if __name__ == "__main__":
    with outlive_readers():  # a terabyte's tokenizing does not end with `| head`
        code = main()
    ending.leave(code)  # without waiting for the chunks under way
