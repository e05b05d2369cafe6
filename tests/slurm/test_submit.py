"""Two-node trainings on a real Slurm, from `make submit` to the comparison of their records, and how they can end."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pretraining.record import run_folder
from pretraining.record.run_folder import Verdict

pytestmark = pytest.mark.slurm
PROJECT = Path(__file__).resolve().parents[2]
LONG = ("--train-iters", "100000", "--warmup-iters", "1", "--save", "5")
SLOW = """
import time

def forward_step(state, data_iterator, model, return_schedule_plan=False):
    from megatron.bridge.training.gpt_step import forward_step
    time.sleep(0.3)
    return forward_step(state, data_iterator, model, return_schedule_plan)
"""
DYING = """
import os

def forward_step(state, data_iterator, model, return_schedule_plan=False):
    from megatron.bridge.training.gpt_step import forward_step
    if os.environ["RANK"] == "1" and state.train_state.step == 2:
        raise RuntimeError("a bug on the second node")
    return forward_step(state, data_iterator, model, return_schedule_plan)
"""


def iterations(folder: Path) -> int:
    path = folder / run_folder.METRICS
    return path.read_text().count('"train"') if path.exists() else 0


def local_twin(folder: Path, environment: dict[str, str]) -> run_folder.Run:
    """The same work by two processes of this machine, without Slurm."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(PROJECT / "assets" / "pretrain_llama.py"), "--model", "tiny", "--global-batch-size", "8"]
    command += ["--micro-batch-size", "4", "--seq-length", "64", "--train-iters", "24", "--precision", "bf16"]
    ended = subprocess.run([*command, "--run-dir", str(folder)], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return run_folder.read_run(folder)


def test_a_run_on_two_nodes_is_compared_with_a_local_one(head, environment) -> None:
    before = time.time()
    folder = head.submit("first", "--train-iters", "24", "--precision", "nvfp4", "--wait")
    run = run_folder.read_run(folder)
    assert run.verdict is Verdict.SUCCEEDED and len(run.train) == 24
    assert (run.parity["world_size"], run.environment["processes"]) == (2, 2)
    told = json.loads((folder / run_folder.JOB).read_text())
    accounted = head.slurm.run("sacct", "-nXP", "-j", told["job"], "-o", "State,NNodes").stdout.strip()
    assert accounted == "COMPLETED|2"
    assert {path.name for path in (folder / run_folder.RANK_LOGS).iterdir()} == {"0000.log", "0001.log"}
    assert (
        run.plan["request"]["runtime"] == "cluster" and run.plan["choices"]["processes"]["value"] == "2 x 1 processes"
    )

    local = local_twin(head.runs / "local", environment())
    assert local.parity == run.parity
    compared = subprocess.run(
        [sys.executable, str(PROJECT / "scripts" / "compare.py"), str(local.folder), str(folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert before < folder.stat().st_mtime

    listed = head.run("jobs")
    assert listed.returncode == 0 and "COMPLETED" in listed.stdout and "succeeded" in listed.stdout
    again = head.run("logs", "--run", "first")
    assert again.returncode == 0 and "iteration       24/      24" in again.stdout and "succeeded" in again.stdout


def test_a_failure_is_told_with_its_rank_and_the_exit_code(head) -> None:
    plugin = head.shared / "dying.py"
    plugin.write_text(DYING)
    folder = head.submit("failing", "--plugin", str(plugin), "--wait", code=1)
    run = run_folder.read_run(folder)
    assert run.verdict is Verdict.FAILED, run.outcome
    assert run.outcome["cause"].startswith("rank 1 on ") and "a bug on the second node" in run.outcome["cause"]
    assert head.state(folder) == "FAILED" and not head.jobs()  # and Slurm did not start it again


def test_a_cancelled_job_ends_with_a_record(head, until) -> None:
    folder = head.submit("cancelled", *LONG)
    until(lambda: iterations(folder) >= 3)
    ended = head.run("cancel", "--run", "cancelled")
    assert ended.returncode == 0 and "cancelled" in ended.stdout, ended.stderr
    run = run_folder.read_run(folder)
    assert run.verdict is Verdict.INTERRUPTED, run.outcome
    assert not head.jobs()
    assert head.run("logs", "--run", "cancelled").returncode == 130
    assert "has ended already" in head.run("cancel", "--run", "cancelled").stdout


def test_a_waiting_job_is_cancelled_too(head) -> None:
    folder = head.submit("waiting", sbatch={"begin": "now+1hour"})
    assert head.run("cancel", "--run", "waiting").returncode == 0
    run = run_folder.read_run(folder)
    assert run.verdict is Verdict.INTERRUPTED and run.train == [] and "CANCELLED" in run.outcome["cause"]


def check_resumed(first: Path, second: Path) -> None:
    """The first attempt saved when it was asked to end, also between two checkpoints; the second went on from there."""
    begun, resumed = run_folder.read_run(first), run_folder.read_run(second)
    assert begun.verdict is Verdict.INTERRUPTED, begun.outcome
    assert resumed.environment["resumed_from"] == str(first)
    start = resumed.parity["start_iteration"]
    assert start == begun.train[-1]["iteration"] >= 5
    assert resumed.train[0]["iteration"] == start + 1


def test_a_preempted_job_starts_again_and_resumes(head, until, make_dataset) -> None:
    (head.shared / "data").mkdir()
    prefix = make_dataset(head.shared / "data" / "corpus", tokens=200_000)
    folder = head.submit("preempted", *LONG, "--data", prefix, "--cache-dir", str(head.shared / "cache"))
    second = folder.with_name("preempted-restart1")
    until(lambda: iterations(folder) >= 8)
    head.slurm.run("sbatch", "-p", "urgent", "-N2", "--exclusive", "--wrap", "sleep 1", "--output=/dev/null")
    until(lambda: iterations(second) >= 3)
    check_resumed(folder, second)
    index = {path.name: path.stat().st_mtime for path in (head.shared / "cache" / "index").rglob("*.npy")}
    assert (
        index and max(index.values()) < (second / run_folder.ENVIRONMENT).stat().st_mtime
    )  # built once, and used again
    beside = {path.name for path in (head.shared / "data").iterdir()}
    assert beside == {"corpus.bin", "corpus.idx"}
    assert "(restart 1)" in head.run("jobs").stdout
    assert head.run("cancel", "--run", "preempted").returncode == 0


def test_data_that_a_node_does_not_see(head, until, make_dataset, tmp_path: Path) -> None:
    prefix = make_dataset(tmp_path / "corpus", tokens=20_000)
    folder = head.submit("blind", "--data", prefix, sbatch={"begin": "now+10"})
    Path(f"{prefix}.idx").unlink()
    until(lambda: (folder / run_folder.OUTCOME).exists())
    run = run_folder.read_run(folder)
    assert run.verdict is Verdict.FAILED and run.train == []
    assert "cannot see --data" in run.outcome["cause"] and f"{prefix}.idx" in run.outcome["cause"]
    assert head.run("logs", "--run", "blind").returncode == 1
    assert not head.jobs()


def test_a_lost_node_starts_the_job_again(head, until) -> None:
    folder = head.submit("lost", *LONG)
    second = folder.with_name("lost-restart1")
    until(lambda: iterations(folder) >= 8)
    head.slurm.kill_node("n2")
    until(lambda: head.slurm.nodes()["n2"].startswith("down"), seconds=90)
    head.slurm.start_node("n2")
    until(lambda: iterations(second) >= 3, seconds=120)
    resumed = run_folder.read_run(second)
    assert resumed.environment["resumed_from"] == str(folder) and resumed.parity["start_iteration"] >= 5
    assert head.run("cancel", "--run", "lost").returncode == 0
    until(lambda: set(head.slurm.nodes().values()) == {"idle"})


def test_a_job_at_its_time_limit_starts_again_and_resumes(head, until) -> None:
    slow = head.shared / "slow.py"
    slow.write_text(SLOW)
    # Slurm may ask a minute before it is told to: 40 to 100 s after the start.
    folder = head.submit("limited", *LONG, "--plugin", str(slow), time="00:02:00", end_before_limit=20)
    second = folder.with_name("limited-restart1")
    until(lambda: iterations(second) >= 3, seconds=200)
    check_resumed(folder, second)
    assert head.run("cancel", "--run", "limited").returncode == 0
    assert not list(head.runs.glob("limited-restart3"))


def test_submitting_costs_little_over_sbatch(head, until) -> None:
    """From the command to the running job, as squeue sees it; NeMo-Run's import is most of it."""

    def until_it_runs(submit) -> float:
        began = time.monotonic()
        with ThreadPoolExecutor() as pool:
            done = pool.submit(submit)
            until(lambda: head.slurm.run("squeue", "-h", "-t", "RUNNING").stdout)
            took = time.monotonic() - began
            done.result()
        return took

    ours = until_it_runs(lambda: head.submit("timed"))
    script = Path(json.loads((head.runs / "timed" / run_folder.JOB).read_text())["script"])
    head.run("cancel", "--run", "timed")
    by_hand = until_it_runs(lambda: head.slurm.run("sbatch", "--parsable", str(script)))
    print(f"submit to running: {ours:.1f} s, sbatch by hand {by_hand:.1f} s")
    head.slurm.run("scancel", "--user=root")
    until(lambda: not head.jobs())
    assert ours - by_hand < 5 * float(os.environ.get("SLOWER_BY", "1"))


@pytest.fixture(scope="module")
def small(head):
    """A file system of 1 MB, mounted."""
    folder = head.shared / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def refused(head, words: str, *flags: str, code: int = 1, **fields: object) -> None:
    """The submission is refused in a sentence with those words, and leaves neither job nor folder."""
    before = head.jobs()
    ended = head.run(
        "submit", "--train-iters", "6", "--precision", "bf16", "--nodes", "2", *flags, cluster=head.cluster(**fields)
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert words in ended.stderr and "Traceback" not in ended.stderr, ended.stderr
    assert len(ended.stderr.strip().splitlines()) <= 3
    assert head.jobs() == before
    if "runs" not in fields:
        assert not [path for path in head.runs.glob("2*") if path.is_dir()]


def test_what_slurm_refuses(head) -> None:
    refused(head, "`sinfo` lists the partitions", partition="nowhere")
    refused(head, "fewer NODES", "--nodes", "3", "--global-batch-size", "9", "--micro-batch-size", "3")


def test_a_slurm_that_does_not_answer(head, tmp_path: Path, monkeypatch) -> None:
    dead = tmp_path / "slurm.conf"
    own = Path(head.slurm.environment["SLURM_CONF"]).read_text()
    lines = ["SlurmctldPort=1" if line.startswith("SlurmctldPort") else line for line in own.splitlines()]
    dead.write_text("\n".join(lines))
    monkeypatch.setitem(head.slurm.environment, "SLURM_CONF", str(dead))
    ended = head.run("submit", "--precision", "bf16", "--train-iters", "6")
    assert ended.returncode == 1 and "does not answer" in ended.stderr and "Traceback" not in ended.stderr


def test_a_full_shared_folder(head, small) -> None:
    (small / "filling").write_bytes(b"x" * 1_048_576)
    refused(head, "cannot be written to", runs=str(small / "runs"))
    refused(head, "No space left on device", runs=str(small))
    (small / "filling").unlink()


def test_a_read_only_shared_folder(head, small) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    refused(head, "Read-only file system", runs=str(small / "runs"))


def test_two_submissions_with_one_name(head) -> None:
    folder = head.submit("twice", sbatch={"begin": "now+1hour"})
    refused(head, "already holds a run or a submitted job", "--run-dir", str(folder), code=2)
    assert head.jobs().count("\n") == 1
    head.run("cancel", "--run", "twice")


def test_a_dry_run_submits_nothing(head) -> None:
    before = head.jobs()
    ended = head.run("submit", "--dry-run", "--nodes", "2", cluster=head.cluster(partition="batch", sbatch={"nice": 5}))
    assert ended.returncode == 0, ended.stderr
    for words in ("#SBATCH --nodes=2", "#SBATCH --partition=batch", "#SBATCH --nice=5", "#SBATCH --signal=TERM@30"):
        assert words in ended.stdout
    assert subprocess.run(["bash", "-n"], input=ended.stdout, text=True).returncode == 0
    assert head.jobs() == before


def test_a_dry_run_for_a_container(head) -> None:
    ended = head.run(
        "submit", "--dry-run", "--nodes", "2", "--model", "tiny",
        cluster=head.cluster(image="nvcr.io/nvidia/nemo:26.04", mounts=["/data"], environment={"A_B": "two words"}),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "--container-image nvcr.io/nvidia/nemo:26.04" in ended.stdout
    mounts = next(line for line in ended.stdout.splitlines() if "--container-mounts" in line)
    assert "/data" in mounts and f"{head.runs}:{head.runs}" in mounts
    assert "export A_B='two words'" in ended.stdout


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"gpus": 4}, ["#SBATCH --gpus-per-node=4"]),
        ({"gpus": None}, []),
        ({"gpus": 8, "sbatch": {"gpus-per-node": None}}, []),
        ({"gpus": 8, "sbatch": {"gres": "gpu:b200:8"}}, ["#SBATCH --gres=gpu:b200:8"]),
        ({"gpus": None, "sbatch": {"gpus_per_task": 2}}, ["#SBATCH --gpus-per-task=2"]),
    ],
)
def test_what_is_null_is_left_out(head, fields: dict, asked: list[str]) -> None:
    everything = {"time": None, "restarts": None, "exclusive": None, "mounts": None, "environment": None}
    cluster = head.cluster(**{**everything, "end_before_limit": None, **fields})
    ended = head.run("submit", "--dry-run", "--precision", "bf16", cluster=cluster)
    assert ended.returncode == 0, ended.stderr
    assert [line for line in ended.stdout.splitlines() if "gpu" in line.lower() and "SBATCH" in line] == asked
    assert "None" not in ended.stdout and "--time" not in ended.stdout and "--signal" not in ended.stdout
