"""Measures `scripts/compare.py` on two logs of 200,000 iterations: seconds (the fastest of three), and peak memory.

    python tests/benchmarks/bench_compare.py

Exit code 1 where it takes 3 s or 500 MB (1e6 bytes a MB) or more.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ITERATIONS = 200_000
REPEATS = 3  # other work on the machine only ever makes one slower
SECONDS = 3.0
MEGABYTES = 500.0

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SUMMARY = """Configuration Summary (Non-Default Values vs Megatron Core)
[optimizer] Non-default values (vs Mcore OptimizerConfig):
  lr: 0.0003  (Mcore default: None)
[model] Non-default values (vs Mcore TransformerConfig):
  bf16: True  (Mcore default: False)
{precision}  hidden_size: 4096  (Mcore default: 0)
  num_layers: 32  (Mcore default: 0)
[train]:
  global_batch_size: 64
  micro_batch_size: 4
[dataset]:
  data_parallel_size: 1
  sequence_length: 4096
======================================================================
> initialized tensor model parallel with size 1
> initialized pipeline model parallel with size 1
Starting training loop at iteration 0
"""


def write_log(path: Path, precision: str, step: float, seed: int) -> None:
    """A log as Megatron-Bridge 0.4 prints it, with noise on step time, loss and grad norm."""
    noise = random.Random(seed)
    work = 64 * 4096 * 48.25e9 / 1e12
    with path.open("w", encoding="utf-8") as file:
        file.write(SUMMARY.format(precision=precision))
        for iteration in range(1, ITERATIONS + 1):
            seconds = step * (1 + abs(noise.gauss(0, 0.01)))
            loss = 2 + 8 / iteration**0.3 + noise.gauss(0, 0.02)
            file.write(
                f"Step Time : {seconds:.2f}s GPU utilization: {work / seconds:.1f}MODEL_TFLOP/s/GPU\n"
                f" [2026-11-22 06:58:39] iteration {iteration:8d}/{ITERATIONS:8d} |"
                f" consumed samples: {64 * iteration:12d} | elapsed time per iteration (ms): {seconds * 1000:.1f} |"
                f" learning rate: {3e-4:.6E} | global batch size:    64 | lm loss: {loss:.6E} | loss scale: 1.0 |"
                f" grad norm: {abs(noise.gauss(1, 0.1)):.3f} | number of skipped iterations:   0 |"
                f" number of nan iterations:   0 |\n"
            )
        file.write("[after training is done] datetime: 2026-11-22 06:58:53 \n")


def main() -> int:
    """Write both logs, compare them, print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        nvfp4, bf16 = Path(folder, "nvfp4.log"), Path(folder, "bf16.log")
        write_log(nvfp4, "  fp4: 'e2m1'  (Mcore default: None)\n", 5.39, 1)
        write_log(bf16, "", 9.05, 2)
        size = (nvfp4.stat().st_size + bf16.stat().st_size) / 1e6
        environment = os.environ | {"PYTHONPATH": f"{SCRIPTS.parent / 'assets'}:{SCRIPTS}"}
        command = [sys.executable, SCRIPTS / "compare.py", nvfp4, bf16, "--json", Path(folder, "comparison.json")]
        took = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True, stdout=None if not took else subprocess.DEVNULL)
            took.append(time.perf_counter() - start)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    megabytes = children.ru_maxrss * 1024 / 1e6
    cpu = (children.ru_utime + children.ru_stime) / REPEATS
    print(f"\n2 logs of {ITERATIONS:,} iterations, {size:.0f} MB: {' '.join(f'{seconds:.2f} s' for seconds in took)}")
    print(f"mean CPU time {cpu:.2f} s, peak resident memory {megabytes:.0f} MB")
    print(f"limits: {SECONDS} s for the fastest, {MEGABYTES:.0f} MB")
    return 0 if min(took) < SECONDS and megabytes < MEGABYTES else 1


if __name__ == "__main__":
    sys.exit(main())
