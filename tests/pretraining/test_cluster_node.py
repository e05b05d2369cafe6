"""The launcher of one Slurm node, asked to end; with stand-ins for what it starts. `tests/slurm` has a real Slurm."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cluster_node
from pretraining.record import lock, run_folder
from pretraining.record.run_folder import Verdict

NODE = """
import os, signal, subprocess, sys
from pathlib import Path
import cluster_node
made = subprocess.Popen.__init__
def early(self, *arguments, **more):
    os.kill(os.getpid(), signal.SIGTERM)  # Slurm's, at the worst moment
    made(self, *arguments, **more)
if sys.argv[3] == "early":
    subprocess.Popen.__init__ = early
sys.exit(cluster_node._watch([sys.executable, "-c", sys.argv[2]], Path(sys.argv[1]), "node 0"))
"""
SUCCEEDS = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("on", flush=True)
signal.sigwait([signal.SIGTERM])
"""
DIES = "import time; print('on', flush=True); time.sleep(600)"


@pytest.mark.parametrize(
    ("training", "code", "when"),
    [(SUCCEEDS, 0, "later"), (DIES, 130, "later"), (DIES, 130, "early")],
    ids=["succeeds", "dies", "dies, asked before it was there"],
)
def test_asked_to_end(tmp_path: Path, project: Path, training: str, code: int, when: str) -> None:
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, str(tmp_path), training, when],
        env={**os.environ, "PYTHONPATH": str(project / "assets")}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if when == "later":
        assert node.stdout.readline() == "on\n"
        node.send_signal(signal.SIGTERM)
    node.communicate(timeout=30)
    assert node.returncode == code
    verdict = run_folder.read_facts(tmp_path).verdict if (tmp_path / run_folder.OUTCOME).exists() else None
    assert verdict == (Verdict.INTERRUPTED if code else None)  # training has written its own success


def test_a_folder_of_another_run_is_refused(tmp_path: Path, project: Path) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "PLAYBOOK_HEAD": "localhost"}
    with lock.hold(tmp_path, "one", "training"):
        ended = subprocess.run(
            [sys.executable, str(project / "assets" / "cluster_node.py"), str(tmp_path), "1"],
            env=os.environ | job, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert ended.returncode == 2 and "is in use by process" in ended.stderr and ended.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [lock.FILE]


@pytest.mark.parametrize(
    ("name", "words", "prefixes"),
    [
        ("o'brien", "{}/x", ["{}/x"]),
        ("my corpus", "{}/x", ["{}/x"]),
        ("a=b", "{}/x", ["{}/x"]),
        ("data", "0.7 {0}/x 0.3 {0}/y", ["{}/x", "{}/y"]),
        ("data", "train={0}/x valid='{0}/my y'", ["{}/x", "{}/my y"]),
        ("data", "{}/gone/o'brien/x", ["{}/gone/o'brien/x"]),
    ],
)
def test_the_files_that_a_node_must_see(tmp_path: Path, name: str, words: str, prefixes: list[str]) -> None:
    (tmp_path / name).mkdir()
    folder = str(tmp_path / name)
    expected = [f"{prefix.format(folder)}{end}" for prefix in prefixes for end in (".bin", ".idx")]
    assert cluster_node.unseen(["--data", words.format(folder)]) == f"--data: {', '.join(expected)}"
