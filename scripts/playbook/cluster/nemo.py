"""NeMo-Run's part: a job, as JSON on standard input, becomes an experiment with one script. Runs in .venv/cluster.

    nemo.py submit|show       with NEMORUN_HOME set; prints {"job": "17", "script": "...", "folder": "..."}

Nothing else of the project imports NeMo-Run, so that its 123 packages stay in an environment of their own. No torchrun
launcher of its: that would start one process a node (--nproc-per-node 1 with one task), number the nodes in the batch
shell, where SLURM_NODEID is always 0, and take the first `torchrun` on PATH. `cluster_node.py` does it.
"""

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


def executor_of(run: Any, job: dict[str, Any]) -> Any:
    """The NeMo-Run executor of a job. What is None in `cluster.yaml` becomes no flag of sbatch."""
    cluster = job["cluster"]
    setup = _SETUP.format(run=shlex.quote(job["run_dir"]), restarts=cluster["restarts"] or 0)
    before = cluster["end_before_limit"]
    further = {str(name).replace("-", "_"): value for name, value in (cluster["sbatch"] or {}).items()}
    return run.SlurmExecutor(
        account=cluster["account"],
        job_name_prefix="nvfp4-playbook.",  # without one it takes the account apart, and fails where there is none
        partition=cluster["partition"],
        time=cluster["time"],
        nodes=job["nodes"],
        ntasks_per_node=1,
        gpus_per_node=job["gpus_per_node"],
        exclusive=cluster["exclusive"] or None,
        signal=f"TERM@{before}" if cluster["restarts"] and before is not None else None,
        container_image=cluster["image"],
        container_mounts=job["mounts"],
        additional_parameters={name: value for name, value in further.items() if value is not None},
        srun_args=["--no-container-mount-home"] if cluster["image"] else None,
        tunnel=run.LocalTunnel(job_dir=""),  # NEMORUN_HOME lies where all nodes see scripts and logs
        packager=run.PatternPackager(  # the default GitArchivePackager drops edits that are not committed
            include_pattern=str(Path(job["project"]) / "assets"), relative_path=job["project"]
        ),
        # It writes `export NAME=value` as it is, and makes the name upper case.
        env_vars={name: shlex.quote(str(value)) for name, value in job["environment"].items()},
        setup_lines=setup if cluster["restarts"] else setup + _NEVER_AGAIN,
        poll_estimated_start_time=False,  # it would keep a thread asking squeue
    )


def main() -> int:
    """Submit or show. What NeMo-Run prints goes to stderr; the answer is one line on stdout."""
    answer_to = os.dup(1)
    os.dup2(2, 1)
    import nemo_run as run  # before the job is known: it takes seconds, in which the launcher makes sure of the rest

    job = json.load(sys.stdin)
    words = [job["cluster"]["python"], f"{CODE}/cluster_node.py", job["run_dir"], str(job["nproc"]), *job["flags"]]
    script = run.Script(inline=f"exec {shlex.join(words)}\n")  # our own launcher, once a node
    executor = executor_of(run, job)
    with run.Experiment(job["name"], executor=executor, log_level="ERROR") as experiment:
        experiment.add(script, name=job["name"], tail_logs=False)
        if sys.argv[1] == "show":
            experiment.dryrun(log=False, delete_exp_dir=False)
        else:
            experiment.run(detach=True)  # its own waiting outlives Ctrl-C, and exits 0 when the job failed
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
