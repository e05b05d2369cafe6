"""The local runtime: the training script on this machine's GPU, with the Python that has Megatron-Bridge.

Inside the NeMo container that is /opt/venv/bin/python, first on PATH; on bare metal whatever `python3` is.
"""

from __future__ import annotations

import functools
import shutil
import subprocess

from playbook import ASSETS
from pretraining.errors import UsageError

SCRIPT = str(ASSETS / "pretrain_llama.py")


def python() -> str:
    """The interpreter that trains: the first python3 on PATH."""
    return shutil.which("python3") or "python3"


@functools.cache
def gpu() -> str | None:
    """The names of this machine's NVIDIA GPUs, or None where there is none."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = [line.strip() for line in listed.stdout.splitlines() if line.strip()]
    return ", ".join(names) if listed.returncode == 0 and names else None


@functools.cache
def check() -> None:
    """Raise UsageError where the local Python cannot train with Megatron-Bridge."""
    found = subprocess.run(
        [python(), "-c", "import importlib.util as u; raise SystemExit(0 if u.find_spec('megatron.bridge') else 1)"],
        capture_output=True,
        check=False,
    )
    if found.returncode:
        raise UsageError(
            f"{python()} has no megatron.bridge: run this inside the NeMo container (nvcr.io/nvidia/nemo:26.04), "
            "put a Python that has it first on PATH, or train on the CPU with RUNTIME=cpu"
        )


def command(processes: int, flags: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command and the environment variables it adds.

    `python -m torch.distributed.run` and not `torchrun`: that one may belong to another Python.
    """
    launcher = [python(), "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launcher, SCRIPT, *flags], {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONUNBUFFERED": "1"}
