"""Attempts to make `make clean` take what is somebody else's, or hang: each names what has to be there afterwards."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from playbook.cli import clean, owned
from playbook.compare import saved
from pretraining.record import lock, run_folder

LOG = Path(__file__).parents[2] / "logs" / "cpu-fp32-0.3.1.log"
Attempt = Callable[[Path, Path], list[Path]]
ATTEMPTS: list[Attempt] = []


def attempt(function: Attempt) -> Attempt:
    """One of the table: given `nemo_experiments` and a folder elsewhere, makes something; gives what has to stay."""
    ATTEMPTS.append(function)
    return function


def run(folder: Path, name: str = "", *, ended: bool = True, **more) -> Path:
    """A run folder as this project makes it."""
    folder.mkdir(parents=True)
    common = {"kind": run_folder.KIND, "schema": 1}
    (folder / "plan.json").write_text(json.dumps({**common, "command": ["train", "--run-dir", name or folder.name]}))
    known = {"precision": {"name": "bf16", "arithmetic": "native"}, "host": socket.gethostname(), "mock_data": True}
    (folder / "environment.json").write_text(json.dumps(common | known | more))
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "train.log").write_text("x")
    if ended:
        run_folder.write_outcome(folder, run_folder.Verdict.SUCCEEDED, cause="", exit_code=0)
    return folder


def file(path: Path, content: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def all_of(folder: Path) -> list[Path]:
    return [folder, *folder.rglob("*")]


# What another tool left.


def _of_another_tool(name: str, content: str) -> Attempt:
    def made(runs: Path, elsewhere: Path) -> list[Path]:
        for each in ("thesis.tex", "photos/1.jpg", "model.ckpt", "train.log", "checkpoints/iter_0000001/__0_0.distcp"):
            file(runs / "theirs" / each)
        file(runs / "theirs" / name, content)
        return all_of(runs / "theirs")

    made.__name__ = f"another tool's {name} with {content[:40]}"
    return attempt(made)


for _name in ("plan.json", "environment.json", "outcome.json", "metrics.jsonl", "comparison.json", "ablation.json",
              "repeats.json", "selfcheck.json", ".lock"):  # fmt: skip
    _of_another_tool(_name, "{}")
_of_another_tool("metrics.jsonl", '{"step": 1}')
_of_another_tool("outcome.json", "")
_of_another_tool("plan.json", "[" * 100_000)
_of_another_tool("environment.json", '{"schema": 1, "kind": "somebody-elses-run", "precision": {"name": 1}}')
_of_another_tool("plan.json", '{"kind": "nvfp4-playbook-run", "schema": "two"}')
_of_another_tool("outcome.json", '{"schema": 1, "verdict": "good", "cause": "", "exit_code": 0}')


@attempt
def a_record_of_theirs_beside_one_of_ours(runs: Path, elsewhere: Path) -> list[Path]:
    file(run(runs / "mixed") / "plan.json", '{"floors": 3}')
    return all_of(runs / "mixed")


@attempt
def a_newer_schema(runs: Path, elsewhere: Path) -> list[Path]:
    file(run(runs / "newer") / "plan.json", json.dumps({"kind": run_folder.KIND, "schema": 9}))
    return all_of(runs / "newer")


@attempt
def a_newer_comparison(runs: Path, elsewhere: Path) -> list[Path]:
    file(runs / "newer" / "comparison.json", '{"kind": "nvfp4-playbook-comparison", "schema": 9}')
    return all_of(runs / "newer")


@attempt
def all_records_damaged(runs: Path, elsewhere: Path) -> list[Path]:
    for name in ("plan.json", "environment.json", "outcome.json"):
        file(run(runs / f"damaged {name}") / name, '{"sche')
        file(runs / "damaged" / name, '{"sche')
    return all_of(runs / "damaged")


@attempt
def a_clone_of_this_project(runs: Path, elsewhere: Path) -> list[Path]:
    file(runs / "clone" / ".git" / "HEAD")
    run(runs / "clone" / "assets" / "results" / "run")
    run(runs / "clone" / "nemo_experiments" / "run")
    return all_of(runs / "clone")


@attempt
def nemo_runs_own_folder(runs: Path, elsewhere: Path) -> list[Path]:
    file(runs / ".nemo_run" / "experiments" / "x" / "plan.json", "{}")
    return all_of(runs / ".nemo_run")


@attempt
def megatrons_default_with_checkpoints(runs: Path, elsewhere: Path) -> list[Path]:
    return [file(runs / "default" / "checkpoints" / "iter_0000001" / "__0_0.distcp")]


@attempt
def an_empty_folder_of_somebody(runs: Path, elsewhere: Path) -> list[Path]:
    (runs / "for tomorrow").mkdir()
    return [runs / "for tomorrow"]


@attempt
def runs_in_a_folder_of_somebody(runs: Path, elsewhere: Path) -> list[Path]:
    run(runs / "kept for the paper" / "first")
    return all_of(runs / "kept for the paper")


# What is somebody's in a folder of ours.


def _in_a_run(*names: str) -> Attempt:
    def made(runs: Path, elsewhere: Path) -> list[Path]:
        folder = run(runs / "own")
        return [file(folder / name) for name in names]

    made.__name__ = f"in a run folder {names[0]}"
    return attempt(made)


_in_a_run("notes.md", "mycode/.git/HEAD", "mycode/plan.json", "train.log.bak", "Metrics.jsonl", "plan.json~")
_in_a_run("checkpoints/notes.md", "checkpoints/iter_0000010/thesis.tex", "checkpoints/best/__0_0.distcp")
_in_a_run("tensorboard/notes.md", "tensorboard/a/b/compare.ipynb")
_in_a_run("wandb/notes.md", "mlruns.md", "ranks/notes.md", "ranks/a/b.log", "plots/loss.png")
_in_a_run("\x1b[31mred", "line\nend", "-rf", " ", "train.log\n", "*", "ä", "plan.json ")
_in_a_run("/".join(["a"] * 400))
_in_a_run("tensorboard/" + "/".join(["a"] * 200) + "/events.out.tfevents.1")
_in_a_run("mlruns/0/" + "/".join(["a"] * 200) + "/loss")


@attempt
def a_name_that_is_no_text(runs: Path, elsewhere: Path) -> list[Path]:
    name = os.fsencode(run(runs / "own")) + b"/\xff\xfe"
    os.close(os.open(name, os.O_CREAT))
    return [Path(os.fsdecode(name))]


@attempt
def a_note_in_a_comparison(runs: Path, elsewhere: Path) -> list[Path]:
    file(runs / "compared" / saved.FILE, '{"kind": "nvfp4-playbook-comparison", "schema": 2}')
    file(runs / "compared" / "report.html")
    return [file(runs / "compared" / "conclusions.md"), file(runs / "compared" / "plots" / "mine.svg")]


@attempt
def folders_with_the_names_of_our_files(runs: Path, elsewhere: Path) -> list[Path]:
    folder = run(runs / "own", ended=False)
    (folder / "train.log").unlink()
    return [file(folder / name / "x") for name in ("train.log", "config.yaml", ".outcome.json.0123")]


# Links and mounts.


@attempt
def a_link_in_a_run_to_elsewhere(runs: Path, elsewhere: Path) -> list[Path]:
    file(elsewhere / "deep" / "file")
    folder = run(runs / "own")
    for name in ("out", "checkpoints", "tensorboard", "ranks"):
        (folder / name).symlink_to(elsewhere / "deep")
    (folder / "wandb").mkdir()
    (folder / "wandb" / "latest-run").symlink_to(elsewhere / "deep")
    return [elsewhere / "deep" / "file", folder / "out", folder / "checkpoints"]


@attempt
def a_record_that_is_a_link(runs: Path, elsewhere: Path) -> list[Path]:
    record_of_ours = run(elsewhere / "run") / "plan.json"
    (runs / "linked").mkdir()
    (runs / "linked" / "plan.json").symlink_to(record_of_ours)
    return [record_of_ours, runs / "linked" / "plan.json", file(runs / "linked" / "train.log")]


@attempt
def links_to_runs_folders_files_and_nothing(runs: Path, elsewhere: Path) -> list[Path]:
    targets = {
        "latest": run(elsewhere / "run"),
        "file": file(elsewhere / "a"),
        "self": runs / "self",
        "up": runs.parent,
    }
    targets |= {"broken": elsewhere / "nothing", "parent": elsewhere}
    for name, target in targets.items():
        (runs / name).symlink_to(target)
    return [*all_of(elsewhere), *(runs / name for name in targets)]


@attempt
def a_hard_link_to_a_checkpoint(runs: Path, elsewhere: Path) -> list[Path]:
    shard = file(run(runs / "own") / "checkpoints" / "iter_0000001" / "__0_0.distcp")
    os.link(shard, elsewhere / "best")
    return [elsewhere / "best"]


def _mounted(at: str) -> Attempt:
    def made(runs: Path, elsewhere: Path) -> list[Path]:
        run(runs / "own")
        return [file(runs / at / "train.log"), file(runs / at / "events.out.tfevents.1")]

    made.__name__ = f"mounted at {at}"
    made.mounted = at
    return attempt(made)


_mounted("own/checkpoints")
_mounted("own/tensorboard")
_mounted("own/disk")
_mounted("own")


# What is no file.


@attempt
def pipes_and_sockets(runs: Path, elsewhere: Path) -> list[Path]:
    folder = run(runs / "own", ended=False)
    os.mkfifo(folder / "profile.json")
    os.mkfifo(folder / "pipe")
    os.mkfifo(runs / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        back = os.open(".", os.O_RDONLY)
        os.chdir(folder)  # a socket's path is short
        listening.bind("trace.json.gz")
        os.fchdir(back)
        os.close(back)
    return [folder / "profile.json", folder / "pipe", runs / "pipe", folder / "trace.json.gz"]


def _pipe_for(name: str) -> Attempt:
    def made(runs: Path, elsewhere: Path) -> list[Path]:
        folder = run(runs / "own", ended=False)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        return all_of(folder)

    made.__name__ = f"a pipe for {name}"
    return attempt(made)


for _name in ("plan.json", "environment.json", "outcome.json", "job.json", ".lock", ".launcher"):
    _pipe_for(_name)


@attempt
def only_pipes(runs: Path, elsewhere: Path) -> list[Path]:
    (runs / "pipes").mkdir()
    for name in (*owned.RECORDS, "metrics.jsonl", "job.json"):
        os.mkfifo(runs / "pipes" / name)
    return all_of(runs / "pipes")


# What lives.


def _live(at: str) -> Attempt:
    def made(runs: Path, elsewhere: Path) -> list[Path]:
        run(runs / "own")
        folder = runs / at
        folder.mkdir(parents=True)
        made.held = lock.hold(folder, "one", "training")
        for path in all_of(folder):
            os.utime(path, (1, 1))  # its clock is another
        file(folder / "events.out.tfevents.1"), file(folder / "metrics.jsonl")
        return all_of(folder)

    made.__name__ = f"a live run at {at}"
    return attempt(made)


_live("live")
_live("own/live")
_live("own/a/b/c/live")
_live("own/tensorboard/live")
_live("own/mlruns/0/live")
_live("own/checkpoints/iter_0000001")
_live("theirs/live")


@attempt
def a_live_run_in_a_comparison(runs: Path, elsewhere: Path) -> list[Path]:
    file(runs / "compared" / saved.FILE, '{"kind": "nvfp4-playbook-comparison", "schema": 2}')
    (runs / "compared" / "plots").mkdir()
    a_live_run_in_a_comparison.held = lock.hold(runs / "compared" / "plots", "one", "training")
    return [file(runs / "compared" / "plots" / "metrics.jsonl")]


@attempt
def a_run_whose_clock_is_ahead(runs: Path, elsewhere: Path) -> list[Path]:
    folder = run(runs / "ahead", ended=False, host="node7", pid=1)
    for path in folder.iterdir():
        os.utime(path, (4e9, 4e9))
    return all_of(folder)


@attempt
def a_finished_run_inside_another(runs: Path, elsewhere: Path) -> list[Path]:
    run(runs / "own")
    return all_of(run(runs / "own" / "inner"))


# Beside nemo_experiments.


@attempt
def logs_that_a_colleague_sent(runs: Path, elsewhere: Path) -> list[Path]:
    return [file(runs.parent / name, LOG.read_text()) for name in ("x.log", "bf16.log", "logs/x.log", "nohup.out")]


@attempt
def the_project_itself(runs: Path, elsewhere: Path) -> list[Path]:
    run(runs.parent / "assets" / "results" / "set" / "run")
    run(runs.parent / "nemo_experiments.old" / "run")
    return [*all_of(runs.parent / "assets"), *all_of(runs.parent / "nemo_experiments.old")]


@attempt
def nemo_experiments_as_a_link(runs: Path, elsewhere: Path) -> list[Path]:
    run(elsewhere / "disk" / "run")
    shutil.rmtree(runs)
    runs.symlink_to(elsewhere / "disk")
    return [runs, *all_of(elsewhere / "disk")]


@attempt
def nemo_experiments_as_a_file(runs: Path, elsewhere: Path) -> list[Path]:
    shutil.rmtree(runs)
    return [file(runs)]


@attempt
def nemo_experiments_as_a_pipe(runs: Path, elsewhere: Path) -> list[Path]:
    shutil.rmtree(runs)
    os.mkfifo(runs)
    return [runs]


def state(path: Path) -> tuple:
    """What must not change of it."""
    found = path.lstat()
    content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    return found.st_mode, found.st_ino, os.readlink(path) if path.is_symlink() else content


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Nothing of this hangs."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("everything", [(), ("--all",)], ids=["clean", "all"])
@pytest.mark.parametrize("tried", ATTEMPTS, ids=lambda tried: tried.__name__.encode("unicode_escape").decode()[:60])
def test_nothing_of_anybody_else_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, tried: Attempt, everything: tuple[str, ...]
) -> None:
    assert len({each.__name__ for each in ATTEMPTS}) == len(ATTEMPTS) >= 40
    runs, elsewhere = tmp_path / "project" / "nemo_experiments", tmp_path / "elsewhere"
    runs.mkdir(parents=True)
    elsewhere.mkdir()
    protected = tried(runs, elsewhere)
    before = {path: state(path) for path in protected}
    finished = run(runs / "finished") if runs.is_dir() and not runs.is_symlink() else None
    if at := getattr(tried, "mounted", None):
        monkeypatch.setattr(owned, "mount_points", lambda: {str(runs / at)})
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115  # no terminal
    assert clean.main(["--root", str(runs.parent), *everything]) == 0
    assert {path: state(path) for path in protected} == before
    assert finished is None or not finished.exists()
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "keeping " in said or not any(path.is_relative_to(runs) for path in protected)
    if held := getattr(tried, "held", None):
        held.close()
