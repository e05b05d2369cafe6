"""The versions of the packages that shape a run's numbers, and what follows of Transformer Engine's."""

from __future__ import annotations

import contextlib
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
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def engine_release() -> tuple[int, ...]:
    """Major and minor version of Transformer Engine, () where it is not installed."""
    return tuple(int(part) for part in re.findall(r"\d+", installed().get("transformer-engine", ""))[:2])


# The first Transformer Engine that has a feature.
NVFP4 = (2, 8)  # the recipe (its pull request 2177)
CUSTOM_RECIPES = (2, 10)  # quantizers of one's own, by which NVFP4 is emulated
FOUR_OVER_SIX = (2, 18)  # the first release known to have `NVTE_NVFP4_4OVER6`; an older one ignores it
ROW_SCALED = (2, 19)  # activations with a scale for each row; before, in the forward pass alone (pull request 3206)
HYBRID = (2, 19)  # a quantizer of its own for each direction
# The first whose NVFP4 is also for compute capabilities 10.7, 12.0 and 12.1: before it stochastic rounding gives zeros
# there, and the Hadamard transform fails (its pull requests 3281, 3265).
PROBED = (2, 19)


def dotted(release: tuple[int, ...]) -> str:
    """(2, 19) as "2.19"."""
    return ".".join(map(str, release))


def engine_has(release: tuple[int, ...]) -> bool:
    """Whether Transformer Engine is of that release or newer, and so has what came with it."""
    return engine_release() >= release


@functools.cache
def folds_block_scale() -> bool:
    """Whether Transformer Engine computes a block's scale as amax * (encode / 6), which it does from 2.14."""
    return engine_release() >= (2, 14)
