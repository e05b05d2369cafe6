"""`make data`, around the script that does the work."""

import signal
import sys
from pathlib import Path

import pytest

from playbook.cli import data
from pretraining.errors import UsageError


def test_a_killed_script_ran_out_of_memory(monkeypatch, capsys, tmp_path: Path) -> None:
    """With threads nothing is left that could say so."""
    (tmp_path / "killed.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setattr(data, "SCRIPT", tmp_path / "killed.py")
    monkeypatch.setattr(data.local_python, "python", lambda: sys.executable)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert data.run(["--runtime", "local", "--input", "x.jsonl", "--tokenizer", "bytes"]) == 137
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == (
        "data: it was killed; if nobody did that, memory ran out: the same command with fewer --workers goes on from "
        "here\n"
    )


@pytest.mark.parametrize(
    ("patterns", "tokenizer", "name"),
    [
        ("corpus/*.jsonl", "bytes", "corpus-bytes"),
        ("a/mine.txt b.txt", "meta-llama/Llama-3.1-8B", "mine-Llama-3.1-8B"),
        ("mine.txt", "bpe:16384", "mine-bpe-16384"),
    ],
)
def test_a_dataset_without_a_name(patterns: str, tokenizer: str, name: str) -> None:
    assert data._name(patterns, tokenizer) == name


def test_a_size_that_is_none_is_told_before_anything_is_set_up() -> None:
    with pytest.raises(UsageError, match="bpe:SIZE takes 512 to"):
        data.run(["--input", "x.jsonl", "--tokenizer", "bpe:16k"])
