"""Which Megatron-Bridge NVIDIA's NeMo images have, by their tag: as the images' release notes and their sources say."""

BRIDGES = {
    "26.02": "0.3.0",
    "26.04": "0.4.0",
    "26.04.01": "0.4.2",
    "26.06": "0.5.0",
    "26.08": "0.6.0",
    "26.10": "0.7.0",
    "26.10.01": "0.7.1",
}
# Only in their images: no package index has them, so that nothing here was tried with them.
ON_NO_INDEX = ("0.7.0", "0.7.1")


def image_of(bridge: str) -> str:
    """The image tag of this Megatron-Bridge, else the newest of an older patch, "26.06 (has 0.5.0)", else ""."""
    exact = [tag for tag, version in BRIDGES.items() if version == bridge]
    if exact:
        return exact[0]
    minor, _, patch = bridge.rpartition(".")
    older = [
        f"{tag} (has {version})"
        for tag, version in BRIDGES.items()
        if version.rpartition(".")[0] == minor and patch.isdecimal() and int(version.rpartition(".")[2]) < int(patch)
    ]
    return older[-1] if older else ""
