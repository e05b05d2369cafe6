"""Megatron-Core's dataset helper, built by an ordinary user from a source tree of root's."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pretraining.errors import UsageError

_SOURCES = ("helpers.cpp", "Makefile")


def built_copy(source: Path, version: str) -> Path:
    """A folder below HOME that holds the helper, built at the first run from `megatron/core/datasets`.

    `version` is Megatron-Core's, so that another image gets a copy of its own. Raises UsageError with what make said.
    """
    caches = Path.home() / ".cache" / "nvfp4-playbook"
    folder = caches / f"dataset-helper-{version}-{sys.implementation.cache_tag}"
    if folder.exists():
        return folder
    caches.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=caches))
    try:
        for file in _SOURCES:
            shutil.copy(source / file, beside)
        made = subprocess.run(["make", "-C", str(beside)], capture_output=True, text=True, check=False)
        if made.returncode:
            raise OSError(f"make said: {(made.stderr.strip().splitlines() or ['nothing'])[-1]}")
        with contextlib.suppress(OSError):  # another process was first
            beside.replace(folder)
    except OSError as error:
        raise UsageError(
            f"Megatron-Core's dataset helper cannot be built by this user ({error}): take an image that has it, such "
            "as the one `make image` builds"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder
