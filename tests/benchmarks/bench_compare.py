"""Measures `scripts/compare.py` on two logs, then on two records of 1,000,000 iterations: seconds, peak memory, page.

    python tests/benchmarks/bench_compare.py

The fastest of three counts. The records have a line of samples a second too, 5 and 9 million. Exit code 1 where one
takes 10 s, 1,000 MB (1e6 bytes a MB) or a page of 3 MB or more. Needs 3 GB of disk.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ITERATIONS = 1_000_000
BEGAN = 1763806530.0  # Unix time
REPEATS = 3  # other work on the machine only ever makes one slower
SECONDS = 10.0
MEGABYTES = 1000.0
PAGE = 3.0  # MB

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SUMMARY = """Configuration Summary (Non-Default Values vs Megatron Core)
[optimizer] Non-default values (vs Mcore OptimizerConfig):
  lr: 0.0003  (Mcore default: None)
[model] Non-default values (vs Mcore TransformerConfig):
  bf16: True  (Mcore default: False)
{precision}  hidden_size: 4096  (Mcore default: 0)
  ffn_hidden_size: 14336  (Mcore default: None)
  num_attention_heads: 32  (Mcore default: 0)
  num_layers: 32  (Mcore default: 0)
[train]:
  global_batch_size: 64
  micro_batch_size: 4
[dataset]:
  data_parallel_size: 1
  sequence_length: 4096
======================================================================
INFO:root:Using preset vocab_size: 128256 over the tokenizer vocab_size: 32000, dummy tokens: 96256.
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


def write_record(folder: Path, precision: str, step: float, seed: int) -> None:
    """A run folder as training leaves it, with its log, which says the same."""
    folder.mkdir()
    noise = random.Random(seed)
    facts = {"train_iters": ITERATIONS, "start_iteration": 0, "sequence_length": 4096, "world_size": 1}
    about = {"name": precision, "arithmetic": "native", "bf16_head_layers": 0, "bf16_tail_layers": 4}
    environment = {"schema": 1, "precision": about, "tokens_per_step": 64 * 4096, "parity": facts}
    (folder / "environment.json").write_text(json.dumps(environment | {"flops_per_token": 48.25e9}))
    (folder / "outcome.json").write_text(json.dumps({"schema": 1, "verdict": "succeeded", "cause": "", "exit_code": 0}))
    now = BEGAN
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for iteration in range(1, ITERATIONS + 1):
            seconds = step * (1 + abs(noise.gauss(0, 0.01)))
            now += seconds
            line = {
                "kind": "train", "iteration": iteration, "loss": 2 + 8 / iteration**0.3 + noise.gauss(0, 0.02),
                "step_time_s": round(seconds, 6), "grad_norm": abs(noise.gauss(1, 0.1)), "learning_rate": 3e-4,
                "skipped": False, "finite": True, "time": round(now, 3),
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    write_samples(folder / "device.jsonl", now)
    write_log(folder / "train.log", "", step, seed)


def write_samples(path: Path, until: float) -> None:
    """A line a second from before the first iteration to after the last: months of them, and more than a record's."""
    drawn = [
        f'"device": 0, "samples": 12, "used_bytes": {207_800_000_000 + watts}, "process_bytes": '
        f'{207_200_000_000 + watts}, "power_w": {1100 + watts / 10}}}\n'
        for watts in range(1000)
    ]
    with path.open("w", encoding="utf-8") as file:
        for second in range(int(until - BEGAN) + 10):
            file.write(f'{{"time": {BEGAN - 5 + second:.3f}, {drawn[second % 997]}')


def measure(a: Path, b: Path, target: Path) -> bool:
    """Compare two runs, print what it took; whether that is within the limits."""
    environment = os.environ | {"PYTHONPATH": f"{SCRIPTS.parent / 'assets'}:{SCRIPTS}"}
    command = [sys.executable, SCRIPTS / "compare.py", a, b, "--json", target]
    took, worked, megabytes = [], [], 0.0
    for _ in range(REPEATS):
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=None if not took else subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        took.append(time.perf_counter() - start)
        worked.append(used.ru_utime + used.ru_stime)
        megabytes = max(megabytes, used.ru_maxrss * 1024 / 1e6)
        if status:
            raise SystemExit(f"compare.py ended with {os.waitstatus_to_exitcode(status)}")
    print(f"\n2 x {ITERATIONS:,} iterations: {' '.join(f'{seconds:.2f} s' for seconds in took)}")
    print(f"of all cores together: {' '.join(f'{seconds:.2f} s' for seconds in worked)}")
    page = (target / "report.html").stat().st_size / 1e6
    print(f"peak resident memory {megabytes:.0f} MB, page {page:.2f} MB; load {os.getloadavg()[0]:.1f}")
    print(f"limits: {SECONDS:g} s for the fastest, {MEGABYTES:.0f} MB, page {PAGE:g} MB\n")
    return min(took) < SECONDS and megabytes < MEGABYTES and page < PAGE


def main() -> int:
    """Write logs and records, compare them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_log(folder / "nvfp4.log", "  fp4: 'e2m1'  (Mcore default: None)\n", 5.39, 1)
        write_log(folder / "bf16.log", "", 9.05, 2)
        good = measure(folder / "nvfp4.log", folder / "bf16.log", folder / "logs")
        for path in folder.glob("*.log"):
            path.unlink()
        write_record(folder / "nvfp4", "nvfp4", 5.39, 1)
        write_record(folder / "bf16", "bf16", 9.05, 2)
        good &= measure(folder / "nvfp4", folder / "bf16", folder / "records")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
