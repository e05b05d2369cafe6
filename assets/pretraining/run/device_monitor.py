"""Starts `device_sampler.py` beside a training, one on each machine, and asks it what it saw."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pretraining.record import run_folder
from pretraining.record.run_folder import Peak

SECONDS_TO_END = 2.0
_SCRIPT = Path(__file__).with_name("device_sampler.py")


class Sampler:
    """The sampler of this machine; nothing that happens to it reaches the training."""

    def __init__(self, file: Path, devices: dict[int, str]) -> None:
        self.core_share: float | None = None  # of one processor core, what sampling took; None where it did not say
        self._said = b""
        self._names = {"used": Peak.USED, "process": Peak.HELD if devices else Peak.RESIDENT_OF_ALL}
        self._process: subprocess.Popen[bytes] | None = None
        named = [f"{rank}={uuid}" for rank, uuid in devices.items()]
        command = [sys.executable, "-P", str(_SCRIPT), str(file), str(os.getpid()), *named]
        try:
            # A process group of its own: Ctrl-C is for the training, whose end it sees.
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0)
            os.set_blocking(self._process.stdout.fileno(), False)
        except OSError as error:
            self._said = json.dumps({"problem": f"the sampler did not start: {error}"}).encode() + b"\n"

    def describe(self) -> dict[str, Any]:
        """Its rate, or the `problem` that keeps it from sampling."""
        lines = self._answers()
        return lines[0] if lines else {"problem": "the sampler has not answered yet"}

    def stop(self) -> dict[Peak, int]:
        """End it, which writes its last line; returns the largest figures it saw."""
        if self._process is None:
            return {}
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_END)
        self._process.kill()  # only where a call into the driver holds it
        last = {name: value for line in self._answers()[1:] for name, value in line.items()}
        self.core_share = last.pop("core_share", None)
        return {self._names[name]: value for name, value in last.items() if name in self._names}  # else a problem

    def _answers(self) -> list[dict[str, Any]]:
        if self._process is not None:
            with contextlib.suppress(OSError, ValueError):
                self._said += self._process.stdout.read() or b""
        return [json.loads(line) for line in self._said.splitlines(keepends=True) if line.endswith(b"\n")]


def start(run_dir: Path, *, on_gpu: bool) -> Sampler | None:
    """Start sampling where this process is the first of its machine, None elsewhere.

    Every machine writes a file of its own, because several that append to one over a network would tear its lines.
    """
    rank, local = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    if local != 0:
        return None
    return Sampler(run_dir / run_folder.samples_of(rank), _devices(rank) if on_gpu else {})


def _devices(first: int) -> dict[int, str]:
    """UUIDs of this machine's devices, by the rank that trains on each. CUDA_VISIBLE_DEVICES may renumber them."""
    import torch

    count = min(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count())
    return {first + index: str(getattr(torch.cuda.get_device_properties(index), "uuid", "")) for index in range(count)}
