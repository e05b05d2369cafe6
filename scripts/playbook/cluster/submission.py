"""`make submit`: the plan and the run folder here, the job by NeMo-Run, and what went wrong in one sentence."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from playbook import PROJECT
from playbook.cluster import slurm
from playbook.cluster.config import Cluster
from playbook.cluster.slurm import ClusterError
from playbook.common.failures import last_line
from playbook.common.venvs import ensure
from playbook.launch import local
from playbook.launch.container.folders import read_by
from playbook.plan import plan
from playbook.plan.place import Choice, Place
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.request import settings
from pretraining.request.recipe import nvfp4_recipe

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
    """The plan of a run on the cluster. Raises UsageError: sizes that do not fit, or more processes than GPUs."""
    if args.nodes < 1 or args.nproc < 1:
        raise UsageError(f"NODES={args.nodes} NPROC={args.nproc}: at least one of each is needed")
    if cluster.gpus and args.nproc > cluster.gpus:
        raise UsageError(f"NPROC={args.nproc} is over the {cluster.gpus} GPUs a node of cluster.yaml (gpus:)")
    processes = args.nodes * args.nproc
    chosen = settings.resolve(args, on_gpu=cluster.on_gpu, processes=processes)
    folder = chosen.run_dir or cluster.runs_folder / run_folder.run_name(chosen.precision.name, chosen.model.name)
    chosen = replace(chosen, run_dir=folder)
    if args.cache_dir == PROJECT / ".cache":
        chosen = replace(chosen, cache_dir=cluster.runs_folder / ".cache")
    where = Choice(f"{args.nodes} x {args.nproc} processes", "NODES x NPROC")
    through = Choice("slurm", "make submit")
    place = Place("cluster", image=cluster.image or "", choices={"runtime": through, "processes": where})
    job = plan.make_plan(chosen, place, processes)
    if not cluster.on_gpu:
        job.choices["precision"] = Choice(chosen.precision.name, "emulated exactly on the nodes' CPUs (gpus: 0)")
    return job


def job_of(job: plan.Plan, cluster: Cluster, nodes: int, nproc: int) -> dict[str, Any]:
    """What `nemo.py` is told."""
    chosen = job.settings
    folder = chosen.run_dir
    assert folder is not None
    environment = {"PYTHONUNBUFFERED": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1", **(cluster.environment or {})}
    environment |= nvfp4_recipe.passed_on()
    if not cluster.on_gpu:
        environment |= local.on_cpu(threads=1)
    needed = {cluster.runs_folder, folder.parent, chosen.cache_dir, *read_by(chosen)}
    return {
        "name": re.sub(r"[^A-Za-z0-9-]", "-", folder.name),
        "run_dir": str(folder),
        "project": str(PROJECT),
        "home": str(cluster.runs_folder / HOME),
        "nodes": nodes,
        "nproc": nproc,
        "gpus_per_node": cluster.gpus_per_node,
        "flags": replace(chosen, run_dir=None).as_flags(),
        "environment": environment,
        "mounts": [*(cluster.mounts or []), *(f"{path}:{path}" for path in sorted(needed))] if cluster.image else [],
        "cluster": asdict(cluster),
    }


def check(folder: Path) -> None:
    """What would keep the job from starting, before anything is made.

    Raises ClusterError: no Slurm here, or a runs folder that cannot be written to; UsageError: the run folder is taken.
    """
    slurm.run("sbatch", "--version")
    state = slurm.run("scontrol", "ping", check=False)
    if "is UP" not in state.stdout:
        said = (state.stderr.strip() or state.stdout.strip() or "nothing").splitlines()[0]
        raise ClusterError(f"Slurm's controller does not answer: scontrol ping says {said!r}; try later")
    if any((folder / name).exists() for name in (run_folder.JOB, run_folder.ENVIRONMENT, run_folder.OUTCOME)):
        raise UsageError(f"--run-dir {folder} already holds a run or a submitted job; name another, or `make jobs`")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder.parent, prefix=f".{folder.name}.") as beside:
            beside.write(b"x" * 4096)
    except OSError as error:
        raise ClusterError(
            f"{folder.parent} cannot be written to: {error.strerror}\n  "
            "free some space there, or name another shared folder in cluster.yaml (runs:)"
        ) from None


def nemo(job: dict[str, Any], what: str, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Have NeMo-Run "submit" the job, or only write its script ("show"). Raises ClusterError with what Slurm said.

    `meanwhile` is done while NeMo-Run is imported, which takes seconds, and before it is told anything.
    """
    process = subprocess.Popen(
        [str(ensure("cluster")), str(NEMO), what],
        env={**os.environ, "NEMORUN_HOME": job["home"]},
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
            _cancel(number)
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
        return slurm.explain(max(sbatch, key=len).split(":", 2)[2].strip())
    return f"NeMo-Run could not submit the job: {last_line(said)}"


def submit(job: plan.Plan, cluster: Cluster, nodes: int, nproc: int) -> dict[str, Any]:
    """Make the run folder and submit. Returns `job.json`. Raises ClusterError or UsageError: nothing is left behind."""
    folder = job.settings.run_dir
    assert folder is not None
    told = job_of(job, cluster, nodes, nproc)
    ours, number = [], ""

    def make_folder() -> None:
        check(folder)
        folder.mkdir(exist_ok=True)
        command = ["srun", cluster.python, "cluster_node.py", *told["flags"]]
        if not run_folder.write_json(folder / run_folder.PLAN, job.described(command), keep_existing=True):
            raise UsageError(f"{folder} was made by another submission just now: try again")
        ours.append(folder)

    try:
        answer = nemo(told, "submit", make_folder)
        number = answer["job"]
        submitted = {
            "schema": run_folder.SCHEMA,
            "job": number,
            "submitted": run_folder.utc_now(),
            "script": answer["script"],
            "folder": answer["folder"],
            "restarts": cluster.restarts,
        }
        run_folder.write_json(folder / run_folder.JOB, submitted)
        if never := _never_starts(number):
            raise ClusterError(never)
        return submitted
    except BaseException:
        if number:
            _cancel(number)
        for path in ours:  # what this wrote, and the folder where nothing else is in it
            (path / run_folder.PLAN).unlink(missing_ok=True)
            (path / run_folder.JOB).unlink(missing_ok=True)
            with suppress(OSError):
                path.rmdir()
        raise


def _cancel(number: str) -> None:
    """Take a job back; where Slurm does not, say which one is left."""
    try:
        slurm.run("scancel", number)
    except ClusterError as error:
        left = f"job {number} may still start: scancel {number} ends it, which failed just now: {error}"
        print(left, file=sys.stderr)


def _never_starts(number: str) -> str:
    """Why Slurm has taken the job and will not start it, "" where it may."""
    deadline = time.monotonic() + SCHEDULED_SECONDS
    while time.monotonic() < deadline:
        said = slurm.run("squeue", "-h", "-j", number, "-o", "%T %r", check=False).stdout.split()
        state, reason = (*said, "", "")[:2]
        if state != "PENDING" or reason not in ("None", "Priority"):
            return NEVER.get(reason, "") if state == "PENDING" else ""
        time.sleep(0.2)
    return ""
