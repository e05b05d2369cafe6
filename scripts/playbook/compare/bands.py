"""Where a comparison lies against published figures for its hardware, in sentences."""

from __future__ import annotations

from playbook.compare import published, speedup
from playbook.compare.model import Arm, Contrast


def sentences(arms: list[Arm], contrasts: list[Contrast], baseline: Arm) -> list[str]:
    """A sentence for each figure that has a published band, then their sources.

    None for emulated arms or unknown hardware.
    """
    said: list[str] = []
    sources: dict[str, None] = {}
    for arm in arms:
        entry = published.band(arm.runs[0].facts)
        limits = entry and entry["tflops"].get(arm.precision)
        if limits and arm.model_tflops_per_gpu and arm.computes_natively and not speedup.unusable(arm):
            value = arm.model_tflops_per_gpu.value
            said.append(_sentence(f"{arm.name}: {value:,.0f} MODEL_TFLOP/s/GPU", value, limits, "tflops"))
            sources[f"{entry['name']}: {entry['source']}"] = None
    for contrast in contrasts:
        arm = next(arm for arm in arms if arm.name == contrast.candidate)
        entry = published.band(arm.runs[0].facts)
        is_speed_up = contrast.step_time is not None and contrast.step_time.what == "speed-up"
        if entry and is_speed_up and (arm.precision, baseline.precision) == ("nvfp4", "bf16"):
            value = contrast.step_time.figure.value
            said.append(
                _sentence(f"{arm.name} over {baseline.name}: {value:.2f}x", value, entry["speed_up"], "speed_up")
            )
            sources[f"{entry['name']}: {entry['source']}"] = None
    return [*said, *sources]


def _sentence(figure: str, value: float, limits: list[float], kind: str) -> str:
    where, why = published.outside(value, limits, kind)
    said = f"{figure}, {where} the published {limits[0]:,.4g} to {limits[1]:,.4g}"
    return f"{said}; usually {why}." if why else f"{said}."
