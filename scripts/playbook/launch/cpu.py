"""The CPU runtime: the training script in the project's own environment, without a GPU."""

from __future__ import annotations

import os

from playbook import ASSETS
from playbook.common.venvs import ensure, python_of
from playbook.launch.process import WITHOUT_PORT, distributed_run

SCRIPT = str(ASSETS / "pretrain_llama.py")


def make_ready() -> None:
    """Set its environment up, once. Raises SetupError."""
    ensure("cpu")


def command(processes: int, flags: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command, in the CPU environment, which need not be there yet; and the environment variables it adds.

    One process is started directly: torch.distributed.run would import torch once more just to wait for it.
    """
    python = str(python_of("cpu"))
    threads = max(1, (len(os.sched_getaffinity(0))) // processes)
    environment = {**environment_of(threads), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    if processes == 1:
        return [python, SCRIPT, *flags], environment
    return [*distributed_run(python, processes), SCRIPT, *flags], environment | WITHOUT_PORT


def environment_of(threads: int) -> dict[str, str]:
    """The variables of a process that computes on the CPU, with so many threads."""
    return {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads),
        "NUMBA_NUM_THREADS": str(threads),
        # Here too, where it cannot come late: see pretrain_llama.py.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY") or "PASSIVE",
    }
