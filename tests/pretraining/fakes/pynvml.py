"""Stands in for `pynvml`: boards that answer as an H200, a GB10 and older ones do.

FAKE_NVML=no-driver makes nvmlInit fail as it does where the library is there and the driver is not.
"""

import os
from types import SimpleNamespace

nvmlMemory_v2 = 0x02000028
RESERVED = 600 * 10**6  # what the driver keeps for itself: the first version of the call counts it as used


class NVMLError(Exception):
    """As the real one is raised."""


def board(**lacks: bool) -> SimpleNamespace:
    """One that can do everything except what it `lacks`."""
    return SimpleNamespace(used=71 * 10**9, processes=[], lacks=set(lacks), milliwatts=400_000)


BOARDS = {
    "GPU-h200": board(),
    "GPU-gb10": board(memory=True),
    "GPU-old": board(version_2=True),
    "GPU-mute": board(memory=True, power=True, processes=True),
}


def _of(handle: SimpleNamespace, what: str) -> SimpleNamespace:
    if what in handle.lacks:
        raise NVMLError("Not Supported")
    return handle


def nvmlInit() -> None:
    if os.environ.get("FAKE_NVML") == "no-driver":
        raise NVMLError("Driver Not Loaded")


def nvmlDeviceGetHandleByUUID(uuid: bytes) -> SimpleNamespace:
    if uuid.decode() not in BOARDS:
        raise NVMLError("Not Found")
    return BOARDS[uuid.decode()]


def nvmlDeviceGetMemoryInfo(handle: SimpleNamespace, version: int | None = None) -> SimpleNamespace:
    if version:
        return SimpleNamespace(used=_of(_of(handle, "memory"), "version_2").used)
    return SimpleNamespace(used=_of(handle, "memory").used + RESERVED)


def nvmlDeviceGetPowerUsage(handle: SimpleNamespace) -> int:
    return _of(handle, "power").milliwatts


def nvmlDeviceGetComputeRunningProcesses(handle: SimpleNamespace) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in _of(handle, "processes").processes]
