"""Logs and ends as people paste them in public issues, written anew: each by what it stands for, and the right answer.

Where such words come from: the issue trackers of pytorch/pytorch, NVIDIA/nccl, epfLLM/Megatron-LLM, kubeflow/trainer,
ray-project/ray and nextflow-io/nextflow; the manuals of Slurm, LSF, PBS and journalctl.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from playbook.record.megatron_log import read_log
from pretraining.record.run_folder import Run, Verdict

FP8 = Path(__file__).parents[2] / "logs" / "h200-fp8-0.4.0.log"
TRACEBACK = (
    "[rank{0}]: Traceback (most recent call last):\n[rank{0}]:   File 'train.py', line 88, in step\n[rank{0}]: {1}\n"
)
CHILD = (
    "Traceback (most recent call last):\n  File 'run.py', line 1\n"
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
)


def torchrun(rank: int, code: int) -> str:
    """Its report: partners that it ended, then the one that died."""
    others = f"[0]:\n  rank      : {rank + 1} (local_rank: {rank + 1})\n  exitcode  : -15 (pid: 41)\n"
    first = f"[0]:\n  rank      : {rank} (local_rank: {rank})\n  exitcode  : {code} (pid: 42)\n"
    return f"{CHILD}====\ntrain.py FAILED\n----\nFailures:\n{others}----\nRoot Cause (first observed failure):\n{first}"


LOST = TRACEBACK.format(
    1, "torch.distributed.DistBackendError: NCCL error: remote process exited or there was an error"
)
SLURM_LIMIT = "slurmstepd: error: *** STEP 77.0 ON gpu-3 CANCELLED AT 2026-11-22T07:00:00 DUE TO TIME LIMIT ***"
ENDS = {
    "killed, and Slurm says for want of memory": (
        f"{torchrun(3, -9)}\nslurmstepd: error: Detected 1 oom_kill event in StepId=77.0. Some of the step tasks have "
        "been OOM Killed.\nsrun: error: gpu-3: task 3: Out Of Memory\n",
        Verdict.OUT_OF_MEMORY, "the host ran out of memory",
    ),
    "a task of srun out of memory": (
        "srun: error: gpu001: task 0: Out Of Memory\n", Verdict.OUT_OF_MEMORY, "the host ran out of memory",
    ),
    "asked to end, and Slurm says why": (
        TRACEBACK.format(0, "torch.distributed.elastic.multiprocessing.api.SignalException: Process 88 got signal: 15")
        + SLURM_LIMIT, Verdict.INTERRUPTED, "the job's time limit",
    ),
    "partners lost before a task's own end is told": (
        f"{LOST}srun: error: gpu-3: task 6: Segmentation fault (core dumped)\n", Verdict.FAILED, "SIGSEGV",
    ),
    "partners lost, and a node failed": (
        f"{LOST}srun: error: Node failure on gpu-3\n", Verdict.KILLED, "a node failed",
    ),
    "the rank that died after those that were ended": (torchrun(3, -11), Verdict.FAILED, "rank 3 ended by SIGSEGV"),
    "an exception of C++": (
        "terminate called after throwing an instance of 'c10::Error'\n  what():  CUDA error: device-side assert "
        f"triggered\n{torchrun(0, -6)}", Verdict.FAILED, "device-side assert triggered",
    ),
    "a spawned process aborted": (
        TRACEBACK.format(0, "torch.multiprocessing.spawn.ProcessExitedException: process 1 terminated with signal "
                         "SIGABRT"), Verdict.FAILED, "process 1 terminated with signal SIGABRT",
    ),
    "mpirun": (
        "mpirun noticed that process rank 5 with PID 0 on node gpu-3 exited on signal 9 (Killed).\n",
        Verdict.KILLED, "rank 5 ended by SIGKILL",
    ),
    "LSF's run limit": (
        "TERM_RUNLIMIT: job killed after reaching LSF run time limit.\nExited with exit code 140.\n",
        Verdict.INTERRUPTED, "the job's time limit",
    ),
    "LSF's memory limit": (
        "Exited by signal 9.\nTERM_MEMLIMIT: job killed after reaching LSF memory usage limit.\n",
        Verdict.OUT_OF_MEMORY, "the host ran out of memory",
    ),
    "PBS's wall time": (
        "=>> PBS: job killed: walltime 3615 exceeded limit 3600\n", Verdict.INTERRUPTED, "the job's time limit",
    ),
    "evicted from Kubernetes": (
        "command terminated with exit code 137\nStatus:  Failed\nReason:  Evicted\nMessage: The node was low on "
        "resource: ephemeral-storage.\n", Verdict.KILLED, "evicted from its node",
    ),
    "Kubernetes' deadline": (
        "Warning  DeadlineExceeded  3s  job-controller  Job was active longer than specified deadline\n",
        Verdict.INTERRUPTED, "the job's time limit",
    ),
    "a device's memory is broken": (
        TRACEBACK.format(2, "RuntimeError: CUDA error: uncorrectable ECC error encountered") + torchrun(2, 1),
        Verdict.FAILED, "uncorrectable ECC error",
    ),
    "a rank's error before the watchdog of the others": (
        TRACEBACK.format(4, "ValueError: batch of 0 samples") + "[rank1]:[E1122 ProcessGroupNCCL.cpp:616] [Rank 1] "
        f"Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9)\n{torchrun(1, -6)}",
        Verdict.FAILED, "ValueError: batch of 0 samples",
    ),
}  # fmt: skip


def tail_of(text: str) -> bytes:
    """The real log broken off after seven iterations, with these last words."""
    log = FP8.read_text()
    cut = log.index("Step Time", log.index(" iteration        7/"))
    return (log[:cut] + text).encode()


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Run]:
    def read_bytes(content: bytes) -> Run:
        path = tmp_path / "train.log"
        path.write_bytes(content)
        return read_log(path)

    return read_bytes


@pytest.mark.parametrize("name", ENDS)
def test_why_it_ended(read: Callable[[bytes], Run], name: str) -> None:
    text, verdict, says = ENDS[name]
    run = read(tail_of(text))
    assert (run.verdict, says in run.outcome["cause"]) == (verdict, True), run.outcome
    assert len(run.train) == 7


def by_journal(log: bytes) -> bytes:
    """`journalctl -o json`."""
    return "".join(json.dumps({"_PID": "7", "MESSAGE": line}) + "\n" for line in log.decode().splitlines()).encode()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "journald's JSON": by_journal,
    "Ray's shortening": lambda log: b"".join(
        line.replace(b" |\n", b" | [repeated 2x across cluster]\n") if b"] iteration" in line else line
        for line in log.splitlines(keepends=True)
    ),
    "blanks of a web page": lambda log: log.replace(b"  ", b" \xc2\xa0"),
    "a byte order mark of UTF-8": lambda log: b"\xef\xbb\xbf" + log,
    "a terminal that script recorded": lambda log: b"Script started on 2026-11-22 06:50:01\n\x1b]0;you@node: ~\x07"
    + log.replace(b"\n", b"\r\n") + b"\r\nScript done on 2026-11-22 07:10:01+00:00\r\n",
    "times between iterations": lambda log: log.replace(
        b"nan iterations:   0 |\n", b"nan iterations:   0 |\ntime (ms) | forward-compute: 193.77 | optimizer: 63.01\n"),
    "further fields": lambda log: log.replace(
        b" loss scale:", b" load_balancing_loss: 1.01E+00 | num zeros: 12 | params norm: 31.2 | loss scale:"),
    "DeepSpeed's at the end": lambda log: log.replace(
        b"nan iterations:   0 |\n", b"nan iterations:   0 | samples per second: 11.1 | TFLOPs: 96.20 |\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_in_which_form_it_was_kept(read: Callable[[bytes], Run], name: str) -> None:
    run, whole = read(FORMS[name](FP8.read_bytes())), read_log(FP8)
    assert (run.train, run.parity, run.precision) == (whole.train, whole.parity, whole.precision)
    assert run.outcome == whole.outcome


def test_lines_without_a_clock_behind_one_of_dockers(read: Callable[[bytes], Run]) -> None:
    """Earlier Megatron-LMs print none; of a loss scale that is too large the first iterations are skipped."""
    lines = [
        f" iteration {number:8}/     500 | consumed samples: {number * 8:12} | elapsed time per iteration (ms): 140.6 |"
        f" learning rate: 1.0E-05 | global batch size:     8 |{'' if number < 4 else ' lm loss: 2.5E+00 |'}"
        f" loss scale: 65536.0 |{'' if number < 4 else ' grad norm: 0.25 |'} number of skipped iterations: "
        f"{int(number < 4):3} | number of nan iterations:   0 |"
        for number in range(1, 21)
    ]
    text = "using world size: 8, data-parallel-size: 8\n" + "\n".join(lines)
    stamped = [f"2026-11-22T06:00:{number:02}.123456789Z {line}\n" for number, line in enumerate(text.splitlines())]
    run = read("".join(["Megatron-LM\n", *stamped]).encode())
    assert [line["loss"] for line in run.train] == [None] * 3 + [2.5] * 17
    assert [line["skipped"] for line in run.train] == [1] * 3 + [0] * 17
    assert run.parity["global_batch_size"] == 8


def test_half_of_a_compressed_log_is_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "train.log.gz"
    packed = gzip.compress(FP8.read_bytes())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(OSError, match="compressed, and damaged or cut"):
        read_log(path)
