"""`make data`: whatever the format, the workers and the interruptions, the same dataset; and what it refuses."""

import errno
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

import prepare_data
from pretraining.data import build, sources
from pretraining.inputs import manifest

TEXTS = [
    "def f(x):\n\treturn x",
    "caf\u00e9 \u4f60\u597d \U0001f600",
    "",
    "last",
    *(f"document {n}: " + "word " * (n % 50) for n in range(400)),
]
END = 256
INTERRUPTED = "data: interrupted; the same command goes on from here\n"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch) -> None:
    """Chunks of 2 kB, so that a small corpus has many."""
    scripts_own = {"USE_TORCH": "0", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    for name, value in {**scripts_own, "PYTHONWARNINGS": "default", "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)  # which the script sets: not for the tests that follow
    monkeypatch.setattr(sources, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(sources, "SLOT_BYTES", {"jsonl": 1500, "text": 700})


def json_lines(texts: list[str] = TEXTS) -> bytes:
    return b"".join(json.dumps({"id": n, "text": text}).encode() + b"\n" for n, text in enumerate(texts))


def prepare(*words: str) -> manifest.Manifest | None:
    """In this process, with the small chunks."""
    return prepare_data.prepare(prepare_data.parser().parse_args(["--tokenizer", "bytes", "--workers", "1", *words]))


def documents(prefix: Path) -> list[bytes]:
    """The documents of a bytes dataset, read by Megatron; each ends with the end of the document."""
    found = list(dataset := IndexedDataset(str(prefix)))
    assert all(ids[-1] == END and (ids[:-1] < 256).all() for ids in found)
    assert list(dataset.document_indices) == list(range(len(found) + 1))
    return [bytes(ids[:-1].astype(np.uint8)) for ids in found]


def same_dataset(one: Path, other: Path) -> bool:
    return all(Path(f"{one}{end}").read_bytes() == Path(f"{other}{end}").read_bytes() for end in (".bin", ".idx"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, Path]:
    """A JSONL file, and the dataset that Megatron's own builder makes of it."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "corpus.jsonl").write_bytes(json_lines())
    builder = IndexedDatasetBuilder(str(folder / "expected.bin"), dtype=np.uint16)
    for text in filter(None, TEXTS):
        ids = [*text.encode(), END]
        builder.add_document(ids, [len(ids)])
    builder.finalize(str(folder / "expected.idx"))
    return folder / "corpus.jsonl", folder / "expected"


def test_the_files_are_those_of_megatrons_builder(plain, tmp_path: Path, monkeypatch) -> None:
    corpus, expected = plain
    monkeypatch.setattr(build, "BLOCK", 7)  # the index in many blocks
    written = prepare("--input", str(corpus), "--out", str(tmp_path / "made"))
    assert same_dataset(tmp_path / "made", expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.bin", "made.idx", "made.manifest.json"]
    assert written == manifest.read(str(tmp_path / "made"))
    assert (written.tokenizer, written.vocabulary_size, written.end_of_document) == ("bytes", 257, END)
    assert (written.documents, written.empty_documents, written.bad_lines) == (len(TEXTS) - 1, 1, 0)
    assert written.text_bytes == sum(len(text.encode()) for text in TEXTS) == written.tokens - written.documents
    assert written.largest_token == END and written.sources == [[str(corpus), corpus.stat().st_size]]
    for end, digest in written.sha256.items():
        assert hashlib.sha256(Path(f"{expected}{end}").read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compression_changes_nothing(plain, tmp_path: Path, ending: str) -> None:
    """Two members or frames, as concatenated files have."""
    content = json_lines()
    compress = gzip.compress if ending == ".gz" else zstandard.ZstdCompressor().compress
    (tmp_path / f"corpus.jsonl{ending}").write_bytes(compress(content[:9000]) + compress(content[9000:]))
    prepare("--input", str(tmp_path / "*.jsonl*"), "--out", str(tmp_path / "made"))
    assert same_dataset(tmp_path / "made", plain[1])


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_truncated_file_is_damaged(tmp_path: Path, ending: str) -> None:
    compress = gzip.compress if ending == ".gz" else zstandard.ZstdCompressor().compress
    (tmp_path / f"corpus.jsonl{ending}").write_bytes(compress(json_lines())[:-10])
    with pytest.raises(prepare_data.UsageError, match=rf"corpus.jsonl{ending} is damaged"):
        prepare("--input", str(tmp_path / "corpus*"), "--out", str(tmp_path / "made"))
    assert not (tmp_path / "made.idx").exists()


def test_plain_text_is_cut_at_line_ends(tmp_path: Path) -> None:
    lines = [f"line {n} " + "x" * (n % 90) + "\n" for n in range(100)]
    (tmp_path / "book.txt").write_text("".join(lines))
    (tmp_path / "note.md").write_text("short, without an end")
    with gzip.open(tmp_path / "packed.txt.gz", "wt") as file:
        file.writelines(lines)
    prepare("--input", f"{tmp_path}/book.txt {tmp_path}/note.md {tmp_path}/packed.txt.gz", "--out", f"{tmp_path}/made")
    found = documents(tmp_path / "made")
    middle = found.index(b"short, without an end")
    assert b"".join(found[:middle]) == "".join(lines).encode() and middle > 3
    assert all(piece.endswith(b"\n") for piece in found[:middle])
    assert found[middle + 1 :] == found[:middle]


def test_parquet(plain, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet is read where pyarrow is installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "corpus.parquet", row_group_size=100)
    prepare("--input", str(tmp_path / "corpus.parquet"), "--out", str(tmp_path / "made"))
    assert same_dataset(tmp_path / "made", plain[1])


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A Hugging Face tokenizer's folder: byte-level BPE of 300 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = ["<start>", "<end>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=words, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator(TEXTS, trainer)
    folder = tmp_path / "my tokenizer"
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<start>", "eos_token": "<end>"})
    )
    return folder


def test_a_hugging_face_tokenizer(plain, tokenizer: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    arguments = ("--tokenizer", str(tokenizer), "--input", str(plain[0]))
    written = prepare(*arguments, "--out", str(tmp_path / "made"))
    fast = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    dataset = IndexedDataset(str(tmp_path / "made"))
    expected = [[*fast.encode(text, add_special_tokens=False).ids, 1] for text in TEXTS if text]
    assert [dataset[number].tolist() for number in range(len(dataset))] == expected
    assert (written.vocabulary_size, written.end_of_document, written.tokenizer) == (300, 1, str(tokenizer))


def test_threads_and_processes_make_the_same(plain, tokenizer: Path, tmp_path: Path) -> None:
    for workers in (1, 2, prepare_data.MOST_THREADS + 1):
        words = ("--tokenizer", str(tokenizer), "--input", str(plain[0]), "--workers", str(workers))
        prepare(*words, "--out", str(tmp_path / f"{workers}"))
    assert same_dataset(tmp_path / "2", tmp_path / "1") and same_dataset(tmp_path / "17", tmp_path / "1")


def test_a_broken_line_in_a_thread(script, tokenizer: Path, tmp_path: Path) -> None:
    lines = json_lines().splitlines(keepends=True) * 60  # 3 chunks
    lines[20_000] = b"{\n"
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    words = ("--input", f"{tmp_path}/a.jsonl", "--out", f"{tmp_path}/made", "--workers", "2")
    process = script("--tokenizer", str(tokenizer), *words)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and f"data: 1 broken lines:\n  {tmp_path}/a.jsonl:20001: not JSON" in said
    assert not (tmp_path / "made.idx").exists()


def test_a_thread_that_fails(plain, tokenizer: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Its error is told as any other, what came before stays, and the next run goes on from there."""
    work = prepare_data.worker.work

    def gone(chunk: list[sources.Piece]) -> object:
        if chunk[0].start > 10_000:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(chunk[0].source.path))
        return work(chunk)

    words = ["--tokenizer", str(tokenizer), "--input", str(plain[0]), "--out", str(tmp_path / "made"), "--workers", "2"]
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *words])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(prepare_data.worker, "work", gone)
    assert prepare_data.main() == 1
    assert f"data: {plain[0]}: No such file or directory; the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(prepare_data.worker, "work", work)
    assert prepare_data.main() == 0 and "going on at" in capsys.readouterr().out
    prepare(*words[:4], "--out", str(tmp_path / "whole"))
    assert same_dataset(tmp_path / "made", tmp_path / "whole")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "cut', "not JSON (Unterminated string starting at at column 10)"),
        (b'{"text": "\xff"}', "not UTF-8 (invalid start byte)"),
        (b"[1]", "no JSON object but list"),
        (b'{"texts": "x", "id": 1}', "no field 'text', only 'texts', 'id'"),
        (b'{"text": null}', "its 'text' is no string but null"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_broken_line_is_told_with_its_number(plain, tmp_path: Path, line: bytes, why: str) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = json_lines().splitlines(keepends=True)
    corpus.write_bytes(b"".join([*lines[:300], b"\n", line + b"\n", *lines[300:], line]))
    arguments = ("--input", str(corpus), "--out", str(tmp_path / "made"))
    with pytest.raises(prepare_data.BadLines) as told:
        prepare(*arguments)
    assert str(told.value).splitlines() == [
        "2 broken lines:", f"  {corpus}:302: {why}", f"  {corpus}:{len(lines) + 3}: {why}",
    ]  # fmt: skip
    assert not (tmp_path / "made.idx").exists() and not (tmp_path / "made.bin").exists()
    written = prepare(*arguments, "--skip-bad")
    assert same_dataset(tmp_path / "made", plain[1]) and written.bad_lines == 2


def test_the_wrong_field_ends_at_once(plain, tmp_path: Path) -> None:
    with pytest.raises(prepare_data.UsageError, match="no field 'body', only 'id', 'text'"):
        prepare("--input", str(plain[0]), "--field", "body", "--out", str(tmp_path / "made"))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_left_alone(plain, tmp_path: Path) -> None:
    (tmp_path / "made.idx").write_text("mine")
    with pytest.raises(prepare_data.UsageError, match=r"made.idx exists, and a dataset is never overwritten"):
        prepare("--input", str(plain[0]), "--out", str(tmp_path / "made.idx"))
    assert [path.name for path in tmp_path.iterdir()] == ["made.idx"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--input", "nowhere/*.jsonl"), "--input nowhere/*.jsonl: no such file, and nothing matches it"),
        (("--input", "tests"), "it is a folder: give tests/*.jsonl"),
        (("--input", "Makefile"), "cannot tell its format; known endings are .jsonl, "),
        (
            ("--input", "README.md", "--tokenizer", "no/tokenizer"),
            "--tokenizer no/tokenizer cannot be had from Hugging",
        ),
        (("--input", "README.md", "--workers", "0"), "--workers 0: at least one is needed"),
    ],
)
def test_what_is_refused(monkeypatch, project, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("HF_ENDPOINT", "https://localhost.invalid")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with pytest.raises(prepare_data.UsageError) as told:
        prepare(*arguments, "--out", str(tmp_path / "made"))
    assert words in str(told.value)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("made")]


class Stopped(Exception):
    """An interruption somewhere in between."""


@pytest.mark.parametrize("after", [1, 4])
def test_it_goes_on_after_an_interruption(plain, tmp_path: Path, monkeypatch, after: int) -> None:
    corpus, expected = plain
    arguments = ("--input", str(corpus), "--out", str(tmp_path / "made"))
    append = build.Build.append
    appended = []

    def interrupted(self: build.Build, *more: object) -> None:
        if len(appended) == after:
            self.commit = lambda: None  # as after a kill: what follows the last commit is lost
            self._tokens.write(b"torn")
            raise Stopped
        append(self, *more)
        self.commit()
        appended.append(more)

    monkeypatch.setattr(build.Build, "append", interrupted)
    with pytest.raises(Stopped):
        prepare(*arguments)
    assert not (tmp_path / "made.idx").exists() and (tmp_path / "made.building").is_dir()
    counted: list[object] = []
    monkeypatch.setattr(build.Build, "append", lambda self, *more: (append(self, *more), counted.append(more))[0])
    with pytest.raises(prepare_data.UsageError, match=r"an unfinished run in .* had other field"):
        prepare(*arguments, "--field", "id")
    prepare(*arguments)
    assert same_dataset(tmp_path / "made", expected)
    assert len(counted) == len(list(sources.chunks(sources.find(str(corpus)), "text"))) - after
    assert (
        manifest.read(str(tmp_path / "made")).sha256[".bin"]
        == hashlib.sha256((tmp_path / "made.bin").read_bytes()).hexdigest()
    )


def test_an_interruption_between_the_last_renames(plain, tmp_path: Path, monkeypatch) -> None:
    arguments = ("--input", str(plain[0]), "--out", str(tmp_path / "made"))
    replace = Path.replace

    def until_the_index(self: Path, target: Path) -> Path:
        if self.name == "index":
            raise Stopped
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", until_the_index)
    with pytest.raises(Stopped):
        prepare(*arguments)
    assert (tmp_path / "made.bin").exists() and not (tmp_path / "made.idx").exists()
    monkeypatch.setattr(Path, "replace", replace)
    assert prepare(*arguments) is None
    assert same_dataset(tmp_path / "made", plain[1]) and not (tmp_path / "made.building").exists()


@pytest.fixture
def script(project: Path, environment: Callable[..., dict[str, str]]):
    """`script("--input", ...)`: the running script."""

    def run(*words: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*before, sys.executable, str(project / "assets" / "prepare_data.py"), "--tokenizer", "bytes", *words],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    return run


def begun(folder: Path) -> bool:
    """Whether tokens of a dataset "made" in `folder` are on the disk."""
    tokens = folder / "made.building" / "tokens"
    return tokens.exists() and tokens.stat().st_size > 0


def test_ctrl_c_and_any_number_of_workers(script, until, tmp_path: Path) -> None:
    """The real thing: 60 MB, interrupted, gone on with by other workers."""
    (tmp_path / "a.jsonl").write_bytes(json_lines() * 1200)
    process = script("--input", f"{tmp_path}/a.jsonl", "--out", f"{tmp_path}/made", "--workers", "2")
    until(lambda: begun(tmp_path))
    os.killpg(process.pid, signal.SIGINT)
    began = time.monotonic()
    assert (process.communicate(timeout=60)[1], process.returncode) == (INTERRUPTED, 130)
    assert time.monotonic() - began < 5
    process = script("--input", f"{tmp_path}/a.jsonl", "--out", f"{tmp_path}/made", "--workers", "1")
    told, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "going on at" in told and f"train on it: DATA={tmp_path}/made" in told
    expected = [text.encode() for text in TEXTS if text]
    dataset = IndexedDataset(str(tmp_path / "made"))
    assert len(dataset) == len(expected) * 1200
    assert [bytes(dataset[n][:-1].astype(np.uint8)) for n in range(0, len(dataset), 997)] == [
        expected[n % len(expected)] for n in range(0, len(dataset), 997)
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_background_job_ends_by_signals_too(script, until, tmp_path: Path, number: int) -> None:
    """A script's background job inherits SIGINT as ignored."""
    (tmp_path / "a.jsonl").write_bytes(json_lines() * 1200)
    words = ("--input", f"{tmp_path}/a.jsonl", "--out", f"{tmp_path}/made", "--workers", "1")
    process = script(*words, before=("sh", "-c", 'trap "" INT; exec "$@"', "sh"))
    until(lambda: begun(tmp_path))
    process.send_signal(number)
    assert (process.communicate(timeout=60)[1], process.returncode) == (INTERRUPTED, 130)


def test_threads_go_on_after_ctrl_c(script, until, tokenizer: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines() * 200)
    words = ("--tokenizer", str(tokenizer), "--input", f"{tmp_path}/a.jsonl", "--workers", "2")
    process = script(*words, "--out", f"{tmp_path}/made")
    until(lambda: begun(tmp_path))
    os.killpg(process.pid, signal.SIGINT)
    assert (process.communicate(timeout=60)[1], process.returncode) == (INTERRUPTED, 130)
    prepare(*words, "--out", f"{tmp_path}/whole")
    monkeypatch.setattr(sources, "CHUNK_BYTES", sources.MIB)  # the script's
    monkeypatch.setattr(sources, "SLOT_BYTES", {"jsonl": sources.MIB, "text": sources.MIB})
    prepare(*words, "--out", f"{tmp_path}/made")
    assert "going on at" in capsys.readouterr().out and same_dataset(tmp_path / "made", tmp_path / "whole")


def test_ctrl_c_waits_for_no_long_line(script, until, tokenizer: Path, tmp_path: Path) -> None:
    """A thread cannot be ended, so the process is, in the midst of ten seconds and more of tokenizing."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a long line " * 3_000_000}))
    words = ("--input", f"{tmp_path}/a.jsonl", "--out", f"{tmp_path}/made", "--workers", "2")
    process = script("--tokenizer", str(tokenizer), *words)
    until(lambda: (tmp_path / "made.building" / "tokens").exists())
    time.sleep(1)  # until it tokenizes
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert (process.communicate(timeout=60)[1], process.returncode) == (INTERRUPTED, 130)
    assert time.monotonic() - began < 3
