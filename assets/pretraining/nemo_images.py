"""What NVIDIA's NeMo images have, by their tag: as their release notes and their sources say."""

from __future__ import annotations

from typing import NamedTuple

from pretraining.packages import dotted


class Image(NamedTuple):
    """Versions of an image's packages: "" and () where they are not known."""

    megatron_bridge: str = ""
    transformer_engine: tuple[int, ...] = ()


# docs/releases/software-versions.md of Megatron-Bridge; of 26.08 the Transformer Engine is that of the commit which
# Megatron-Bridge 0.6.0 pins in pyproject.toml. Megatron-Bridge before 0.3 is of no use here.
IMAGES = {
    "25.09": Image(transformer_engine=(2, 7)),
    "25.11": Image(transformer_engine=(2, 9)),
    "26.02": Image("0.3.0", (2, 12)),
    "26.04": Image("0.4.0", (2, 14)),
    "26.04.01": Image("0.4.2"),
    "26.06": Image("0.5.0", (2, 16)),
    "26.08": Image("0.6.0", (2, 17)),
    "26.10": Image("0.7.0"),
    "26.10.01": Image("0.7.1"),
}
# Megatron-Bridge in images alone: no package index has them, so that nothing here was tried with them.
ON_NO_INDEX = ("0.7.0", "0.7.1")

_ENGINES = {tag: image.transformer_engine for tag, image in IMAGES.items() if image.transformer_engine}


def with_bridge(bridge: str) -> str:
    """The image tag of this Megatron-Bridge, else the newest of an older patch, "26.06 (has 0.5.0)", else ""."""
    bridges = {tag: image.megatron_bridge for tag, image in IMAGES.items() if image.megatron_bridge}
    exact = [tag for tag, version in bridges.items() if version == bridge]
    if exact:
        return exact[0]
    minor, _, patch = bridge.rpartition(".")
    older = [
        f"{tag} (has {version})"
        for tag, version in bridges.items()
        if version.rpartition(".")[0] == minor and patch.isdecimal() and int(version.rpartition(".")[2]) < int(patch)
    ]
    return older[-1] if older else ""


def with_engine(release: tuple[int, ...]) -> str:
    """Which image has a Transformer Engine of that release or newer, in words."""
    for tag, has in _ENGINES.items():
        if has >= release:
            return f"NeMo {tag} has {dotted(has)} (TAG={tag})"
    return f"NeMo {tag} has {dotted(has)}, so take a newer one (TAG=)"


def lacks_engine(tag: str, release: tuple[int, ...]) -> bool:
    """Whether the image of a tag, such as 26.04.01, is known to have an older Transformer Engine than that."""
    newest = max((has for other, has in _ENGINES.items() if other <= tag[:5]), default=())
    return tag[:5] <= max(_ENGINES) and newest < release
