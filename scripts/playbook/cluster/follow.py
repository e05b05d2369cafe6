"""`make jobs`, `make logs` and `make cancel`: what Slurm knows of the submitted runs, and their records."""

import codecs
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playbook.cluster import slurm
from playbook.cluster.config import Cluster
from playbook.cluster.slurm import ClusterError
from playbook.common.tables import print_table
from pretraining.errors import UsageError
from pretraining.record import ends, run_folder, schema
from pretraining.record.run_folder import Verdict
from pretraining.record.schema import Damaged

POLL_SECONDS = 1.0
_AT_ONCE = 1 << 20  # bytes of a log
ASK_SECONDS = 15.0  # between two questions to Slurm's controller while the log grows
_TOLD = dict.fromkeys(("job", "submitted", "folder"), schema.TEXT)


@dataclass(frozen=True)
class Job:
    run: Path  # its folder
    told: dict[str, Any]  # what `job.json` says
    state: str = "UNKNOWN"  # Slurm's word, "UNKNOWN" where Slurm knows it no more
    why: str = ""  # of a pending one, what it waits for
    elapsed: str = ""
    nodes: str = ""
    restarts: int = 0  # how often Slurm has started it again

    @property
    def number(self) -> str:
        return str(self.told["job"])

    @property
    def over(self) -> bool:
        """Whether it has ended for good: RESIZING, SIGNALING, STAGE_OUT and others are states of a job that goes on."""
        return self.state in ends.BY_STATE or self.state == "UNKNOWN"


def submitted(cluster: Cluster) -> list[Job]:
    """Every submitted run, newest last; one whose `job.json` cannot be read is told and left out."""
    jobs = []
    for path in cluster.runs_folder.glob(f"*/{run_folder.JOB}"):
        try:
            told = schema.read(path, _TOLD)
            if missing := _TOLD.keys() - told.keys():
                raise Damaged(path, f"it does not say {' and '.join(sorted(missing))}")
            jobs.append(Job(path.parent, told))
        except (Damaged, OSError) as error:
            print(error, file=sys.stderr)
    return sorted(jobs, key=lambda job: job.told["submitted"])


def state_of(job: Job) -> Job:
    """The same with Slurm's present answer: scontrol's while it remembers the job, then accounting's."""
    said = slurm.run("scontrol", "-o", "show", "job", job.number, check=False)
    if said.returncode == 0:
        facts = dict(re.findall(r"(\w+)=(\S*)", said.stdout))
        return Job(
            job.run, job.told, facts.get("JobState", "UNKNOWN"), facts.get("Reason", "").replace("None", ""),
            facts.get("RunTime", ""), facts.get("NumNodes", ""), int(facts.get("Restarts", 0)),
        )  # fmt: skip
    if "Invalid job id" not in said.stderr:
        raise ClusterError(said.stderr.strip() or "scontrol does not answer")
    said = slurm.run("sacct", "-nXPD", "-j", job.number, "-o", "State,Elapsed,NNodes", check=False)
    lines = [line.split("|") for line in said.stdout.splitlines() if line.count("|") == 2]
    if not lines:
        return job
    state, elapsed, nodes = lines[-1]
    state = state.partition(" ")[0] or "UNKNOWN"  # "CANCELLED by 1000"
    return Job(job.run, job.told, state, "", elapsed, nodes, len(lines) - 1)


def attempt(job: Job) -> Path:
    """The folder of the newest attempt that has begun."""
    for restart in range(job.restarts, 0, -1):
        folder = job.run.with_name(f"{job.run.name}-restart{restart}")
        if folder.is_dir():
            return folder
    return job.run


def settle(job: Job) -> None:
    """Write the verdict of an ended job whose training could not: killed with its node, cancelled while waiting."""
    if not job.over or job.state == "UNKNOWN":
        return
    folder = attempt(job)
    end = ends.BY_STATE[job.state]
    code = 130 if end.verdict is Verdict.INTERRUPTED else 1
    more = "; more with sbatch: {mem: }" if end.verdict is Verdict.OUT_OF_MEMORY else ""
    cause = f"{end.told}{more} (job {job.number}, {job.state})"
    run_folder.write_outcome(folder, end.verdict, cause=cause, exit_code=code)


def pick(cluster: Cluster, name: str | None) -> Job:
    """The job called `name`, by run folder or number; without a name the newest; with its state. Raises UsageError."""
    jobs = submitted(cluster)
    if not jobs:
        raise UsageError(f"no job was submitted from {cluster.runs_folder}: make submit")
    found = [job for job in jobs if name is None or name in (job.number, job.run.name, str(job.run))]
    if not found:
        known = ", ".join(f"{job.run.name} ({job.number})" for job in jobs[-5:])
        raise UsageError(f"RUN={name} is no submitted job; the newest are {known}")
    return state_of(found[-1])


def show(cluster: Cluster) -> int:
    rows = [("JOB", "STATE", "TIME", "NODES", "RUN", "")]
    for job in map(state_of, submitted(cluster)):
        settle(job)
        rest = job.why
        if job.over:
            outcome = run_folder.read_facts(attempt(job)).outcome
            rest = f"{outcome.get('verdict', '')} {outcome.get('cause', '')}".strip()
        again = f" (restart {job.restarts})" if job.restarts else ""
        rows.append((job.number, job.state, job.elapsed, job.nodes, f"{job.run.name}{again}", rest))
    if len(rows) == 1:
        print(f"no job was submitted from {cluster.runs_folder}: make submit")
        return 0
    print_table(rows, left=len(rows[0]))
    return 0


def logs(cluster: Cluster, name: str | None) -> int:
    """Print a job's log as it grows, until it ends. Returns 0 where it succeeded, else 1 or 130."""
    job = pick(cluster, name)
    print(f"{job.run.name}: job {job.number} (Ctrl-C leaves it running)", flush=True)
    shown, folder, waiting, asked = 0, attempt(job), "", time.monotonic()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        read = _from(folder / run_folder.LOG, shown)
        shown += len(read)
        print(decoder.decode(read), end="", flush=True)
        if not read and job.over:
            break
        time.sleep(0 if read else POLL_SECONDS)
        if read and time.monotonic() - asked < ASK_SECONDS:
            continue
        job, asked = state_of(job), time.monotonic()
        if (present := attempt(job)) != folder and not read:
            print(f"-- restarted: {present.name}", flush=True)
            folder, shown = present, 0
        if job.state == "PENDING" and job.why != waiting:
            waiting = job.why
            print(f"waiting: {waiting}", flush=True)
    settle(job)
    ended = run_folder.read_facts(folder)
    print(f"{folder.name}: {ended.verdict} {ended.outcome.get('cause', '')}".rstrip())
    if not shown:
        print(f"it never began to train; the job's own log: {job.told['folder']}")
    if ended.verdict is Verdict.SUCCEEDED:
        return 0
    return 130 if ended.verdict is Verdict.INTERRUPTED else 1


def _from(path: Path, start: int) -> bytes:
    """What a file has from a byte on, b"" where it is not there yet."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(_AT_ONCE)
    except FileNotFoundError:
        return b""


def cancel(cluster: Cluster, name: str | None) -> int:
    """End a job, waiting or running, and wait until it has ended."""
    job = pick(cluster, name)
    if job.over:
        print(f"{job.run.name}: job {job.number} has ended already ({job.state})")
        return 0
    slurm.run("scancel", job.number)
    deadline = time.monotonic() + 60
    while not job.over and time.monotonic() < deadline:
        time.sleep(0.5)
        job = state_of(job)
    settle(job)
    print(f"{job.run.name}: job {job.number} {job.state.lower()}")
    return 0 if job.over else 1
