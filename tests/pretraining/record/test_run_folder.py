"""The run folder: atomic files, a reader that never trips over half of one, and one verdict."""

import errno
import gzip
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pretraining.record import files, run_folder
from pretraining.record.run_folder import Verdict
from pretraining.record.schema import Damaged


def test_a_reader_never_meets_half_a_file(tmp_path: Path) -> None:
    path, stop = tmp_path / "environment.json", threading.Event()
    contents = [{"number": number, "filling": "x" * 200_000} for number in (0, 1)]
    run_folder.write_json(path, contents[0])

    def write() -> None:
        for number in range(60):
            run_folder.write_json(path, contents[number % 2])
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not stop.is_set():
        assert json.loads(path.read_text()) in contents
        reads += 1
    writer.join()
    assert reads > 5
    assert [found.name for found in tmp_path.iterdir()] == ["environment.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "outcome.json"
    run_folder.write_json(path, {"old": True})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        run_folder.write_json(path, {"new": True})
    assert json.loads(path.read_text()) == {"old": True}
    assert [found.name for found in tmp_path.iterdir()] == ["outcome.json"]


def test_a_file_system_without_hard_links_keeps_the_first_outcome(tmp_path: Path, monkeypatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    assert run_folder.write_outcome(tmp_path, Verdict.DIVERGED, cause="NaN", exit_code=1)
    assert not run_folder.write_outcome(tmp_path, Verdict.FAILED, cause="later", exit_code=1)
    assert run_folder.read_facts(tmp_path).verdict is Verdict.DIVERGED
    assert [found.name for found in tmp_path.iterdir()] == [run_folder.OUTCOME]


def test_writers_with_one_process_number_do_not_share_a_file(tmp_path: Path, monkeypatch) -> None:
    """As in containers on two nodes, which write an outcome into one folder at the same moment."""
    replaced, names = os.link, []

    def other_first(beside: Path, path: Path) -> None:
        names.append(beside.name)
        if len(names) == 1:
            assert run_folder.write_outcome(tmp_path, Verdict.KILLED, cause="theirs", exit_code=1)
        replaced(beside, path)

    monkeypatch.setattr(os, "link", other_first)
    assert not run_folder.write_outcome(tmp_path, Verdict.FAILED, cause="ours", exit_code=1)
    assert run_folder.read_facts(tmp_path).outcome["cause"] == "theirs" and len(set(names)) == 2


def test_what_a_killed_process_left_half_written_is_swept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # it was killed before
    monkeypatch.setattr(os, "link", lambda *_: None)
    run_folder.write_outcome(tmp_path, Verdict.KILLED, cause="", exit_code=1)
    monkeypatch.undo()
    mine = {".notes.json.old", ".notes.json", run_folder.PLAN}
    for name in mine:
        (tmp_path / name).touch()
    assert len(list(tmp_path.iterdir())) == 4
    files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == mine


def test_what_json_does_not_know_is_written_as_words(tmp_path: Path) -> None:
    run_folder.write_json(tmp_path / "x.json", {"path": Path("/a"), "verdict": Verdict.KILLED, "name": "café"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"path": "/a", "verdict": "killed", "name": "café"}


def test_the_first_outcome_wins(tmp_path: Path) -> None:
    assert run_folder.write_outcome(tmp_path, Verdict.DIVERGED, cause="NaN", exit_code=1, details={"iterations": 3})
    assert not run_folder.write_outcome(tmp_path, Verdict.FAILED, cause="later", exit_code=1)
    run = run_folder.read_run(tmp_path)
    assert run.verdict is Verdict.DIVERGED
    assert (run.outcome["cause"], run.outcome["exit_code"], run.outcome["iterations"]) == ("NaN", 1, 3)
    assert set(run.outcome) == {"kind", "schema", "verdict", "cause", "exit_code", "ended", "iterations"}


def test_metrics_are_there_line_by_line_as_they_are_written(tmp_path: Path) -> None:
    writer = run_folder.MetricsWriter(tmp_path / run_folder.METRICS)
    for iteration in (1, 2):
        writer.write({"kind": "train", "iteration": iteration})
        assert len(run_folder.read_run(tmp_path).train) == iteration
    writer.write({"kind": "eval", "split": "validation", "iteration": 2, "loss": 2.0})
    writer.close()
    assert [line["split"] for line in run_folder.read_run(tmp_path).evaluations] == ["validation"]


def test_a_writer_appends_to_what_is_there(tmp_path: Path) -> None:
    for iteration in (1, 2):
        writer = run_folder.MetricsWriter(tmp_path / run_folder.METRICS)
        writer.write({"kind": "train", "iteration": iteration})
        writer.close()
    assert [line["iteration"] for line in run_folder.read_run(tmp_path).train] == [1, 2]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_cut_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    whole = json.dumps({"kind": "train", "iteration": 1, "loss": 2.5}) + "\n"
    (tmp_path / run_folder.METRICS).write_text(whole + whole[:cut])
    assert [line["iteration"] for line in run_folder.read_run(tmp_path).train] == [1]


def test_bytes_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    whole = json.dumps({"kind": "train", "iteration": 1}).encode() + b"\n"
    (tmp_path / run_folder.METRICS).write_bytes(
        whole + b"\0" * 512 + b"\xff\xfe"
    )  # what ext4 may leave after a power cut
    assert len(run_folder.read_run(tmp_path).train) == 1


def test_missing_files_leave_their_part_empty(tmp_path: Path) -> None:
    (tmp_path / run_folder.METRICS).touch()
    run = run_folder.read_run(tmp_path)
    assert (run.plan, run.environment, run.outcome, run.train, run.evaluations) == ({}, {}, {}, [], [])
    assert (run.parity, run.precision) == ({}, {})
    assert run.verdict is Verdict.INCOMPLETE


@pytest.mark.parametrize("name", [run_folder.PLAN, run_folder.ENVIRONMENT, run_folder.OUTCOME, run_folder.METRICS])
def test_any_file_of_a_record_makes_a_run_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}\n")
    assert run_folder.read_run(tmp_path).folder == tmp_path


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / run_folder.LOG).write_text("only a log")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="is not a run folder"):
            run_folder.read_run(folder)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / run_folder.OUTCOME).write_text('{"verdict": ')
    with pytest.raises(Damaged, match=r"outcome.json is damaged: it is not valid JSON .*was it edited\?"):
        run_folder.read_run(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds no JSON object"),
        ('"x"', "holds no JSON object"),
        ('{"verdict": "fine"}', 'the verdict "fine" is none of succeeded'),
    ],
)
def test_a_file_that_is_no_records_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / run_folder.OUTCOME).write_text(content)
    with pytest.raises(Damaged, match=rf"outcome.json .*{words}.*was it edited"):
        run_folder.read_run(tmp_path)


def test_parity_and_precision(tmp_path: Path) -> None:
    run_folder.write_json(tmp_path / run_folder.ENVIRONMENT, {"parity": {"seed": 1}, "precision": {"name": "bf16"}})
    run = run_folder.read_run(tmp_path)
    assert (run.parity, run.precision) == ({"seed": 1}, {"name": "bf16"})


def test_names_sort_by_time() -> None:
    assert run_folder.run_name("nvfp4", "tiny").endswith("Z-nvfp4-tiny")
    assert len(run_folder.run_name("nvfp4", "tiny")) == len("20261122T101530Z-nvfp4-tiny")


def test_the_reader_needs_the_standard_library_alone(project: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(project / 'assets')!r}); "
    code += "import pretraining.record.run_folder, pretraining.request.settings"
    ended = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", [run_folder.METRICS, run_folder.SAMPLES, run_folder.samples_of(8)])
@pytest.mark.parametrize("broken", ["cut short", "damaged", "no gzip"])
def test_a_broken_compressed_file_is_named(name: str, broken: str, tmp_path: Path) -> None:
    run_folder.write_json(tmp_path / run_folder.ENVIRONMENT, {})
    content = gzip.compress(b"".join(b'{"device": %d}\n' % number for number in range(2000)))
    damaged = {"cut short": content[:-30], "damaged": content[:40] + b"\xff" * 40 + content[80:], "no gzip": b"{}\n"}
    (tmp_path / f"{name}.gz").write_bytes(damaged[broken])
    with pytest.raises(Damaged, match=re.escape(f"{name}.gz")):
        run_folder.read_run(tmp_path)
