"""Measures the report of two runs of 1,000,000 iterations each: seconds (the fastest of three), memory, page size.

    PYTHONPATH=assets:scripts python tests/benchmarks/bench_report.py

The runs are in memory already, as they are after comparing. Exit code 1 where it takes 3 s, 300 MB more than the runs,
or a page of 3 MB (1e6 bytes a MB) or more.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "playbook" / "report"))

import cases

from playbook import report

ITERATIONS = 1_000_000
REPEATS = 3  # other work on the machine only ever makes one slower
SECONDS, MEGABYTES, PAGE = 3.0, 300.0, 3.0


def main() -> int:
    """Make the runs, report them, print what it took."""
    comparison, runs = cases.long(ITERATIONS)
    before = peak()
    took = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS):
            start = time.perf_counter()
            _, page, *_ = report.write(comparison, runs, Path(folder))
            took.append(time.perf_counter() - start)
        size = page.stat().st_size / 1e6
    more = peak() - before
    print(f"2 runs of {ITERATIONS:,} iterations: {' '.join(f'{seconds:.2f} s' for seconds in took)}")
    print(f"page {size:.2f} MB, {more:.0f} MB of memory above {before:.0f} MB; load {os.getloadavg()[0]:.1f}")
    print(f"limits: {SECONDS} s for the fastest, {MEGABYTES:.0f} MB, page {PAGE} MB")
    return 0 if min(took) < SECONDS and more < MEGABYTES and size < PAGE else 1


def peak() -> float:
    """Peak resident memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
