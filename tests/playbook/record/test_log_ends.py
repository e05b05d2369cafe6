"""What ended a run, from the last words of Megatron, torchrun, shells, Slurm, Kubernetes and kernels."""

import pytest

from playbook.record.log_ends import Failure
from pretraining.record.run_folder import Verdict

CHILD = (
    "Traceback (most recent call last):\n  File 'run.py', line 1\n"
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
)
TORCHRUN = """============================================================
train.py FAILED
Root Cause (first observed failure):
  rank      : 3 (local_rank: 3)
  exitcode  : {code} (pid: 4245)
"""
SLURM = "slurmstepd: error: *** STEP 4242.0 ON node-17 CANCELLED AT 2026-11-22T07:00:00"


@pytest.mark.parametrize(
    ("text", "verdict", "says"),
    [
        (CHILD, Verdict.FAILED, "its own error is not in the log"),
        (CHILD + TORCHRUN.format(code=-11), Verdict.FAILED, "rank 3 ended by SIGSEGV (signal 11)"),
        (CHILD + TORCHRUN.format(code=-9), Verdict.KILLED, "rank 3 ended by SIGKILL"),
        (CHILD + TORCHRUN.format(code=-15), Verdict.INTERRUPTED, "SIGTERM"),
        (
            "failed (exitcode: -7) local_rank: 2 (pid: 9) of binary: python",
            Verdict.FAILED,
            "local rank 2 ended by SIGBUS",
        ),
        ("[node-17:77:0:78] Caught signal 11 (Segmentation fault: address not mapped)", Verdict.FAILED, "SIGSEGV"),
        ("Signal 6 (SIGABRT) received by PID 88", Verdict.FAILED, "SIGABRT"),
        ("/bin/bash: line 12:  4242 Killed                  python train.py", Verdict.KILLED, "SIGKILL"),
        ("Killed", Verdict.KILLED, "SIGKILL"),
        ("srun: error: node-17: task 3: Segmentation fault (core dumped)", Verdict.FAILED, "SIGSEGV"),
        ("srun: error: n1: tasks 0-3: Killed", Verdict.KILLED, "SIGKILL"),
        ("command terminated with exit code 137", Verdict.KILLED, "SIGKILL"),
        ("trainer-1 exited with code 137", Verdict.KILLED, "SIGKILL"),
        ("srun: error: n2: task 1: Exited with exit code 139", Verdict.FAILED, "SIGSEGV"),
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.",
            Verdict.OUT_OF_MEMORY,
            "the host ran out of memory",
        ),
        (
            "Memory cgroup out of memory: Killed process 4242 (python)",
            Verdict.OUT_OF_MEMORY,
            "the host ran out of memory",
        ),
        ("    Reason:       OOMKilled", Verdict.OUT_OF_MEMORY, "the host ran out of memory"),
        ("The node was low on resource: memory.", Verdict.KILLED, "evicted"),
        (f"{SLURM} DUE TO TIME LIMIT ***", Verdict.INTERRUPTED, "the job's time limit"),
        (f"{SLURM} DUE TO PREEMPTION ***", Verdict.INTERRUPTED, "preempted"),
        (f"{SLURM} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***", Verdict.KILLED, "a node failed"),
        (f"{SLURM} ***", Verdict.INTERRUPTED, "cancelled"),
        ("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-22T07:00:00 ***", Verdict.INTERRUPTED, "cancelled"),
        (
            "[rank3]:[E1122 ProcessGroupNCCL.cpp:632] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)",
            Verdict.FAILED,
            "NCCL's watchdog",
        ),
        ("kernel: NVRM: Xid (PCI:0000:0f:00): 79, GPU has fallen off the bus.", Verdict.FAILED, "fallen off the bus"),
        ("[exiting program at iteration 2] datetime: 2026", Verdict.INCOMPLETE, "train.exit_interval asked"),
        ("[exiting program after 4.0 minutes] datetime: 2026", Verdict.INCOMPLETE, "train.exit_duration_in_mins asked"),
        ("[exiting program after receiving SIGTERM.] datetime: 2026", Verdict.INTERRUPTED, "SIGTERM"),
    ],
)
def test_last_words(text: str, verdict: Verdict, says: str) -> None:
    failure = Failure()
    for line in text.splitlines():
        failure.line(line)
    assert (failure.verdict, says in failure.cause) == (verdict, True), failure.cause


@pytest.mark.parametrize(
    "text",
    [
        "all 8 processes exited with code 0",
        "Killed time while waiting",
        "iteration 137 of 138",
        "checkpoint written with exit status: ok",
        "SIGTERM handler installed",
        "exit code: 1",
    ],
)
def test_words_that_end_nothing(text: str) -> None:
    failure = Failure()
    failure.line(text)
    assert not failure.cause


def test_the_first_error_stays_the_cause() -> None:
    failure = Failure()
    for line in (
        "Traceback (most recent call last):",
        "ValueError: the cause",
        *(CHILD + TORCHRUN.format(code=-9)).splitlines(),
    ):
        failure.line(line)
    assert failure.cause == "ValueError: the cause"
