"""What a BF16 matrix product reaches on this GPU when it lasts: TFLOP/s, clock and power, second by second.

    python tests/benchmarks/bench_sustained_gpu.py [--seconds 20] [--size 8192] [--json FILE]

A GPU at its power limit lowers its clocks, so a training that lasts does not have the speed that a few products have on
a cold one. The first row is the first 50 products after a pause, the others are seconds on end of the same product.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pynvml
import torch

COLD_PRODUCTS = 50
PAUSE_SECONDS = 3.0


def measure(size: int, seconds: int) -> list[dict[str, float]]:
    """A row for the cold products and one for each second after: TFLOP/s, and at its end SM MHz and watts."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(a)
    pynvml.nvmlInit()
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    device = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")

    def products(count: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(count):
            torch.mm(a, b.T, out=out)
        end.record()
        end.synchronize()
        return count * 2 * size**3 / begin.elapsed_time(end) / 1e9

    def row(after: float, tflops: float) -> dict[str, float]:
        clock = pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM)
        return {
            "after_s": after,
            "tflops": tflops,
            "sm_mhz": clock,
            "watts": pynvml.nvmlDeviceGetPowerUsage(device) / 1e3,
        }

    products(3)  # loads the kernel
    time.sleep(PAUSE_SECONDS)
    cold = products(COLD_PRODUCTS)
    rows = [row(0.0, cold)]
    a_second = max(1, round(cold * 1e12 / (2 * size**3)))
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        tflops = products(a_second)
        rows.append(row(time.monotonic() - began, tflops))
    return rows


def main() -> None:
    """Measure and print; `--json` also writes."""
    flags = argparse.ArgumentParser(description="BF16 matrix products that last, on this GPU.")
    flags.add_argument("--seconds", type=int, default=20)
    flags.add_argument("--size", type=int, default=8192)
    flags.add_argument("--json", type=Path)
    args = flags.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured")  # `make bench` goes on
        return
    torch.manual_seed(0)
    rows = measure(args.size, args.seconds)
    print(
        f"{torch.cuda.get_device_name()}: {args.size} x {args.size} x {args.size}, BF16, normally distributed numbers"
    )
    for row in rows:
        when = f"after {row['after_s']:4.1f} s" if row["after_s"] else "cold"
        print(f"{when:14} {row['tflops']:6.0f} TFLOP/s  {row['sm_mhz']:5.0f} MHz  {row['watts']:5.0f} W")
    if args.json:
        args.json.write_text(
            json.dumps({"device": torch.cuda.get_device_name(), "size": args.size, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
