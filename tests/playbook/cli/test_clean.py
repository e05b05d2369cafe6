"""`make clean`: what goes, what it says, and what it asks."""

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from playbook.campaign import reuse
from playbook.compare import saved
from pretraining.record import lock, run_folder

SCRIPT = Path(__file__).parents[3] / "scripts" / "clean.py"
RESULTS = Path(__file__).parents[3] / "assets" / "results"
HERE = socket.gethostname()


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
            [sys.executable, SCRIPT, "--root", root, *arguments], stdin=subprocess.DEVNULL, timeout=60,
            env={"PATH": os.environ["PATH"]} | more, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout + ended.stderr

    return command


def make(
    folder: Path, *, data: str | None = "mock", checkpoints: bool = False, ended: bool = True, **environment
) -> Path:
    """A run folder as training leaves it."""
    folder.mkdir()
    known = {"host": HERE, "precision": {"name": "bf16", "arithmetic": "native"}} | environment
    content = {"kind": run_folder.KIND, "schema": 1, "parity": {"data": data} if data else {}} | known
    run_folder.write_json(folder / "environment.json", content)
    (folder / "metrics.jsonl").write_text("{}\n" * 100)
    if ended:
        run_folder.write_outcome(folder, run_folder.Verdict.SUCCEEDED, cause="", exit_code=0)
    if checkpoints:
        (folder / "checkpoints" / "iter_0000010").mkdir(parents=True)
        (folder / "checkpoints" / "iter_0000010" / "__0_0.distcp").write_bytes(b"x" * 3_000_000)
    return folder


def make_old(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_a_run_left_goes_with_its_size(clean, root: Path) -> None:
    runs = root / "nemo_experiments"
    run = make(runs / "run", checkpoints=True, mock_data=True)
    (runs / "default" / "checkpoints").mkdir(parents=True)
    (runs / "default" / "tb_logs").mkdir()
    for name in ("plan.json", "job.json", "profile.json", "config.yaml", "device.jsonl", "device-8.jsonl",
                 "train.log", "ranks/0003.log", "trace.json.gz", "sensitivity.json",
                 "sensitivity.png", "sensitivity.svg", ".sensitivity.svg",
                 ".lock", ".launcher", ".outcome.json.0123456789abcdef",
                 "checkpoints/latest_checkpointed_iteration.txt", "checkpoints/latest_train_state.pt",
                 "checkpoints/iter_0000010/.metadata", "checkpoints/iter_0000010/common.pt",
                 "checkpoints/iter_0000010/metadata.json", "checkpoints/iter_0000010/run_config.yaml",
                 "checkpoints/iter_0000010/tokenizer/tokenizer.json", "tensorboard/events.out.tfevents.1.host.2.0",
                 "wandb/offline-run-20261127_1-x/files/config.yaml", "wandb/debug-internal.log",
                 "mlruns/0/abc/metrics/loss", "mlruns/0/meta.yaml"):  # fmt: skip
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("" if name != "plan.json" else json.dumps({"kind": run_folder.KIND, "schema": 1}))
    (run / "wandb" / "latest-run").symlink_to("offline-run-20261127_1-x")
    (root / "Makefile").write_text("all:\n")
    said = clean()
    assert "3.0 MB  nemo_experiments/run\n" in said and "keeping" not in said
    assert "without asking, as there is no terminal to ask on (DRY_RUN=1 only lists)" in said
    assert "Freed 3.0 MB." in said
    assert [path.name for path in root.iterdir()] == ["Makefile"]
    assert clean() == f"Nothing to remove in {root}.\n"


@pytest.mark.parametrize("published", sorted(RESULTS.glob("*/*/environment.json")), ids=lambda path: path.parent.name)
def test_records_of_every_earlier_version_are_known(root: Path, published: Path) -> None:
    from playbook.cli import clean as cleaning

    run = root / "nemo_experiments" / published.parent.name
    shutil.copytree(published.parent, run)
    (item,) = cleaning.find(root, everything=True)
    assert item.kept == "" and item.contents.others == []


def test_dry_run_removes_nothing_and_asks_nothing(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run")
    assert "nemo_experiments/run" in (said := clean("--dry-run")) and "dry run" in said and "terminal" not in said
    assert run.exists()


@pytest.mark.parametrize(
    ("answer", "flags", "gone"),
    [("y\n", (), True), ("YES\n", (), True), ("n\n", (), False), ("\n", (), False), ("", ("--yes",), True)],
)
def test_on_a_terminal_it_asks(root: Path, answer: str, flags: tuple[str, ...], gone: bool) -> None:
    run = make(root / "nemo_experiments" / "run")
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    ended = subprocess.run(
        [sys.executable, SCRIPT, "--root", root, *flags], stdin=theirs, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    os.close(ours), os.close(theirs)
    assert ended.returncode == 0 and run.exists() is not gone
    assert ("Remove it? [y/N]" in ended.stdout) is not bool(flags)
    assert ("Nothing was removed." in ended.stdout) is not gone


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


def test_a_run_of_own_data_without_checkpoints_goes(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run", data="/data/x")
    (run / "checkpoints").mkdir()
    clean()
    assert not run.exists()


@pytest.mark.parametrize("everything", [(), ("--all",)])
def test_a_live_run_stays_even_with_all_whatever_the_clocks_say(clean, root: Path, everything: tuple[str, ...]) -> None:
    run = root / "nemo_experiments" / "run"
    run.mkdir()
    held = lock.hold(run, "one", "training")
    make_old(run)
    assert f"keeping nemo_experiments/run: in use by process {os.getpid()} (training)" in clean(*everything)
    held.close()
    clean()
    assert not run.exists()


def test_a_finished_run_that_a_comparison_will_read_stays_until_it_ends(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run")
    (run / lock.FILE).write_text("")
    begin = "from pathlib import Path; from pretraining.record import lock"
    code = f"{begin}; lock.keep(Path({str(run)!r})); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[2])},
    ) as comparing:  # fmt: skip
        comparing.stdout.readline()
        assert "keeping nemo_experiments/run: in use by another process" in clean("--all")
        comparing.communicate(b"\n")
    clean()
    assert not run.exists()


def test_a_live_run_of_before_there_was_a_lock_stays(clean, root: Path) -> None:
    code = "import time; time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, "pretrain_llama.py"]) as training:
        run = make(root / "nemo_experiments" / "run", ended=False, pid=training.pid)
        make_old(run)
        assert f"in use by process {training.pid}" in clean("--all")
        training.kill()
    clean()
    assert not run.exists()


@pytest.mark.parametrize("number", [dead_process, os.getpid])
def test_a_run_whose_process_is_gone_goes(clean, root: Path, number) -> None:
    run = make(root / "nemo_experiments" / "run", ended=False, pid=number())
    clean()
    assert not run.exists()


def test_no_clock_alone_ends_a_run_of_another_machine(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run", ended=False, pid=dead_process(), host="node7")
    assert "may be in use on node7" in clean("--all")
    make_old(run)
    assert "nobody recorded its end, and its machine is another; CLEAN=all removes it" in clean()
    clean("--all")
    assert not run.exists()


def test_a_run_that_a_launcher_watches_stays_however_long_it_is_silent(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run", ended=False, pid=7, host="container")
    watching = lock.watch(run)
    make_old(run)
    assert f"in use: process {os.getpid()} watches it" in clean("--all")
    watching.close()
    clean("--all")
    assert not run.exists()


def test_a_job_that_waits_on_a_cluster_stays_however_long(root: Path, clean) -> None:
    waiting = make(root / "nemo_experiments" / "waiting", ended=False)
    (waiting / "job.json").write_text("{}")
    make_old(waiting)
    assert "`make jobs` says so" in clean("--all")
    run_folder.write_outcome(waiting, run_folder.Verdict.INTERRUPTED, cause="", exit_code=130)
    clean()
    assert not waiting.exists()


def test_comparisons_ablations_and_selfchecks_go(clean, root: Path) -> None:
    runs = root / "nemo_experiments"
    for kind in ("comparison", "ablation"):
        (runs / kind).mkdir()
        (runs / kind / f"{kind}.json").write_text(json.dumps({"kind": f"nvfp4-playbook-{kind}", "schema": 1}))
    for name in (saved.PAGE, saved.TABLE, saved.MARKDOWN, "plots/loss.png"):
        (runs / "comparison" / "plots").mkdir(exist_ok=True)
        (runs / "comparison" / name).write_text("")
    (runs / "ablation" / "ablation.png").write_text("")
    (runs / "a-file.json").write_text('{"kind": "nvfp4-playbook-comparison", "schema": 2}')
    reuse.begin([], runs, "tiny")  # and was cut short
    (runs / "20261122T000003Z-comparison-tiny").mkdir()  # and was refused
    (runs / "selfcheck").mkdir()
    (runs / "selfcheck" / "selfcheck.json").write_text('{"schema": 1, "verdict": "", "results": [], "block_scale": ""}')
    clean()
    assert not runs.exists()


def test_what_cannot_be_removed_is_said_known_again_and_the_rest_goes(clean, root: Path) -> None:
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
    assert "cannot remove nemo_experiments/a" in said and "sudo chown -R $USER" in said
    assert not other.exists()
    clean()
    assert not stuck.exists()


def test_usage(clean, root: Path) -> None:
    run = make(root / "nemo_experiments" / "run")
    assert "usage:" in clean("--al=x", code=2)
    assert "is not a folder" in clean("--root", str(root / "typo"), code=2)
    assert run.exists()
