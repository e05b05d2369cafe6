#!/usr/bin/env python3
"""What Slurm starts on each node: the launcher of this node's training processes, and the next attempt's folder.

    srun python cluster_node.py RUN_DIR NPROC [flags of pretrain_llama.py]

A job that Slurm starts again (preempted, a node lost, its time up) trains in RUN_DIR-restart1 and so on, from the last
checkpoint of the attempts before it. Exit codes are the training's; the attempt's folder has the verdict.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pretraining.errors import UsageError
from pretraining.record import lock, run_folder
from pretraining.record.run_folder import Verdict
from pretraining.request.models import MOCK, PYTHON_STDLIB
from pretraining.run import signals

SCRIPT = Path(__file__).resolve().with_name("pretrain_llama.py")
VERDICT_SECONDS = 3.0
POLL_SECONDS = 0.25
FIRST_PORT, PORTS = 20_000, 10_000


def attempt_folder(first: Path, restarts: int) -> Path:
    """The folder of an attempt, counted from 0."""
    return first if restarts == 0 else first.with_name(f"{first.name}-restart{restarts}")


def last_checkpoint(first: Path, restarts: int) -> Path | None:
    """The newest earlier attempt that has a checkpoint."""
    earlier = (attempt_folder(first, attempt) for attempt in reversed(range(restarts)))
    return next(filter(run_folder.has_checkpoint, earlier), None)


def without(flags: list[str], name: str) -> list[str]:
    """`flags` without `name` and its value."""
    if name not in flags:
        return flags
    at = flags.index(name)
    return flags[:at] + flags[at + 2 :]


def unseen(flags: list[str]) -> str | None:
    """The path of a flag that this node cannot see, in words."""
    for flag, path in itertools.pairwise(flags):
        if flag == "--resume" and not Path(path).is_dir():
            return f"--resume {path}"
        if flag == "--data" and path not in (MOCK, PYTHON_STDLIB):
            wanted = [path] if "--finetune" in flags else _datasets(path)
            if missing := [name for name in wanted if not Path(name).exists()]:
                return f"--data: {', '.join(missing)}"
    return None


def _datasets(data: str) -> list[str]:
    """The files behind the words of `blends.py`, whose own reader would stop at the first that is missing."""
    prefixes = [data]  # which alone is not quoted
    if not Path(data).parent.is_dir():
        with contextlib.suppress(ValueError):  # a quotation mark in a folder that is missing
            prefixes = [word.rpartition("=")[2] for word in shlex.split(data)]
    return [f"{prefix}{end}" for prefix in prefixes if prefix.startswith("/") for end in (".bin", ".idx")]


def main() -> int:
    """Start this node's processes and wait for them. Returns the exit code."""
    first, processes, flags = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    slurm = {name: os.environ[f"SLURM_{name}"] for name in ("JOB_ID", "NNODES", "NODEID")}
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    folder = attempt_folder(first, restarts)
    where = f"node {slurm['NODEID']} ({os.environ.get('SLURMD_NODENAME', '?')})"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"{where} cannot make {folder}: {error.strerror}; runs: in cluster.yaml must be shared", file=sys.stderr)
        return 1
    os.environ[lock.VARIABLE] = f"job {slurm['JOB_ID']} attempt {restarts}"
    try:
        held = lock.hold(folder, os.environ[lock.VARIABLE], "launcher")
    except UsageError as error:
        print(f"{where}: {error}", file=sys.stderr)
        return 2
    if held.problem:
        print(f"{where}: {held.problem}", file=sys.stderr)
    if missing := unseen(flags):
        cause = f"{where} cannot see {missing}: it must be on a file system that every node mounts"
        print(cause, file=sys.stderr)
        run_folder.write_outcome(folder, Verdict.FAILED, cause=cause, exit_code=2)
        return 2
    if restarts and slurm["NODEID"] == "0":
        shutil.copyfile(first / run_folder.PLAN, folder / run_folder.PLAN)
    if resume := last_checkpoint(first, restarts):
        flags = [*without(without(flags, "--resume"), "--iteration"), "--resume", str(resume)]
    port = FIRST_PORT + (int(slurm["JOB_ID"]) * 16 + restarts) % PORTS
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={slurm['NNODES']}"]
    launcher += [f"--node-rank={slurm['NODEID']}", f"--nproc-per-node={processes}"]
    launcher += [f"--master-addr={os.environ['PLAYBOOK_HEAD']}", f"--master-port={port}"]
    return _watch([*launcher, str(SCRIPT), *flags, "--run-dir", str(folder)], folder, where)


def _watch(command: list[str], folder: Path, where: str) -> int:
    """Run to the end; write the verdict that the training processes could not."""
    asked_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked_to_end.append(number))  # before it could leave one behind
    # What else ends a process that cannot save is in `ending.py`; one that can may take its time.
    process = subprocess.Popen(command, env={signals.GRACE_VARIABLE: str(signals.GRACE_SECONDS), **os.environ})
    while process.poll() is None and not asked_to_end:
        time.sleep(POLL_SECONDS)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    code = process.wait()
    if code and asked_to_end:
        cause = "Slurm asked it to end (SIGTERM): near its time limit, preempted or cancelled"
        run_folder.write_outcome(folder, Verdict.INTERRUPTED, cause=cause, exit_code=130)
        return 130
    deadline = time.monotonic() + VERDICT_SECONDS  # the process that raised says why, perhaps on another node
    while code and not (folder / run_folder.OUTCOME).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    if code:
        cause = f"training on {where} ended with exit code {code}: see {run_folder.LOG}"
        run_folder.write_outcome(folder, Verdict.FAILED, cause=cause, exit_code=1)
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
