"""Slurm signals every process of a job step: helpers must stay until training has saved."""

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "assets"
BLOCKED = """
import multiprocessing, signal, sys
from pretraining import helpers

if __name__ == "__main__":
    helpers.outlive_sigterm()
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(signal.SIGTERM in pool.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, set())))
        pool.close()
        pool.join()
    print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, set()))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_helper_is_deaf_to_sigterm_and_training_is_not(method: str, tmp_path: Path) -> None:
    script = tmp_path / "starts.py"
    script.write_text(BLOCKED)
    ended = subprocess.run(
        [sys.executable, str(script), method], env={"PYTHONPATH": str(PACKAGE)}, capture_output=True, text=True
    )
    assert ended.stdout.split() == ["True", "False"], ended.stderr
