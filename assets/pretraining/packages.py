"""The versions of the packages that shape a run's numbers, and what follows of Transformer Engine's."""

from __future__ import annotations

import functools
import re
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "megatron-bridge",
    "megatron-core",
    "transformer-engine",
    "torch",
    "triton",
    "transformers",
    "numpy",
    "numba",
)


def installed() -> dict[str, str]:
    """Version of each package that shapes a run's numbers, for those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def engine_release() -> tuple[int, ...]:
    """Major and minor version of Transformer Engine, () where it is not installed."""
    return tuple(int(part) for part in re.findall(r"\d+", installed().get("transformer-engine", ""))[:2])


FOUR_OVER_SIX = (2, 18)  # the first release known to have `NVTE_NVFP4_4OVER6`; an older one ignores it


def has_four_over_six() -> bool:
    """Whether Transformer Engine's own kernels choose among two scales of a block."""
    return engine_release() >= FOUR_OVER_SIX


@functools.cache
def folds_block_scale() -> bool:
    """Whether Transformer Engine computes a block's scale as amax * (encode / 6), which it does from 2.14."""
    return engine_release() >= (2, 14)
