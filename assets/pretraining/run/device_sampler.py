"""Samples memory and power of a run's devices by NVML, in a small process that never holds training up.

    python -P device_sampler.py FILE PARENT              resident memory of the training's processes
    python -P device_sampler.py FILE PARENT 0=GPU-5d3c   device memory and power, by rank and UUID

It appends to FILE, a line a second and device (`record.Run` says what one holds), until SIGTERM or until PARENT, the
training that started it, is gone. On its standard output it says two things, a line of JSON each: first what it
samples, or the problem that keeps it from sampling; at the end the largest figures it saw, and the share of a core that
this took.

It is run by its path, so it imports nothing of this package: the standard library, and NVML through `nvidia-ml-py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

PERIOD = 0.08  # seconds: 12.5 samples a second, so that one that comes late still leaves ten
LINE = 1.0  # seconds


@dataclass(frozen=True)
class Sample:
    """One look at a device: bytes in use by all, bytes in use by the training, watts. None where it does not tell."""

    used: int | None
    process: int | None
    power: float | None


class Cpu:
    """The host's memory, as the training's processes have it resident; pages that they share count in each."""

    label = "cpu"

    def __init__(self, processes: Callable[[], list[int]]) -> None:
        self._processes = processes
        self._page = os.sysconf("SC_PAGE_SIZE")

    def sample(self) -> Sample:
        """Resident bytes alone: a CPU's energy counters (RAPL) are root's."""
        resident = 0
        for process in self._processes():
            with contextlib.suppress(OSError), open(f"/proc/{process}/statm", "rb") as file:  # it may have just ended
                resident += int(file.read().split()[1]) * self._page
        return Sample(None, resident or None, None)


class Gpu:
    """One NVIDIA GPU through NVML, by the rank that trains on it; whatever it does not answer is None.

    Whose memory it is takes two calls to ask, so it is asked where the device's own figure moved, and once a second.
    The energy counter is left alone: an H200 takes 3.4 ms of a core to read it, 0.05 ms for all the rest, and its mean
    power over each second comes to the same joules.

    Args:
        nvml: the `pynvml` module, initialised; its NVMLError says that there is no such device.
        uuid: as torch or NVML says it, with or without "GPU-".
        processes: gives the training's process ids.
    """

    def __init__(self, nvml: Any, label: int, uuid: str, processes: Callable[[], list[int]]) -> None:
        self.label = label
        self._nvml = nvml
        self._processes = processes
        named = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self._handle = nvml.nvmlDeviceGetHandleByUUID(named.encode())
        self._memory_version = getattr(nvml, "nvmlMemory_v2", None)
        if self._memory_version and self._ask("nvmlDeviceGetMemoryInfo", self._memory_version) is None:
            self._memory_version = None  # a driver before 510 counts what it keeps for itself as used
        self._used: int | None = None
        self._held: int | None = None
        self._asked = -LINE

    def sample(self) -> Sample:
        """Memory as nvidia-smi's memory.used, power as its power.draw."""
        version = [self._memory_version] if self._memory_version else []
        memory = self._ask("nvmlDeviceGetMemoryInfo", *version)
        used = None if memory is None else memory.used
        now = time.monotonic()
        if used is None or used != self._used or now - self._asked >= LINE:
            self._used, self._asked, self._held = used, now, self._process_memory()
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        return Sample(used, self._held, None if milliwatts is None else milliwatts / 1000)

    def _process_memory(self) -> int | None:
        """What the training's processes hold of it.

        In a container NVML numbers processes as the host does, and the training cannot know its own number there. The
        only process on the device that is none of the container's is then taken to be the training.
        """
        found = self._ask("nvmlDeviceGetComputeRunningProcesses") or []
        ours = set(self._processes())
        held = [each.usedGpuMemory for each in found if each.pid in ours]
        if not held and len(found) == 1 and not os.path.exists(f"/proc/{found[0].pid}"):
            held = [found[0].usedGpuMemory]
        return sum(held) if held and None not in held else None

    def _ask(self, question: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, question)(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


class Second:
    """The samples of one device since its last line, and what lasts from line to line."""

    def __init__(self, device: Cpu | Gpu) -> None:
        self.largest: dict[str, int] = {}  # so far: "used" of the device, "process" of the training on it
        self._device = device
        self._samples: list[Sample] = []

    def add(self) -> None:
        self._samples.append(self._device.sample())

    def line(self, at: float) -> dict[str, Any]:
        """What the samples since the last line come to; `at` is their end, Unix time."""
        taken, self._samples = self._samples, []
        peaks = {name: _largest(getattr(each, name) for each in taken) for name in ("used", "process")}
        for name, value in peaks.items():
            if value is not None:
                self.largest[name] = max(value, self.largest.get(name, 0))
        power = [each.power for each in taken if each.power is not None]
        return {
            "time": round(at, 3),
            "device": self._device.label,
            "samples": len(taken),
            "used_bytes": peaks["used"],
            "process_bytes": peaks["process"],
            "power_w": round(sum(power) / len(power), 1) if power else None,
        }


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def run(devices: Sequence[Cpu | Gpu], file: TextIO, wait: Callable[[float], bool]) -> dict[str, int]:
    """Sample until told to stop, a line a second and device, flushed; returns the largest figures of `Second`.

    `wait` sleeps so many seconds and says whether to go on.
    """
    seconds = [Second(device) for device in devices]
    due = began = time.monotonic()
    going = True
    while going:
        now = time.monotonic()
        for each in seconds:
            each.add()
        due = max(due + PERIOD, now)  # what was missed is not made up for in a burst
        going = wait(max(0.0, due - time.monotonic()))
        if not going or time.monotonic() - began >= LINE:
            began = max(began + LINE, time.monotonic() - LINE)
            file.write("".join(json.dumps(each.line(time.time())) + "\n" for each in seconds))
            file.flush()
    found = {name: _largest(each.largest.get(name) for each in seconds) for name in ("used", "process")}
    return {name: value for name, value in found.items() if value is not None}


def processes_of(training: int) -> Callable[[], list[int]]:
    """Gives the training's processes on this machine: it alone, or all that torch.distributed.run started beside it."""
    asked, known, launcher = -LINE, [training], 0
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with contextlib.suppress(OSError):
            launcher = int(Path(f"/proc/{training}/stat").read_text().rpartition(")")[2].split()[1])

    def processes() -> list[int]:
        nonlocal asked, known
        if launcher and time.monotonic() - asked >= LINE:
            asked, known = time.monotonic(), [*_children_of(launcher)] or [training]
        return known

    return processes


def _children_of(process: int) -> Iterator[int]:
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            yield from map(int, thread.read_text().split())


def open_gpus(uuids: dict[int, str], processes: Callable[[], list[int]]) -> list[Gpu]:
    """The GPUs with those UUIDs, by rank. Raises OSError with what is in the way."""
    try:
        import pynvml
    except ImportError as error:
        raise OSError(f"{sys.executable} has no NVML bindings: {sys.executable} -m pip install nvidia-ml-py") from error
    try:
        pynvml.nvmlInit()
        return [Gpu(pynvml, label, uuid, processes) for label, uuid in uuids.items()]
    except pynvml.NVMLError as error:
        raise OSError(f"NVML does not answer: {error}") from error


def main() -> int:
    """Sample until the training ends. Returns the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    path, parent = Path(sys.argv[1]), int(sys.argv[2])
    uuids = {int(rank): uuid for rank, _, uuid in (given.partition("=") for given in sys.argv[3:])}

    def wait(seconds: float) -> bool:
        return signal.sigtimedwait({signal.SIGTERM}, seconds) is None and os.getppid() == parent

    processes = processes_of(parent)
    try:
        devices = open_gpus(uuids, processes) if uuids else [Cpu(processes)]
        with path.open("a", encoding="utf-8") as file:
            _say({"rate_hz": 1 / PERIOD})
            began, used = time.monotonic(), time.process_time()
            _say(run(devices, file, wait))
            _say({"core_share": round((time.process_time() - used) / (time.monotonic() - began), 5)})
    except OSError as error:
        _say({"problem": str(error)})
        return 1
    return 0


def _say(what: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the training is gone
        print(json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main())
