"""The switches that turn one ingredient of the NVFP4 recipe off, for ablations: NVFP4_RHT=0 and its kin."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .errors import UsageError

# ingredient: (our switch, on unless 0; Transformer Engine's, off unless 1, read by its NVFP4BlockScaling)
SWITCHES = {
    "rht": ("NVFP4_RHT", "NVTE_NVFP4_DISABLE_RHT"),
    "stochastic": ("NVFP4_STOCHASTIC", "NVTE_NVFP4_DISABLE_STOCHASTIC_ROUNDING"),
    "two_d": ("NVFP4_2D", "NVTE_NVFP4_DISABLE_2D_QUANTIZATION"),
}
NAMES = tuple(ours for ours, _ in SWITCHES.values())


def read(environment: Mapping[str, str] = os.environ) -> dict[str, bool]:
    """Which ingredients are on. Raises UsageError where a switch is neither 0 nor 1."""
    on = {}
    for ingredient, (ours, engines) in SWITCHES.items():
        value = environment.get(ours, "0" if environment.get(engines) == "1" else "1")
        if value not in ("0", "1"):
            raise UsageError(f"{ours} is {value!r}; set it to 1 (on, the default) or 0 (off)")
        on[ingredient] = value == "1"
    return on


def turned_off(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What is off, with the setting that says so: {"rht": "NVFP4_RHT=0"}. Raises UsageError as `read`."""
    found = {}
    for ingredient, on in read(environment).items():
        ours, engines = SWITCHES[ingredient]
        if not on:
            found[ingredient] = f"{ours}=0" if ours in environment else f"{engines}=1"
    return found


def hand_to_transformer_engine() -> None:
    """Set its own switches as ours are. Call before it is imported."""
    for ingredient, on in read().items():
        os.environ[SWITCHES[ingredient][1]] = "0" if on else "1"
