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


# NVIDIA's NeMo images, by tag, and their Transformer Engine: docs/releases/software-versions.md of Megatron-Bridge, and
# of 26.08 the commit that its 0.6.0 pins in pyproject.toml. Of later ones nothing is known.
_IN_NEMO = {"25.09": (2, 7), "25.11": (2, 9), "26.02": (2, 12), "26.04": (2, 14), "26.06": (2, 16), "26.08": (2, 17)}


def image_with(release: tuple[int, ...]) -> str:
    """Which NeMo image has a Transformer Engine of that release or newer, in words."""
    for tag, has in _IN_NEMO.items():
        if has >= release:
            return f"NeMo {tag} has {dotted(has)} (TAG={tag})"
    return f"NeMo {tag} has {dotted(has)}, so take a newer one (TAG=)"


def lacks(tag: str, release: tuple[int, ...]) -> bool:
    """Whether a NeMo image of a tag, such as 26.04.01, is known to have an older Transformer Engine than that."""
    newest = max((has for other, has in _IN_NEMO.items() if other <= tag[:5]), default=())
    return tag[:5] <= max(_IN_NEMO) and newest < release


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
