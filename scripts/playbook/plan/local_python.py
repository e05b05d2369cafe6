"""The Python of this machine that trains where the runtime is local.

Inside the NeMo container that is /opt/venv/bin/python, first on PATH; on bare metal whatever `python3` is.
"""

import functools
import shutil
import subprocess
from pathlib import Path

from pretraining.errors import UsageError

_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))


def python() -> str:
    """The interpreter that trains: the first python3 on PATH."""
    return shutil.which("python3") or "python3"


def inside_container() -> bool:
    """Whether this is a container already, Docker's or Podman's, or the NeMo image run by something else."""
    return any(mark.exists() for mark in _MARKS) or Path("/opt/Megatron-Bridge").is_dir()


@functools.cache
def has_bridge() -> bool:
    """Whether that interpreter has megatron.bridge."""
    asks = "import importlib.util as u; raise SystemExit(0 if u.find_spec('megatron.bridge') else 1)"
    try:
        return subprocess.run([python(), "-c", asks], capture_output=True, check=False).returncode == 0
    except OSError:  # there is no python3, or it is none
        return False


def check() -> None:
    """Raise UsageError where the local Python cannot train with Megatron-Bridge."""
    if not has_bridge():
        raise UsageError(
            f"{python()} has no megatron.bridge: leave RUNTIME out to train in NVIDIA's NeMo image, "
            "put a Python that has it first on PATH, or train on the CPU with RUNTIME=cpu"
        )
