import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from playbook.record import loading, metrics
from playbook.record.columns import COLUMNS, Lines
from pretraining.errors import UsageError
from pretraining.record import run_folder


@pytest.fixture
def written(tmp_path: Path):
    """`written(line, ...)`: the path of a metrics.jsonl as training writes it."""

    def write(*lines: dict) -> Path:
        writer = run_folder.MetricsWriter(tmp_path / "metrics.jsonl")
        for line in lines:
            writer.write(line)
        writer.close()
        return tmp_path / "metrics.jsonl"

    return write


def train(iteration: int, **changed) -> dict:
    line = {
        "kind": "train", "iteration": iteration, "loss": 2.5 + 1 / 3, "step_time_s": 0.164, "grad_norm": 1e-07,
        "learning_rate": 5e-05, "skipped": False, "finite": True, "time": 1763806530.2,
    }  # fmt: skip
    return line | changed


def test_every_value_is_what_json_reads(written) -> None:
    lines = [
        train(1), train(2, loss=None, finite=False), train(3, skipped=True, learning_rate=None, grad_norm=None),
        train(4, further=3), {"iteration": 5, "kind": "train", "loss": 1}, train(6, step_time_s=7),
    ]  # fmt: skip
    path = written(*lines)
    with path.open("a") as file:
        file.write('{"kind": "eval", "split": "validation", "iteration": 6, "loss": 2.4}\n\n{"kind": "tr')
    found, evaluations = metrics.read(path)
    assert found == Lines.of(lines)
    assert found.iterations.tolist() == [1, 2, 3, 4, 5, 6]
    assert found[0]["loss"] == 2.5 + 1 / 3 and found[1]["loss"] is None and found[2]["skipped"] == 1
    assert [line["loss"] for line in evaluations] == [2.4]


def test_a_file_of_several_chunks_loses_nothing(written, monkeypatch) -> None:
    monkeypatch.setattr("playbook.record.columns.CHUNK", 1000)
    found, _ = metrics.read(written(*(train(number, loss=number / 7) for number in range(1, 101))))
    assert found.column("loss").tolist() == [number / 7 for number in range(1, 101)]


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    found, evaluations = metrics.read(tmp_path / "metrics.jsonl")
    assert (len(found), found.last, evaluations) == (0, 0, [])


def test_lines_are_a_sequence_of_dictionaries() -> None:
    lines = Lines.of([{"iteration": number, "loss": float(number)} for number in range(1, 11)] + [{"loss": 3.0}])
    assert len(lines) == 10 and lines.last == 10
    assert lines[-1]["iteration"] == 10 and isinstance(lines[0]["iteration"], int)
    assert [line["loss"] for line in lines[2:4]] == [3.0, 4.0]
    assert lines.between(3, 5).iterations.tolist() == [3, 4, 5]
    assert len(lines.where(lines.column("loss") > 8)) == 2
    assert np.isnan(lines.column("step_time_s")).all() and lines[0]["step_time_s"] is None
    assert Lines.joined([lines[:5], lines[5:]]) == lines != lines[:5]
    with pytest.raises(IndexError):
        lines[10]
    assert set(COLUMNS) >= set(lines[0]) and not math.isnan(lines[3]["loss"])
    assert json.dumps(lines[3])


def test_a_compressed_file_reads_the_same(written) -> None:
    path = written(train(1), train(2), {"kind": "eval", "split": "test", "iteration": 2, "loss": 2.0})
    plain = metrics.read(path)
    packed = path.with_name(path.name + run_folder.PACKED)
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    lines, evaluations = metrics.read(path)
    assert list(lines) == list(plain[0]) and evaluations == plain[1] and len(lines) == 2
    assert run_folder.holds_run(path.parent) and run_folder.read_run(path.parent).train == [train(1), train(2)]
    packed.write_bytes(packed.read_bytes()[:-10])
    with pytest.raises(UsageError, match=r"metrics.jsonl.gz is damaged: it cannot be unpacked"):
        loading.load(path.parent)
