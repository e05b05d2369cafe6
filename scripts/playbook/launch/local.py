"""What is started on this machine: the training script, on its GPU or its CPU, and any job in the foreground."""

import os
import secrets
import signal
import subprocess
import tempfile
from pathlib import Path

from playbook import ASSETS
from playbook.common.venvs import python_of
from playbook.plan import local_python

SCRIPT = str(ASSETS / "pretrain_llama.py")
# PyTorch's store would listen on all interfaces; see `pretraining.run.rendezvous`.
WITHOUT_PORT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def command(runtime: str, processes: int, flags: list[str], gpus: str = "") -> tuple[list[str], dict[str, str]]:
    """The command, whose environment need not be there yet, and the environment variables it adds.

    `runtime` is "cpu", with the project's own Python, or "local", with the one that has Megatron-Bridge; `gpus` are
    UUIDs with commas between them, "" for all.
    """
    environment = {"PYTHONUNBUFFERED": "1"}
    if runtime == "cpu":
        python = str(python_of("cpu"))
        environment |= {**on_cpu(max(1, len(os.sched_getaffinity(0)) // processes)), "PYTHONWARNINGS": "ignore"}
        if processes == 1:  # torch.distributed.run would import torch once more just to wait for it
            return [python, SCRIPT, *flags], environment
    else:
        python = local_python.python()
        environment |= {"CUDA_DEVICE_MAX_CONNECTIONS": "1", **({"CUDA_VISIBLE_DEVICES": gpus} if gpus else {})}
    return [*distributed_run(python, processes), SCRIPT, *flags], environment | WITHOUT_PORT


def on_cpu(threads: int) -> dict[str, str]:
    """The variables of a process that computes on the CPU, with so many threads."""
    return {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
        # Here too, where it cannot come late: see pretrain_llama.py.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY") or "PASSIVE",
    }


def distributed_run(python: str, processes: int) -> list[str]:
    """What starts the processes of one machine, which meet in a file: to be used with `WITHOUT_PORT`.

    `python -m torch.distributed.run` and not `torchrun`: that one may belong to another Python.
    """
    file = Path(tempfile.gettempdir()) / f"rendezvous-{secrets.token_hex(16)}"
    meeting = ("--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={file}")
    return [python, "-m", "torch.distributed.run", *meeting, f"--nproc-per-node={processes}"]


def in_foreground(command: list[str]) -> int:
    """Run it on this terminal, from where Ctrl-C reaches it; this process only waits. Returns the exit code."""
    with subprocess.Popen(command) as process:
        meanwhile = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: lambda *_: process.terminate()}
        before = {number: signal.signal(number, handler) for number, handler in meanwhile.items()}
        code = process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
