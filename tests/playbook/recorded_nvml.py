"""NVML's answers as recorded on three kinds of machine, behind the functions of `pynvml` that the playbook calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml

GB = 10**9

STATION = {
    "driver": "580.95.05",
    "cuda": 13000,
    "gpus": [
        {
            "uuid": "GPU-0a6f1c52-7d55-8e0a-0d4e-51c9be3f7a10",
            "name": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
            "capability": (12, 0),
            "memory": 102_641_958_912,
            "processes": [(2211, "/usr/lib/xorg/Xorg", 420 * 10**6)],
        },
        {
            "uuid": "GPU-1b7e90aa-4f0c-2b17-9c35-6f1d20b6ce44",
            "name": "NVIDIA GB300",
            "capability": (10, 3),
            "memory": 301_989_888_000,
            "processes": [],
        },
    ],
}
H200 = {
    "driver": "580.82.07",
    "cuda": 13000,
    "gpus": [
        {
            "uuid": "GPU-5d3c1a8e-30b9-1c64-8a2e-7f9b0c2d4e61",
            "name": "NVIDIA H200",
            "capability": (9, 0),
            "memory": 150_754_820_096,
            "processes": [],
        }
    ],
}
GB10 = {  # memory is the machine's own: NVML says not supported, nvidia-smi N/A
    "driver": "580.95.05",
    "cuda": 13000,
    "gpus": [
        {
            "uuid": "GPU-9e8d7c6b-5a49-3827-1605-f4e3d2c1b0a9",
            "name": "NVIDIA GB10",
            "capability": (12, 1),
            "memory": None,
            "processes": [(900, "python3", None)],
        }
    ],
}
DIVIDED = {  # a GB300 in MIG mode: places 0 and 2 of 7 are taken
    "driver": "580.95.05",
    "cuda": 13000,
    "gpus": [
        {
            "uuid": "GPU-7c1d2e3f-8a9b-4c5d-6e7f-0a1b2c3d4e5f",
            "name": "NVIDIA GB300",
            "capability": (10, 3),
            "memory": 301_989_888_000,
            "processes": [],
            "mig": {
                0: {
                    "uuid": "MIG-3f0c7d11-52aa-5b1e-9c40-8d2e6a7b1c90",
                    "name": "NVIDIA GB300 MIG 1g.35gb",
                    "memory": 35_433_480_192,
                    "processes": [],
                },
                2: {
                    "uuid": "MIG-b8e21a6c-0d43-5f7a-8e15-4c9b3d2f6a07",
                    "name": "NVIDIA GB300 MIG 4g.139gb",
                    "memory": 149_250_179_072,
                    "processes": [(4410, "python3", 10**9)],
                },
            },
        }
    ],
}


class RecordedNvml:
    """`pynvml` on a machine of the past; `fails` is the code that nvmlInit answers, where it does."""

    NVMLError = pynvml.NVMLError
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH

    def __init__(self, machine: dict[str, Any] | None = None, fails: int | None = None) -> None:
        self._machine = machine or {"gpus": []}
        self._fails = fails
        self.shut_down = False

    def nvmlInit(self) -> None:
        if self._fails is not None:
            raise pynvml.NVMLError(self._fails)

    def nvmlShutdown(self) -> None:
        self.shut_down = True

    def nvmlSystemGetDriverVersion(self) -> str:
        return self._machine["driver"]

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self._machine["cuda"]

    def nvmlDeviceGetCount(self) -> int:
        return len(self._machine["gpus"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        if self._machine["gpus"][index] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self._machine["gpus"][index]

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> str:
        return handle["uuid"]

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> bytes:
        return handle["name"].encode()  # bytes in older bindings

    def nvmlDeviceGetCudaComputeCapability(self, handle: dict[str, Any]) -> tuple[int, int]:
        return handle["capability"]

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> list[int]:
        if handle["capability"][0] == 12:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int("mig" in handle), int("mig" in handle)]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], index: int) -> dict[str, Any]:
        if index not in handle["mig"]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handle["mig"][index]

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> SimpleNamespace:
        if handle["memory"] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=handle["memory"])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: dict[str, Any]) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, _, memory in handle["processes"]]

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        whole = [gpu for gpu in self._machine["gpus"] if gpu]
        for each in (*whole, *(one for gpu in whole for one in gpu.get("mig", {}).values())):
            for number, name, _ in each["processes"]:
                if number == pid:
                    return name
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
