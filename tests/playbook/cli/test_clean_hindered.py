"""`make clean` where the machine is in the way: what may not be read, is cut short, mounted, or too deep."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from playbook.cli import clean
from pretraining.record import lock, run_folder


@pytest.fixture
def finished(tmp_path: Path) -> Callable[[str], Path]:
    """`finished("run")`: the folder of a run that ended, in nemo_experiments."""

    def make(name: str) -> Path:
        folder = tmp_path / "nemo_experiments" / name
        folder.mkdir(parents=True)
        for file in (run_folder.PLAN, run_folder.ENVIRONMENT):
            run_folder.write_json(folder / file, {"kind": run_folder.KIND, "schema": 1})
        (folder / run_folder.METRICS).write_text("{}\n")
        run_folder.write_outcome(folder, run_folder.Verdict.SUCCEEDED, cause="", exit_code=0)
        return folder

    return make


@pytest.mark.parametrize("unreadable", ["run", "run/tensorboard"])
def test_what_may_not_be_read_stays_and_is_said(finished, tmp_path: Path, monkeypatch, capsys, unreadable: str) -> None:
    runs = tmp_path / "nemo_experiments"
    kept = finished("run") / "tensorboard" / "events.out.tfevents.1"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    other, denied = finished("other"), str(runs / unreadable)
    real = {name: getattr(os, name) for name in ("scandir", "listdir")}

    def refuse(name: str) -> Callable:
        def called(path):
            if os.fspath(path).rstrip("/") == denied:
                raise PermissionError(13, "Permission denied", denied)
            return real[name](path)

        return called

    for name in real:
        monkeypatch.setattr(os, name, refuse(name))
    assert clean.main(["--root", str(tmp_path), "--yes", "--all"]) == 0
    assert "keeping nemo_experiments/run: cannot be read: Permission denied" in capsys.readouterr().out
    assert kept.exists() and not other.exists()


def test_a_run_that_begins_after_the_list_stays(finished, tmp_path: Path, monkeypatch) -> None:
    folder = finished("run")
    held = []

    def agreed() -> bool:
        (folder / "outcome.json").unlink()
        for name in ("environment.json", "metrics.jsonl"):
            (folder / name).unlink()
        held.append(lock.hold(folder, "one", "training"))
        return True

    monkeypatch.setattr(clean, "_agreed", agreed)
    assert clean.main(["--root", str(tmp_path)]) == 0
    assert (folder / "plan.json").exists() and (folder / ".lock").exists()
    held[0].close()


def test_a_removal_that_is_cut_short_is_known_again(finished, tmp_path: Path, monkeypatch) -> None:
    folder = finished("run")
    real, left = Path.unlink, [2]

    def unlink(path: Path, missing_ok: bool = False) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert clean.main(["--root", str(tmp_path), "--yes"]) == 130
    monkeypatch.undo()
    assert folder.exists()
    assert clean.main(["--root", str(tmp_path), "--yes"]) == 0
    assert not folder.exists()


def test_a_real_mount_is_seen_where_one_can_be_made(finished, tmp_path: Path) -> None:
    folder = finished("run")
    for name in ("tensorboard", "theirs"):
        (folder / name if name == "tensorboard" else tmp_path / name).mkdir()
    kept = tmp_path / "theirs" / "events.out.tfevents.1"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    bound = subprocess.run(["mount", "--bind", tmp_path / "theirs", folder / "tensorboard"], capture_output=True)
    if bound.returncode:
        pytest.skip("this process may mount nothing")
    try:
        assert clean.main(["--root", str(tmp_path), "--yes", "--all"]) == 0
        assert kept.exists()
    finally:
        subprocess.run(["umount", folder / "tensorboard"], check=True)


def test_deeper_than_a_path_can_be(finished, tmp_path: Path) -> None:
    folder = finished("run")
    back = os.open(".", os.O_RDONLY)
    try:
        for at in ("deep", "tensorboard"):
            os.chdir(folder)
            for name in (at, *["a" * 200] * 40):
                os.mkdir(name)
                os.chdir(name)
            Path("events.out.tfevents.1").touch()
        os.fchdir(back)
        assert clean.main(["--root", str(tmp_path), "--yes", "--all"]) == 0
        assert sorted(os.listdir(folder)) == ["deep", "tensorboard"]
        found = subprocess.run(["find", folder, "-name", "events*", "-printf", "x"], capture_output=True, check=False)
        assert found.stdout == b"xx"
    finally:
        os.fchdir(back)
        os.close(back)
        subprocess.run(["rm", "-rf", folder], check=True)
