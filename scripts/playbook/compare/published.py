"""Published figures to hold a run against: what known work reached (`published.toml`)."""

from __future__ import annotations

import argparse
import math
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from playbook.common import gpu_table
from playbook.compare.model import Arm, Contrast

PUBLISHED = "published"
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


def against_published(arms: list[Arm], contrasts: list[Contrast], baseline: Arm) -> list[str]:
    """A sentence for each figure that has a published band, then their sources.

    None for emulated arms or unknown hardware.
    """
    said: list[str] = []
    sources: dict[str, None] = {}
    for arm in arms:
        entry = band(arm.runs[0].facts)
        limits = entry and entry["tflops"].get(arm.precision)
        if limits and arm.model_tflops_per_gpu and arm.computes_natively and not arm.unusable:
            value = arm.model_tflops_per_gpu.value
            said.append(_sentence(f"{arm.name}: {value:,.0f} MODEL_TFLOP/s/GPU", value, limits, "tflops"))
            sources[f"{entry['name']}: {entry['source']}"] = None
    for contrast in contrasts:
        arm = next(arm for arm in arms if arm.name == contrast.candidate)
        entry = band(arm.runs[0].facts)
        is_speed_up = contrast.step_time is not None and contrast.step_time.what == "speed-up"
        if entry and is_speed_up and (arm.precision, baseline.precision) == ("nvfp4", "bf16"):
            value = contrast.step_time.figure.value
            figure = f"{arm.name} over {baseline.name}: {value:.2f}x"
            said.append(_sentence(figure, value, entry["speed_up"], "speed_up"))
            sources[f"{entry['name']}: {entry['source']}"] = None
    return [*said, *sources]


def _sentence(figure: str, value: float, limits: list[float], kind: str) -> str:
    """Where a figure lies, and what usually explains it; `kind` is "tflops" or "speed_up", as under `[usually]`."""
    low, high = limits
    where, end = ("below", "low") if value < low else ("above", "high") if value > high else ("inside", "")
    why = f"; usually {_data()['usually'][f'{kind}_{end}']}" if end else ""
    return f"{figure}, {where} the published {low:,.4g} to {high:,.4g}{why}."


@dataclass(frozen=True)
class SpeedUp:
    """What `SPEEDUP=` gives.

    Attributes:
        source: in words, "given" or what published it.
        is_published: whether it is that of the playbook's source, NVFP4's over BF16, and of no other pair.
    """

    value: float
    source: str
    is_published: bool = False


def speed_up(text: str) -> SpeedUp:
    """The speed-up that `--speed-up` names. Raises ArgumentTypeError where it is none."""
    if text.strip().lower() == PUBLISHED:
        return SpeedUp(
            9.05 / 5.39,
            "published: 9.05 s over 5.39 s a step, Llama 3 8B on one GB300, NVIDIA's DGX Station playbook",
            is_published=True,
        )
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 0 is needed, such as 1.68, or {PUBLISHED}")
    return SpeedUp(value, "given")
