"""NeMo-Run's part: a job, as JSON on standard input, becomes an experiment with one script. Runs in .venv/cluster.

    nemo.py submit|show       with NEMORUN_HOME set; prints {"job": "17", "script": "...", "folder": "..."}

Nothing else of the project imports NeMo-Run, so that its 123 packages stay in an environment of their own. What it
needs to be told, because its defaults would surprise:

* LocalTunnel's job_dir is "" and NEMORUN_HOME lies on the shared file system: scripts and logs are seen by all nodes.
* No torchrun launcher: it would start one process a node (--nproc-per-node 1 with one task), number the nodes in the
  batch shell, where SLURM_NODEID is always 0, and take the first `torchrun` on PATH. `cluster_node.py` does it.
* A PatternPackager: the default GitArchivePackager drops edits that are not committed.
* Values in env_vars are quoted here: NeMo-Run writes `export NAME=value` as it is, and makes the name upper case.
* Detached: its own waiting neither ends nor cancels on Ctrl-C, and exits 0 when the job failed. The run folder and
  Slurm say how it ended (`follow.py`).
* A job_name_prefix: without one it takes the account apart, and fails where there is none.
* poll_estimated_start_time is off: it would keep a thread asking squeue.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Any

CODE = "/nemo_run/code/assets"
# Slurm does not requeue a job that comes to its time limit. The job asks for it itself where its attempt was
# interrupted while it still runs; one that is being cancelled is not running any more.
_SETUP = """
export PLAYBOOK_HEAD=$(scontrol -o show node "$head_node" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
attempt={run}; [ "${{SLURM_RESTART_COUNT:-0}}" -eq 0 ] || attempt={run}-restart$SLURM_RESTART_COUNT
again() {{
  grep -qs '"verdict": "interrupted"' "$attempt/outcome.json" || return 0
  [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ] || return 0
  [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ] || return 0
  scontrol requeue "$SLURM_JOB_ID"
}}
trap again EXIT
"""
_NEVER_AGAIN = "scontrol update jobid=$SLURM_JOB_ID requeue=0\n"


def executor_of(job: dict[str, Any]) -> Any:
    """The NeMo-Run executor of a job."""
    import nemo_run as run

    cluster = job["cluster"]
    packager = run.PatternPackager(include_pattern=str(Path(job["project"]) / "assets"), relative_path=job["project"])
    environment = {name: shlex.quote(str(value)) for name, value in job["environment"].items()}
    if cluster["executor"] == "slurm":
        return _slurm(run, job, packager, environment)
    if cluster["executor"] == "kubeflow":
        given = cluster["kubeflow"]
        return run.KubeflowExecutor(
            namespace=given.get("namespace", "default"),
            image=cluster["image"],
            num_nodes=job["nodes"],
            nprocs_per_node=job["nproc"],
            gpus_per_node=cluster["gpus"] or None,
            workdir_pvc=given.get("volume_claim"),
            workdir_pvc_path=given.get("mounted_at", "/runs"),
            launcher="torchrun",
            packager=packager,
            env_vars=job["environment"],
        )
    given = dict(cluster["skypilot"])
    return run.SkypilotExecutor(
        container_image=cluster["image"],
        cloud=given.pop("cloud", None),
        gpus=given.pop("gpu", None),
        gpus_per_node=cluster["gpus"] or None,
        num_nodes=job["nodes"],
        torchrun_nproc_per_node=job["nproc"],
        launcher="torchrun",
        packager=run.GitArchivePackager(),  # it takes no other: what is not committed stays here
        env_vars=job["environment"],
        **given,
    )


def _slurm(run: Any, job: dict[str, Any], packager: Any, environment: dict[str, str]) -> Any:
    cluster = job["cluster"]
    tunnel = run.LocalTunnel(job_dir="")
    if cluster["host"]:
        user, _, host = cluster["host"].rpartition("@")
        tunnel = run.SSHTunnel(host=host, user=user or os.environ.get("USER", "root"), job_dir=job["home"])
    setup = _SETUP.format(run=shlex.quote(job["run_dir"]), restarts=cluster["restarts"])
    further = {str(name).replace("-", "_"): value for name, value in cluster["sbatch"].items()}
    return run.SlurmExecutor(
        account=cluster["account"],
        job_name_prefix="nvfp4-playbook.",
        partition=cluster["partition"],
        time=cluster["time"],
        nodes=job["nodes"],
        ntasks_per_node=1,
        gpus_per_node=cluster["gpus"] or None,
        exclusive=cluster["exclusive"] or None,
        signal=f"TERM@{cluster['end_before_limit']}" if cluster["restarts"] else None,
        container_image=cluster["image"],
        container_mounts=job["mounts"],
        additional_parameters=further,
        srun_args=["--no-container-mount-home"] if cluster["image"] else None,
        tunnel=tunnel,
        packager=packager,
        env_vars=environment,
        setup_lines=setup if cluster["restarts"] else setup + _NEVER_AGAIN,
        poll_estimated_start_time=False,
    )


def script_of(run: Any, job: dict[str, Any]) -> Any:
    """What the executor starts: on Slurm our own launcher once a node, elsewhere NeMo-Run's torchrun the training."""
    if job["cluster"]["executor"] == "slurm":
        words = [job["cluster"]["python"], f"{CODE}/cluster_node.py", job["run_dir"], str(job["nproc"]), *job["flags"]]
        return run.Script(inline=f"exec {shlex.join(words)}\n")
    arguments = [*job["flags"], "--run-dir", job["run_dir"]]
    return run.Script(path=f"{CODE}/pretrain_llama.py", entrypoint="python", args=arguments)


def main() -> int:
    """Submit or show. What NeMo-Run prints goes to stderr; the answer is one line on stdout."""
    answer_to = os.dup(1)
    os.dup2(2, 1)
    import nemo_run as run  # before the job is known: it takes seconds, in which the launcher makes sure of the rest

    job = json.load(sys.stdin)
    executor = executor_of(job)
    script = script_of(run, job)
    with run.Experiment(job["name"], executor=executor, log_level="ERROR") as experiment:
        experiment.add(script, name=job["name"], tail_logs=False)
        if sys.argv[1] == "show":
            experiment.dryrun(log=False, delete_exp_dir=False)
        else:
            experiment.run(detach=True)
        task = experiment.jobs[0]
        folder = Path(experiment._exp_dir)
        answer = {
            "job": (task.handle or "").rpartition("/")[2] or None,
            "state": str(task.state.name) if sys.argv[1] != "show" else None,
            "script": str(folder / f"{task.executor.job_name}_sbatch.sh"),
            "folder": str(folder),
        }
    with contextlib.suppress(OSError):
        os.write(answer_to, (json.dumps(answer) + "\n").encode())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:
        traceback.print_exc()
        sys.exit(1)
