"""The local runtime: the training script on this machine's GPU, with the Python that has Megatron-Bridge."""

from __future__ import annotations

from playbook import ASSETS
from playbook.launch.process import WITHOUT_PORT, distributed_run
from playbook.plan import local_python

SCRIPT = str(ASSETS / "pretrain_llama.py")


def command(processes: int, flags: list[str], gpu: str | None = None) -> tuple[list[str], dict[str, str]]:
    """The command and the environment variables it adds.

    Args:
        gpu: the UUID of the only one to use, or None for all.
    """
    launcher = distributed_run(local_python.python(), processes)
    environment = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONUNBUFFERED": "1", **WITHOUT_PORT}
    if gpu:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    return [*launcher, SCRIPT, *flags], environment
