"""Published figures to hold a run against: the peaks of tensor cores and what known work reached (`reference.toml`)."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

HELD, DECAYED = "a held rate", "a finished decay"  # positions in a schedule, as the data say them
DATA = Path(__file__).with_suffix(".toml")


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads(DATA.read_text(encoding="utf-8"))


def _is_named(entry: dict[str, Any], device: str) -> bool:
    words = set(device.casefold().replace("-", " ").replace("/", " ").split())
    return any(words.issuperset(name.casefold().split()) for name in entry["device"])


def peak(device: str, precision: str) -> tuple[float, str] | None:
    """The dense peak of a device in a precision's own format.

    Args:
        device: its name as the driver says it, "NVIDIA GB300".
        precision: as in `pretraining.request.precisions`.

    Returns:
        TFLOP/s, and a phrase that names format, device and source; None where it is not listed.
    """
    wanted = _data()["formats"].get(precision)
    for entry in _data()["peaks"]:
        if _is_named(entry, device) and wanted in entry:
            return entry[wanted], f"{entry[wanted]:,} TFLOP/s, dense {wanted.upper()} of {device} ({entry['source']})"
    return None


def gaps(position: str) -> list[str]:
    """What NVFP4 was published to cost in training loss at that position of a schedule, a clause each."""
    return [
        f"{each['gap']} to {each['against']} ({each['model']}, {each['tokens']}, in BF16 {each['bf16_layers']}; "
        f"{each['source']})"
        for each in _data()["gaps"]
        if each["position"] == position
    ]


def band(facts: dict[str, Any]) -> dict[str, Any] | None:
    """The entry of `reference.toml` for a run with these parity facts, None where there is none."""
    for entry in _data()["bands"]:
        shortest, longest = entry["sequence_length"]
        if (
            _is_named(entry, str(facts.get("device", "")))
            and facts.get("num_layers") == entry["layers"]
            and facts.get("hidden_size") == entry["hidden_size"]
            and shortest <= (facts.get("sequence_length") or 0) <= longest
        ):
            return entry
    return None


def outside(value: float, limits: list[float], kind: str) -> tuple[str, str]:
    """Where a figure lies: "below", "above" or "inside", and what usually explains it.

    Args:
        limits: the lowest and the highest published.
        kind: "tflops" or "speed_up", as under `[usually]`.
    """
    if value < limits[0]:
        return "below", _data()["usually"][f"{kind}_low"]
    if value > limits[1]:
        return "above", _data()["usually"][f"{kind}_high"]
    return "inside", ""
