"""The command line behind the cluster's make targets."""

import argparse
from pathlib import Path

from playbook.cluster import config, follow, submission
from playbook.cluster.config import Cluster
from playbook.plan import earlier_run, plan
from pretraining.request import flags as training_flags

JOBS = ("submit", "jobs", "logs", "cancel")


def parser() -> argparse.ArgumentParser:
    """The training script's flags, and where to send it."""
    flags = training_flags.parser("run.py")
    flags.add_argument("what", choices=JOBS)
    flags.add_argument("--nodes", type=int, default=1, metavar="N", help="machines")
    flags.add_argument("--nproc", type=int, default=1, metavar="N", help="processes a machine, one a GPU")
    flags.add_argument("--cluster", type=Path, default=config.FILE, metavar="FILE", help="default cluster.yaml")
    flags.add_argument("--dry-run", action="store_true", help="write the batch script and show it")
    flags.add_argument("--wait", action="store_true", help="follow the log to the job's end, and exit as it did")
    flags.add_argument("--run", metavar="NAME", help="of jobs, logs and cancel: a run folder's name or a job's number")
    return flags


def run(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    cluster = config.read(args.cluster)
    if args.what == "submit":
        return _submit(args, cluster)
    if args.what == "jobs":
        return follow.show(cluster)
    return {"logs": follow.logs, "cancel": follow.cancel}[args.what](cluster, args.run)


def _submit(args: argparse.Namespace, cluster: Cluster) -> int:
    if args.resume:
        earlier_run.like_run(args, earlier_run.folder_of(args.resume, cluster.runs_folder))
    job = submission.planned(args, cluster)
    folder = job.settings.run_dir
    assert folder is not None
    if args.dry_run:
        told = submission.job_of(job, cluster, args.nodes, args.nproc)
        script = submission.nemo(told, "show")["script"]
        print(f"# {script}, not submitted")
        print(Path(script).read_text(encoding="utf-8"), end="")
        return 0
    print(f"{job.settings.precision.name}:")
    plan.show(job, folder)
    submitted = submission.submit(job, cluster, args.nodes, args.nproc)
    print(f"submitted as job {submitted['job']}: make logs, make jobs, make cancel RUN={submitted['job']}", flush=True)
    return follow.logs(cluster, submitted["job"]) if args.wait else 0
