"""Every process of a run is signalled: helpers must stay until training has saved, and end when training ends them."""

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[3] / "assets"
BLOCKED = """
import multiprocessing, signal, sys
from pretraining.run import signals

if __name__ == "__main__":
    signals.outlive_signals()
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:  # whose end terminates its processes
        print(*sorted(pool.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, set()))))
    print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, set())), "none")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_helper_is_deaf_and_training_is_not(method: str, tmp_path: Path) -> None:
    script = tmp_path / "starts.py"
    script.write_text(BLOCKED)
    ended = subprocess.run(
        [sys.executable, str(script), method],
        env={"PYTHONPATH": str(PACKAGE)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.stdout.splitlines() == ["2 15", "none"], ended.stderr
