"""`make submit`: the plan and the run folder here, the job by NeMo-Run, and what went wrong in one sentence."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from playbook import PROJECT, plan
from playbook.cluster.config import Cluster
from playbook.cluster.head import ClusterError, Head, explain
from playbook.environments import ensure
from playbook.folders import read_by
from playbook.place import Choice, Place
from playbook.runtimes import cpu
from pretraining import record, settings, switches
from pretraining.errors import UsageError

NEMO = Path(__file__).resolve().with_name("nemo.py")
SCHEDULED_SECONDS = 2.0
# Reasons for which Slurm keeps a job waiting for ever, unless it is set up to refuse it at once.
NEVER = {
    "PartitionNodeLimit": "the partition has not as many nodes: fewer NODES; `sinfo -o '%P %D'` lists them",
    "PartitionConfig": "the partition has no such nodes: fewer NODES or GPUs; `sinfo -o '%P %D %c %G'` lists them",
    "PartitionTimeLimit": "the partition's time limit (`sinfo -o '%P %l'`) is lower: lower time in cluster.yaml",
    "BadConstraints": "no node is like that: fewer NODES or GPUs, or another constraint in cluster.yaml",
    "InvalidAccount": "that is no account of yours: `sacctmgr show assoc user=$USER` lists them",
    "InvalidQOS": "that is no quality of service of yours: `sacctmgr show qos` lists them",
}
HOME = ".submitted"  # below the runs: NeMo-Run's scripts and logs, one folder a job


def planned(args: argparse.Namespace, cluster: Cluster) -> plan.Plan:
    """The plan of a run on the cluster.

    Raises:
        UsageError: sizes that do not fit, or processes that the asked-for GPUs are too few for.
    """
    if args.nodes < 1 or args.nproc < 1:
        raise UsageError(f"NODES={args.nodes} NPROC={args.nproc}: at least one of each is needed")
    if cluster.gpus and args.nproc > cluster.gpus:
        raise UsageError(f"NPROC={args.nproc} is over the {cluster.gpus} GPUs a node of cluster.yaml (gpus:)")
    processes = args.nodes * args.nproc
    chosen = settings.resolve(args, on_gpu=cluster.gpus > 0, processes=processes)
    folder = chosen.run_dir or cluster.runs_folder / record.run_name(chosen.precision.name, chosen.model.name)
    chosen = replace(chosen, run_dir=folder)
    if args.cache_dir == PROJECT / ".cache":
        chosen = replace(chosen, cache_dir=cluster.runs_folder / ".cache")
    given = {name for name, value in vars(args).items() if value is not None}
    where = Choice(f"{args.nodes} x {args.nproc} processes", "NODES x NPROC")
    through = Choice(cluster.executor, f"cluster.yaml; {Head(cluster.host)}")
    place = Place("cluster", image=cluster.image or "", choices={"runtime": through, "processes": where})
    job = plan.make_plan(chosen, place, processes, given)
    if not cluster.gpus:
        job.choices["precision"] = Choice(chosen.precision.name, "emulated exactly on the nodes' CPUs (gpus: 0)")
    return job


def job_of(job: plan.Plan, cluster: Cluster, nodes: int, nproc: int) -> dict[str, Any]:
    """What `nemo.py` is told."""
    chosen = job.settings
    folder = chosen.run_dir
    assert folder is not None
    environment = {"PYTHONUNBUFFERED": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1", **cluster.environment}
    environment |= {name: os.environ[name] for name in switches.NAMES if name in os.environ}
    if not cluster.gpus:
        environment |= cpu.environment_of(threads=1)
    needed = {cluster.runs_folder, folder.parent, chosen.cache_dir, *read_by(chosen)}
    return {
        "name": re.sub(r"[^A-Za-z0-9-]", "-", folder.name),
        "run_dir": str(folder),
        "project": str(PROJECT),
        "home": str(cluster.runs_folder / HOME),
        "local_home": str(PROJECT / ".cache" / "nemo_run" if cluster.host else cluster.runs_folder / HOME),
        "nodes": nodes,
        "nproc": nproc,
        "flags": settings.as_flags(replace(chosen, run_dir=None)),
        "environment": environment,
        "mounts": [*cluster.mounts, *(f"{path}:{path}" for path in sorted(needed))] if cluster.image else [],
        "cluster": asdict(cluster),
    }


def check(cluster: Cluster, folder: Path) -> None:
    """What would keep the job from starting, before anything is made.

    Raises:
        ClusterError: no way to the head node, no Slurm there, or a runs folder that cannot be written to.
        UsageError: the run folder is taken.
    """
    head = Head(cluster.host)
    if cluster.executor == "slurm":
        head.run("sbatch", "--version")
        state = head.run("scontrol", "ping", check=False)
        if "is UP" not in state.stdout:
            said = (state.stderr.strip() or state.stdout.strip() or "nothing").splitlines()[0]
            raise ClusterError(f"Slurm's controller does not answer: scontrol ping on {head} says {said!r}; try later")
    for name in (record.JOB, record.ENVIRONMENT, record.OUTCOME):
        if head.run("test", "-e", str(folder / name), check=False).returncode == 0:
            raise UsageError(f"--run-dir {folder} already holds a run or a submitted job; name another, or `make jobs`")
    beside = folder.parent / f".{folder.name}.{os.getpid()}"
    try:
        head.run("mkdir", "-p", str(folder.parent))
        head.write(beside, "x" * 4096)
    except ClusterError as error:
        raise ClusterError(
            f"{folder.parent} on {head} cannot be written to: {error}\n  "
            "free some space there, or name another shared folder in cluster.yaml (runs:)"
        ) from None
    finally:
        head.run("rm", "-f", str(beside), check=False)


def nemo(job: dict[str, Any], what: str, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Have NeMo-Run submit the job ("submit") or only write its script ("show").

    Args:
        meanwhile: done while NeMo-Run is imported, which takes seconds, and before it is told anything.

    Raises:
        ClusterError: with what Slurm said; no job is left behind.
    """
    process = subprocess.Popen(
        [str(ensure("cluster")), str(NEMO), what],
        env={**os.environ, "NEMORUN_HOME": job["local_home"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C waits until it is known whether there is a job to take back
    )
    try:
        meanwhile()
    except BaseException:
        process.kill()
        process.communicate()
        raise
    try:
        said, errors = process.communicate(json.dumps(job))
    except KeyboardInterrupt:
        said, errors = process.communicate()
        if what == "submit" and (number := _answer(said).get("job")):
            Head(job["cluster"]["host"]).run("scancel", number, check=False)
        raise
    answer = _answer(said) if process.returncode == 0 else {}
    if not answer or (what == "submit" and not answer["job"]):
        raise ClusterError(_why(errors))
    return answer


def _answer(said: str) -> dict[str, Any]:
    """What `nemo.py` printed, {} where it came to no answer."""
    lines = said.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}


def _why(said: str) -> str:
    """The cause in what NeMo-Run and sbatch printed."""
    sbatch = [line.strip() for line in said.splitlines() if line.strip().startswith(("sbatch: error", "sbatch: fatal"))]
    if sbatch:
        return explain(max(sbatch, key=len).split(":", 2)[2].strip())
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"NeMo-Run could not submit the job: {lines[-1] if lines else 'it said nothing'}"


def submit(job: plan.Plan, cluster: Cluster, nodes: int, nproc: int) -> dict[str, Any]:
    """Make the run folder and submit. Returns `job.json`.

    Raises:
        ClusterError, UsageError: nothing is left behind.
    """
    folder = job.settings.run_dir
    assert folder is not None
    told = job_of(job, cluster, nodes, nproc)
    head = Head(cluster.host)
    ours = []

    def make_folder() -> None:
        check(cluster, folder)
        made = head.run("mkdir", str(folder), check=False).returncode == 0
        if not made and head.run("test", "-e", str(folder / record.PLAN), check=False).returncode == 0:
            raise UsageError(f"{folder} was made by another submission just now: try again")
        ours.append(folder)
        _put(head, folder / record.PLAN, job.described(["srun", cluster.python, "cluster_node.py", *told["flags"]]))

    try:
        answer = nemo(told, "submit", make_folder)
    except BaseException:
        if ours:
            _take_back(head, folder)
        raise
    submitted = {
        "schema": record.SCHEMA,
        "job": answer["job"],
        "submitted": record.utc_now(),
        "executor": cluster.executor,
        "host": cluster.host,
        "script": answer["script"],
        "folder": answer["folder"],
        "restarts": cluster.restarts,
    }
    _put(head, folder / record.JOB, submitted)
    if cluster.executor == "slurm" and (never := _never_starts(head, answer["job"])):
        head.run("scancel", answer["job"])
        _take_back(head, folder)
        raise ClusterError(never)
    return submitted


def _take_back(head: Head, folder: Path) -> None:
    """Remove what a submission wrote, and the folder where nothing else is in it."""
    head.run("rm", "-f", str(folder / record.PLAN), str(folder / record.JOB), check=False)
    head.run("rmdir", str(folder), check=False)


def _never_starts(head: Head, number: str) -> str:
    """Why Slurm has taken the job and will not start it, "" where it may."""
    deadline = time.monotonic() + SCHEDULED_SECONDS
    while time.monotonic() < deadline:
        said = head.run("squeue", "-h", "-j", number, "-o", "%T %r", check=False).stdout.split()
        state, reason = (*said, "", "")[:2]
        if state != "PENDING" or reason not in ("None", "Priority"):
            return NEVER.get(reason, "") if state == "PENDING" else ""
        time.sleep(0.2)
    return ""


def _put(head: Head, path: Path, content: dict[str, Any]) -> None:
    beside = path.with_name(f"{path.name}.new")
    head.write(beside, json.dumps(content, indent=2, default=str) + "\n")
    head.run("mv", str(beside), str(path))
