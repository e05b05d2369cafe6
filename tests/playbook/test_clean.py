"""`scripts/clean.py` on real folders."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pretraining import lock

SCRIPT = Path(__file__).parents[2] / "scripts" / "clean.py"
LOG = Path(__file__).parents[1] / "logs" / "cpu-fp32-0.3.1.log"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with an empty nemo_experiments."""
    root = tmp_path / "project"
    (root / "nemo_experiments").mkdir(parents=True)
    return root


@pytest.fixture
def clean(root: Path):
    """Runs the command."""

    def command(*arguments: str, code: int = 0, **more: str) -> str:
        ended = subprocess.run(
            [sys.executable, SCRIPT, "--root", root, *arguments],
            env={"PATH": os.environ["PATH"]} | more, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout + ended.stderr

    return command


def make(
    folder: Path, *, data: str | None = "mock", checkpoints: bool = False, ended: bool = True, **environment
) -> Path:
    folder.mkdir()
    facts = {"data": data} if data else {}
    (folder / "environment.json").write_text(json.dumps({"parity": facts} | environment))
    (folder / "metrics.jsonl").write_text("{}\n" * 100)
    if ended:
        (folder / "outcome.json").write_text('{"verdict": "succeeded"}')
    if checkpoints:
        (folder / "checkpoints" / "iter_0000010").mkdir(parents=True)
        (folder / "checkpoints" / "iter_0000010" / "shard").write_bytes(b"x" * 3_000_000)
    return folder


def make_old(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_training_left_goes_with_its_size(clean, root: Path) -> None:
    runs = root / "nemo_experiments"
    make(runs / "run", checkpoints=True, mock_data=True)
    (runs / "default" / "checkpoints").mkdir(parents=True)
    (runs / "default" / "tb_logs").mkdir()
    (root / "bf16.log").write_bytes(LOG.read_bytes())
    (root / "Makefile").write_text("all:\n")
    said = clean()
    assert "3.0 MB  nemo_experiments/run\n" in said
    assert "Freed 3.1 MB." in said
    assert [path.name for path in root.iterdir()] == ["Makefile"]


def test_nothing_to_remove(clean, root: Path) -> None:
    (root / "nemo_experiments").rmdir()
    assert clean() == f"Nothing to remove in {root}.\n"


def test_twice(clean, root: Path) -> None:
    make(root / "nemo_experiments" / "run")
    clean()
    assert clean() == f"Nothing to remove in {root}.\n"


def test_dry_run_removes_nothing(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run")
    assert "Would remove" in clean("--dry-run")
    assert run.exists()


BUILT_IN = {"mock_data": False, "text": {"bigram_entropy": 2.4, "tokens": {}}}
OWN = {"mock_data": False}


@pytest.mark.parametrize(
    ("data", "facts", "kept"),
    [
        ("mock", {"mock_data": True}, False),
        ("python-stdlib-3.11.7-5", BUILT_IN, False),
        ("/data/x", OWN, True),
        ("mock", OWN, True),
        ("python-stdlib-plus-mine", OWN, True),
        ("python-stdlib-3.11.7-5", {}, True),
        (None, {}, True),
    ],
)
def test_checkpoints_of_own_data_stay(clean, root: Path, data: str | None, facts: dict, kept: bool) -> None:
    run = make(root / "nemo_experiments" / "run", data=data, checkpoints=True, **facts)
    assert ("keeping nemo_experiments/run: holds checkpoints" in clean(CLEAN="all")) is kept  # the flag alone counts
    assert run.exists() is kept
    clean("--all")
    assert not run.exists()


def test_checkpoints_of_megatrons_own_recipes_stay(clean, root: Path) -> None:
    checkpoints = root / "nemo_experiments" / "default" / "checkpoints"
    (checkpoints / "iter_0000100").mkdir(parents=True)
    (checkpoints / "iter_0000100" / "shard").write_bytes(b"x" * 1000)
    assert "keeping nemo_experiments/default: holds checkpoints that no run of this project made" in clean()
    assert (checkpoints / "iter_0000100" / "shard").exists()
    clean("--all")
    assert not any(root.iterdir())


def test_a_run_of_own_data_without_checkpoints_goes(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run", data="/data/x")
    (run / "checkpoints").mkdir()
    clean()
    assert not run.exists()


@pytest.mark.parametrize("record", ["", "{", "[]", '{"parity": 5}'])
def test_checkpoints_of_an_unreadable_record_stay(clean, root: Path, record: str) -> None:
    run = make(root / "nemo_experiments" / "run", checkpoints=True)
    (run / "environment.json").write_text(record)
    clean()
    assert run.exists()


@pytest.mark.parametrize("everything", [(), ("--all",)])
def test_a_live_run_stays_even_with_all_whatever_the_clocks_say(clean, root: Path, everything: tuple[str, ...]) -> None:
    run = root / "nemo_experiments" / "run"
    run.mkdir()
    held = lock.hold(run, "one", "training")
    (run / "environment.json").write_text("{}")
    make_old(run)
    assert f"keeping nemo_experiments/run: in use by process {os.getpid()} (training)" in clean(*everything)
    held.close()
    clean()
    assert not run.exists()


def test_a_live_run_of_before_there_was_a_lock_stays(clean, root: Path) -> None:
    code = "import time; time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, "pretrain_llama.py"]) as training:
        run = make(root / "nemo_experiments" / "run", ended=False, pid=training.pid, host=socket.gethostname())
        make_old(run)
        assert f"in use by process {training.pid}" in clean("--all")
        training.kill()
    clean()
    assert not run.exists()


def test_a_run_whose_process_is_gone_goes(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run", ended=False, pid=dead_process(), host=socket.gethostname())
    clean()
    assert not run.exists()


def test_a_process_number_used_again_is_no_live_run(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run", ended=False, pid=os.getpid(), host=socket.gethostname())
    make_old(run)
    clean()
    assert not run.exists()


def test_a_run_of_another_host_counts_as_running_while_it_writes(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run", ended=False, pid=dead_process(), host="node7")
    assert "may be in use on node7" in clean()
    make_old(run)
    clean()
    assert not run.exists()


def test_a_run_that_a_launcher_watches_stays_however_long_it_is_silent(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run", ended=False, pid=7, host="container")
    watching = lock.watch(run)
    make_old(run)
    assert f"in use: process {os.getpid()} watches it" in clean("--all")
    watching.close()
    os.utime(run / "metrics.jsonl")
    assert "may be in use on container" in clean("--all")
    make_old(run)
    clean()
    assert not run.exists()


def test_a_run_just_launched_stays(clean, root: Path) -> None:
    run = root / "nemo_experiments" / "run"
    run.mkdir()
    (run / "plan.json").write_text("{}")
    assert "may be in use" in clean()
    assert run.exists()


def test_unknown_things_stay_and_are_named(clean, root: Path) -> None:
    runs = root / "nemo_experiments"
    (runs / "mine").mkdir()
    (runs / "mine" / "notes.txt").write_text("x")
    (runs / "default").mkdir()
    (runs / "default" / "thesis.tex").write_text("x")
    (root / "server.log").write_text("GET / 200\n")
    said = clean()
    for name in ("nemo_experiments/mine", "nemo_experiments/default", "server.log"):
        assert f"keeping {name}: not" in said
        assert (root / name).exists()
    clean("--all")
    assert [path.name for path in root.iterdir()] == ["server.log"]


def test_comparisons_and_selfchecks_go(clean, root: Path) -> None:
    folder = root / "nemo_experiments" / "20261122T000000Z-comparison"
    folder.mkdir()
    (folder / "comparison.json").write_text('{"kind": "nvfp4-playbook-comparison"}')
    begun = folder.with_name("20261122T000001Z-comparison")  # and was cut short
    begun.mkdir()
    (begun / "repeats.json").write_text("{}")
    selfcheck = folder.with_name("20261122T000003Z-nvfp4-selfcheck")
    selfcheck.mkdir()
    (selfcheck / "selfcheck.json").write_text("{}")
    ablation = folder.with_name("20261122T000002Z-ablation")
    ablation.mkdir()
    (ablation / "ablation.json").write_text('{"kind": "nvfp4-playbook-ablation"}')
    (ablation / "ablation.png").write_text("")
    somebodys = folder.with_name("ablation")
    somebodys.mkdir()
    (somebodys / "ablation.json").write_text("{}")
    assert "keeping nemo_experiments/ablation: not" in clean()
    assert [path.name for path in (root / "nemo_experiments").iterdir()] == ["ablation"]
    clean("--all")
    assert not (root / "nemo_experiments").exists()


def test_a_link_inside_goes_and_its_target_stays(clean, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "file").write_text("x")
    run = make(root / "nemo_experiments" / "run")
    (run / "out").symlink_to(outside)
    (run / "deep").symlink_to(outside / "deep" / "file")
    (root / "nemo_experiments" / "latest").symlink_to("run")
    (root / "nemo_experiments" / "broken").symlink_to("nowhere")
    said = clean("--all")
    assert "nemo_experiments/latest  (the link only, nothing of run)" in said
    assert not any(root.iterdir())
    assert (outside / "deep" / "file").read_text() == "x"


def test_a_link_to_a_log_goes_only_where_it_is_a_training_s(clean, root: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(LOG.read_bytes())
    (tmp_path / "syslog").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    (root / "logs").mkdir()
    targets = {"a.log": "train.txt", "b.log": "syslog", "c.log": "nowhere", "d.log": "pipe", "logs/e.log": ""}
    for name, target in targets.items():
        (root / name).symlink_to(tmp_path / target)
    said = clean("--all")
    assert f"a.log  (the link only, nothing of {tmp_path / 'train.txt'})" in said
    assert (tmp_path / "train.txt").exists()
    assert not (root / "a.log").is_symlink()
    for name in ("b.log", "c.log", "d.log", "logs/e.log"):
        assert f"keeping {name}: not a log of a training" in said
        assert (root / name).is_symlink()


def test_nemo_experiments_as_a_link(clean, root: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    run = make(disk / "run")
    (root / "nemo_experiments").rmdir()
    (root / "nemo_experiments").symlink_to(disk)
    assert f"nemo_experiments  (the link only, nothing of {disk})" in clean()
    assert not (root / "nemo_experiments").is_symlink()
    assert (run / "outcome.json").exists()


def test_nemo_experiments_as_a_link_to_a_live_run_stays(clean, root: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "run").mkdir()
    (root / "nemo_experiments").rmdir()
    (root / "nemo_experiments").symlink_to(disk)
    with lock.hold(disk / "run", "one", "training"):
        (disk / "run" / "environment.json").write_text("{}")
        assert f"keeping nemo_experiments: a link to {disk}, which holds what must stay: run" in clean("--all")
    assert (root / "nemo_experiments").is_symlink()


def test_logs_behind_a_link_stay(clean, root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.log").write_bytes(LOG.read_bytes())
    (root / "logs").symlink_to(tmp_path / "elsewhere")
    clean("--all")
    assert (tmp_path / "elsewhere" / "a.log").exists()


def test_what_cannot_be_removed_is_said_and_the_rest_goes(clean, root: Path) -> None:
    stuck, other = make(root / "nemo_experiments" / "a"), make(root / "nemo_experiments" / "b")
    attributes = subprocess.run(["chattr", "+i", stuck / "metrics.jsonl"], capture_output=True, check=False)
    if attributes.returncode and os.geteuid():
        stuck.chmod(0o500)
    elif attributes.returncode:
        pytest.skip("root may remove everything here")
    try:
        said = clean(code=1)
    finally:
        subprocess.run(["chattr", "-i", stuck / "metrics.jsonl"], capture_output=True, check=False)
        stuck.chmod(0o700)
    assert "cannot remove nemo_experiments/a" in said
    assert "sudo rm" in said
    assert not other.exists()


def test_usage(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run")
    assert "usage:" in clean("--al=x", code=2)
    assert "is not a folder" in clean("--root", str(root / "typo"), code=2)
    assert run.exists()


def test_a_job_that_waits_on_a_cluster_stays_however_long(root: Path, clean) -> None:
    waiting = root / "nemo_experiments" / "waiting"
    waiting.mkdir()
    for name in ("plan.json", "job.json"):
        (waiting / name).write_text("{}")
    make_old(waiting)
    assert "`make jobs` says so" in clean()
    assert waiting.exists()
    (waiting / "outcome.json").write_text('{"verdict": "interrupted"}')
    clean()
    assert not waiting.exists()
