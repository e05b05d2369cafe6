"""Published figures to hold a run against: what known work reached (`published.toml`)."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from playbook.common import gpu_table

HELD, DECAYED = "a held rate", "a finished decay"  # positions in a schedule, as the data say them
DATA = Path(__file__).with_suffix(".toml")


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads(DATA.read_text(encoding="utf-8"))


def gaps(position: str) -> list[str]:
    """What NVFP4 was published to cost in training loss at that position of a schedule, a clause each."""
    return [
        f"{each['gap']} to {each['against']} ({each['model']}, {each['tokens']}, in BF16 {each['bf16_layers']}; "
        f"{each['source']})"
        for each in _data()["gaps"]
        if each["position"] == position
    ]


def band(facts: dict[str, Any]) -> dict[str, Any] | None:
    """The entry of `published.toml` for a run with these parity facts, None where there is none."""
    for entry in _data()["bands"]:
        shortest, longest = entry["sequence_length"]
        if (
            any(gpu_table.is_called(name, str(facts.get("device", ""))) for name in entry["device"])
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
