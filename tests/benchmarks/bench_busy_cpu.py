"""What a tiny training on the CPU loses beside one process that spins, as it is and with OMP_WAIT_POLICY exported.

    PYTHONPATH=assets:scripts python tests/benchmarks/bench_busy_cpu.py

Steps of `tiny` in BF16 with a thread for each core, by the training script alone, without the launcher. In turns:
quiet, beside a process that keeps one core busy, and beside it with OMP_WAIT_POLICY=PASSIVE exported. Exit code 1
where a step beside that process is over 1.5 times the same with the variable: the script did not set it, or too
late. Other work on the machine counts as more such processes, so the load is printed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pretraining.record import run_folder

SCRIPT = Path(__file__).resolve().parents[2] / "assets" / "pretrain_llama.py"
ITERATIONS = 12
TIMED = 8  # of them, the last
TURNS = 2
LIMIT = 1.5
QUIET, BUSY, EXPORTED = "quiet", "beside a spinning process", "beside it, variable exported"


def steps(folder: Path, *, spinning: bool, exported: bool) -> list[float]:
    """Seconds of the timed steps of one training."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE"} if exported else {}
    sizes = ["--model", "tiny", "--precision", "bf16", "--train-iters", str(ITERATIONS), "--run-dir", str(folder)]
    spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if spinning else None
    try:
        subprocess.run([sys.executable, SCRIPT, *sizes], env=environment, check=True, capture_output=True)
    finally:
        if spinner:
            spinner.kill()
            spinner.wait()
    taken = [line["step_time_s"] for line in run_folder.read_run(folder).train]
    return taken[-TIMED:]


def main() -> int:
    """Train in turns, print the medians."""
    taken: dict[str, list[float]] = {QUIET: [], BUSY: [], EXPORTED: []}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(TURNS):
            for way in taken:
                folder = Path(name) / f"{turn}-{way.replace(' ', '-')}"
                taken[way] += steps(folder, spinning=way != QUIET, exported=way == EXPORTED)
    medians = {way: statistics.median(seconds) for way, seconds in taken.items()}
    for way, seconds in medians.items():
        print(f"{way:30} {seconds:.3f} s a step, {seconds / medians[QUIET]:.2f} times quiet")
    ratio = medians[BUSY] / medians[EXPORTED]
    print(f"{ratio:.2f} times the step with the variable exported, limit {LIMIT:g}; load {os.getloadavg()[0]:.1f}")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
