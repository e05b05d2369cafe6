"""What is known of NVIDIA's data-centre GPUs: `gpu_table.toml`, with the source of each number."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class GpuKind:
    """One of the table; units are the table's. What only estimates need is None where the table has it not."""

    name: str
    device: str
    peaks: str
    bf16: float
    fp8: float
    nvfp4: float | None = None
    capability: tuple[int, int] | None = None
    memory: int = 0
    power: float = 0.0
    hbm: float = 0.0
    nvlink: float = 0.0
    domain: int = 1
    network: float = 0.0

    @property
    def memory_bytes(self) -> int:
        """All that the driver shows."""
        return self.memory * 2**20

    def peak(self, precision: str) -> float | None:
        """TFLOP/s of the products of a precision, None where it has none."""
        return getattr(self, _data()["formats"].get(precision, ""), None)

    def link(self, processes: int) -> float:
        """Bytes a second and direction of a GPU, between so many that follow one another."""
        return 1e9 * (self.nvlink if processes <= self.domain else self.network)


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads(DATA.read_text(encoding="utf-8"))


@cache
def kinds() -> dict[str, GpuKind]:
    rows = _data()["gpus"]
    return {row["name"]: GpuKind(**{**row, "capability": tuple(row.get("capability", ())) or None}) for row in rows}


def is_called(name: str, device: str) -> bool:
    """Whether all words of `name` are in what the driver calls a device."""
    words = device.casefold().replace("-", " ").replace("/", " ").split()
    return set(words).issuperset(name.casefold().split())


def peak(device: str, precision: str) -> tuple[float, str] | None:
    """A device's dense peak in a precision's own format, TFLOP/s, and a phrase that names format, device and source.

    The device is called as the driver says it, "NVIDIA GB300". None where it is not listed.
    """
    for kind in kinds().values():
        if is_called(kind.device, device) and (found := kind.peak(precision)):
            format_ = _data()["formats"][precision].upper()
            return found, f"{found:,} TFLOP/s, dense {format_} of {device} ({kind.peaks})"
    return None
