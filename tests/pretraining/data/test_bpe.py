"""A tokenizer trained on the text: the same from the same text, whole or not at all, and never another's."""

import json
import signal
import threading
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import prepare_data
from pretraining.data import bpe, sources
from pretraining.errors import UsageError
from pretraining.inputs import manifest

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "rk", "st", "lé", "m_", "}")]
TEXT = "".join(f"{' ' * (n % 5)}{WORDS[n % 359]}_{n % 37} {WORDS[n * n % 360]}();\n" for n in range(4000))


def prepare(text: Path, tokenizer: str, out: Path) -> manifest.Manifest | None:
    arguments = ["--input", str(text), "--tokenizer", tokenizer, "--out", str(out), "--workers", "1"]
    return prepare_data.prepare(prepare_data.parser().parse_args(arguments))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_it_is_trained_and_taken_for_other_text(text: Path, tmp_path: Path) -> None:
    written = prepare(text, "bpe:600", tmp_path / "made")
    folder = tmp_path / "made-tokenizer"
    assert written and written.tokenizer == str(folder) and written.vocabulary_size == 600
    assert written.tokens < len(TEXT) / 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token_id == written.end_of_document == tokenizer.get_vocab()["<|end_of_text|>"]
    unseen = "Ωmega\t{ never seen } ' s"
    assert tokenizer.decode(tokenizer(unseen)["input_ids"]) == unseen
    other = tmp_path / "other.txt"
    other.write_text(unseen)
    assert prepare(other, str(folder), tmp_path / "other").vocabulary_size == 600


def test_the_same_text_makes_the_same_tokenizer_and_keeps_it(text: Path, tmp_path: Path, capsys) -> None:
    for name in ("one", "two"):
        prepare(text, "bpe:6_00", tmp_path / name)
    one, two = (tmp_path / f"{name}-tokenizer" / "tokenizer.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    for end in (".bin", ".idx"):
        (tmp_path / f"one{end}").unlink()
    before = one.stat().st_mtime_ns
    capsys.readouterr()
    prepare(text, "bpe:600", tmp_path / "one")
    assert one.stat().st_mtime_ns == before and "training" not in capsys.readouterr().out
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "two.bin").read_bytes()


def test_another_texts_tokenizer_is_left_alone(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made-tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(prepare_data.UsageError, match="made-tokenizer exists, and was not made of this text"):
        prepare(text, "bpe:600", tmp_path / "made")
    assert (folder / "tokenizer.json").read_text() == "{}" and not (tmp_path / "made.bin").exists()


@pytest.mark.parametrize("asked", ["bpe:", "bpe:16k", "bpe:-600", "bpe:511", "bpe:900000", "bpe:600.0"])
def test_a_size_that_is_none(text: Path, tmp_path: Path, asked: str) -> None:
    with pytest.raises(prepare_data.UsageError, match="bpe:SIZE takes 512 to 262144 words"):
        prepare(text, asked, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_too_little_text_for_so_many_words(text: Path, tmp_path: Path) -> None:
    with pytest.raises(prepare_data.UsageError, match=r"bpe:90000: the text has pieces for \d+ words only"):
        prepare(text, "bpe:90000", tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_what_a_longer_text_is_trained_on(tmp_path: Path, monkeypatch) -> None:
    """Chunks spread over all of it, and of JSON its field; a broken line is the tokenizing's to tell."""
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"body": f"document {n}"}) + "\n" for n in range(1000)) + "no JSON\n")
    monkeypatch.setattr(sources, "CHUNK_BYTES", 1000)
    monkeypatch.setitem(sources.SLOT_BYTES, "jsonl", 1000)
    monkeypatch.setattr(bpe, "MOST_BYTES", path.stat().st_size // 4)
    inputs = sources.find(str(path), None)
    found = [int(text.split()[1]) for text in bpe._texts(inputs, "body")]
    assert 180 < len(found) < 280 and min(found) < 50 and max(found) > 750


@pytest.mark.parametrize("name", ["bpe", "BPE:2048", "bpe2048", "bpe-2048", "bpe=16k"])
def test_a_misspelt_name(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"{name}: bpe:SIZE takes 512 to"):
        bpe.size_of(name)


@pytest.mark.parametrize("name", ["bytes", "gpt2", "me/bpe-2048", "bpe-512", "bpemb"])
def test_another_tokenizer(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bpe-512").mkdir()
    assert bpe.size_of(name) is None


def test_ctrl_c_does_not_wait_for_the_tokenizer() -> None:
    """Its library runs in Rust, where Python hears of no signal."""
    release = threading.Event()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            bpe._interruptibly(lambda: release.wait(20))
    finally:
        release.set()
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ZeroDivisionError):
        bpe._interruptibly(lambda: 1 / 0)
