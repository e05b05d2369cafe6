"""What the launcher adds to a container: start-up over a hand-typed docker run, cost while it watches, throughput.

On the tests' private engine, so it needs root; it says so and ends where it cannot have one.

    python tests/benchmarks/bench_container.py
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "engine"))
sys.path.insert(0, str(PROJECT / "scripts"))

import conftest  # noqa: E402
import private_engine  # noqa: E402

STARTS = 5
START_LIMIT_S = 1.0
CORE_LIMIT = 0.01
MEMORY_LIMIT_MB = 80
LINES = 200_000
LINES_LIMIT_S = 60


def start_up(station: conftest.Station) -> tuple[float, float]:
    """Median seconds to the container's first line: through make, and by the printed docker command."""
    through_make, by_hand = [], []
    for number in range(STARTS):
        folder = station.runs / f"start-{number}"
        launcher = " ".join(station.command("nvfp4", "--run-dir", str(folder), tag="first"))
        python = station.home / "python"  # does what make's own would: check the set-up, then become the launcher
        python.write_text(f"#!/bin/sh\n{sys.executable} scripts/setup.py host\nexec {launcher}\n")
        python.chmod(0o755)
        began = time.time()
        make = ["make", "-C", PROJECT, "nvfp4", f"PYTHON={python}"]
        subprocess.run(make, env=station.environment(), stdout=subprocess.DEVNULL, check=True)
        through_make.append(json.loads((folder / "first.json").read_text()) - began)
        script = subprocess.run(
            [*station.command("nvfp4", "--run-dir", str(folder), tag="first"), "--dry-run"],
            env=station.environment(), capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        typed = station.home / "typed.sh"
        typed.write_text(script)
        for each in folder.iterdir():
            each.unlink()
        began = time.time()
        subprocess.run(["sh", "-e", typed], env=station.environment(), stdout=subprocess.DEVNULL, check=True)
        by_hand.append(json.loads((folder / "first.json").read_text()) - began)
        for each in station.containers():
            station.api.remove_container(each["Id"], force=True)
    return statistics.median(through_make), statistics.median(by_hand)


def watching(station: conftest.Station, seconds: float = 20) -> tuple[float, float]:
    """Share of a core and MB of the launcher while 20 lines a second stream."""
    running = station.start(tag="steady")
    station.training()
    time.sleep(1)
    before, began = _cpu_seconds(running.pid), time.monotonic()
    time.sleep(seconds)
    share = (_cpu_seconds(running.pid) - before) / (time.monotonic() - began)
    resident = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{running.pid}/status").read_text())[1]) / 1000
    running.terminate()
    running.wait(timeout=20)
    return share, resident


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def streaming(station: conftest.Station) -> tuple[int, float]:
    """Lines received of a container that prints 200,000 as fast as it can, and the seconds that took."""
    from playbook.launch.container import engine
    from playbook.launch.container.container_process import ContainerProcess
    from playbook.launch.container.spec import Container, Folder

    os.environ["DOCKER_HOST"] = station.engine.address
    run = station.home / "flood"
    run.mkdir()
    caches = {name: str(run) for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    asked = Container(
        image="nvcr.io/nvidia/nemo:flood", name=None, secrets=(), folders=(Folder(run, True),), user="0:0",
        command=["/opt/venv/bin/python", "-m", "standin_training", "--run-dir", str(run), "--train-iters", "1"],
        environment=caches, workdir=str(run), gpu=None,
    )  # fmt: skip
    began = time.monotonic()
    process = ContainerProcess.start(engine.connect(), asked, run)
    received = [line for line in process.lines() if line.startswith(b"line ")]
    seconds = time.monotonic() - began
    while process.poll() is None:
        time.sleep(0.05)
    process.close(recorded=True)
    in_order = received == [b"line %d" % number for number in range(LINES)]
    return len(received) if in_order else -1, seconds


def main() -> int:
    """Run the three; exit code 1 where one misses its bar."""
    if reason := private_engine.why_not():
        print(f"skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory() as folder, private_engine.PrivateEngine(Path(folder) / "e") as engine:
        host = conftest.Host(engine.address, own=engine)
        conftest.import_images(host, ("first", "steady", "flood"))
        api = host.client()
        homes = [Path(folder) / name for name in ("start", "watch", "stream")]
        for home in homes:
            home.mkdir()
        starting, watched, streamed = (conftest.Station(host, api, home) for home in homes)
        made, typed = start_up(starting)
        share, resident = watching(watched)
        received, seconds = streaming(streamed)
    more = f"{made - typed:.2f} s more, {made / typed:.2f} times (at most {START_LIMIT_S:.1f} s more)"
    print(f"first line      {made:.2f} s through make, {typed:.2f} s by docker run: {more}")
    print(f"while watching  {share:.2%} of a core, {resident:.0f} MB (under {CORE_LIMIT:.0%} and {MEMORY_LIMIT_MB} MB)")
    print(f"streaming       {received} of {LINES} lines in {seconds:.1f} s (all, within {LINES_LIMIT_S} s)")
    reached = made - typed <= START_LIMIT_S and share < CORE_LIMIT and resident < MEMORY_LIMIT_MB
    return 0 if reached and received == LINES and seconds <= LINES_LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
