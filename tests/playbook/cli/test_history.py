"""`make history`: every run in a line, whatever became of it."""

import fcntl
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from playbook.cli import history
from pretraining.record import lock, run_folder


def listed(capsys, runs: Path, *flags: str) -> str:
    assert history.main(["--runs", str(runs), *flags]) == 0
    return capsys.readouterr().out


def test_all_runs_newest_first(make_run, capsys) -> None:
    for day, (name, outcome) in enumerate(
        {"first": {}, "second": {"verdict": "diverged", "cause": "NaN"}, "third": {"verdict": "incomplete"}}.items(), 1
    ):
        make_run(
            "bf16", name=name, outcome=outcome, environment={"model": "tiny", "started": f"2026-11-0{day}T00:00:00Z"}
        )
    runs = make_run("nvfp4", name="empty", iterations=0, validation=None, outcome={"verdict": "failed"}).parent
    (runs / "comparison").mkdir()
    lines = listed(capsys, runs).splitlines()[2:]
    assert [line.split()[:4] for line in lines] == [
        ["third", "bf16", "incomplete", "60/60"],
        ["second", "bf16", "diverged", "60/60"],
        ["first", "bf16", "succeeded", "60/60"],
        ["empty", "nvfp4", "failed", "0/60"],
    ]
    assert all(len(line.rstrip()) <= 80 for line in lines)
    make_run("bf16", name="a-name-that-is-much-longer-than-any-that-the-playbook-gives-to-a-run-of-its-own-making-ever")
    assert "…" not in listed(capsys, runs)
    found = [each for each in json.loads(listed(capsys, runs, "--json")) if each["name"] == "first"]
    assert (found[0]["name"], found[0]["verdict"], found[0]["step_time"]) == ("first", "succeeded", 0.2)


@pytest.mark.parametrize("how", ["profiled", "measured"])
def test_a_watched_run_has_no_step_time(make_run, capsys, how: str) -> None:
    runs = make_run("bf16", environment={how: [56, 60]}).parent
    assert how in listed(capsys, runs)
    (entry,) = json.loads(listed(capsys, runs, "--json"))
    assert [name for name in ("profiled", "measured") if entry[name]] == [how]
    assert entry["step_time"] is entry["tokens_per_second"] is None


def test_an_emulation_is_called_one_and_a_resumed_run_counts_whole(make_run, capsys) -> None:
    facts = {"start_iteration": 19, "train_iters": 40}
    folder = make_run("nvfp4", arithmetic="emulated", iterations=40, parity=facts)
    assert "nvfp4, emulated succeeded 40/40" in " ".join(listed(capsys, folder.parent).split())
    (entry,) = json.loads(listed(capsys, folder.parent, "--json"))
    assert (entry["precision"], entry["arithmetic"], entry["iterations"]) == ("nvfp4", "emulated", 40)


def test_a_damaged_run_is_listed(make_run, capsys) -> None:
    folder = make_run("bf16")
    (folder / "environment.json").write_text("{")
    (entry,) = json.loads(listed(capsys, folder.parent, "--json"))
    assert (entry["name"], entry["verdict"]) == ("bf16", "unreadable")
    assert "was it edited" in entry["cause"]


def test_no_runs_is_no_failure(capsys, tmp_path: Path) -> None:
    assert "There is no run in" in listed(capsys, tmp_path / "nowhere")
    assert json.loads(listed(capsys, tmp_path, "--json")) == []


def test_a_run_is_running_while_its_lock_is_held(make_run, capsys) -> None:
    folder = make_run("nvfp4", outcome={"verdict": run_folder.Verdict.INCOMPLETE})

    def listed() -> tuple[str, str]:
        history.main(["--runs", str(folder.parent), "--json"])
        (entry,) = json.loads(capsys.readouterr().out)
        return entry["verdict"], entry["cause"]

    assert listed()[0] == "incomplete"
    process = lock.Process.this("one", "training")
    with (folder / lock.FILE).open("w") as file:
        file.write(json.dumps(asdict(process)) + "\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_SH)
        assert listed() == ("running", f"in use by process {process.number} (training)")
    assert listed()[0] == "incomplete"


def test_a_run_that_is_removed_while_it_is_read_is_none(make_run, monkeypatch) -> None:
    gone = make_run("bf16", name="gone")

    def read(folder: Path) -> None:
        shutil.rmtree(folder)
        raise FileNotFoundError(folder)

    monkeypatch.setattr(history, "_entry", read)
    assert history.entries(gone.parent) == []
