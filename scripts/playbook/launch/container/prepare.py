"""A container's place, made ready for a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from playbook.launch.container import image, leftovers
from playbook.launch.container.engine import EngineError
from playbook.plan.place import Choice, Place, show


def ready(place: Place, runs: Path, *, alone: bool = True) -> Place:
    """Make a container's place ready: ends that nobody saw are recorded, the GPU is free, the image is here.

    Args:
        place: from `choose`.
        runs: where run folders are.
        alone: no other run may hold the GPU.

    Raises:
        EngineError: another run holds the GPU, or the image cannot be pulled.
    """
    assert place.engine is not None and place.gpu is not None
    left = leftovers.settle(place.engine)
    for gpu in (place.gpu, *place.partners) if alone else ():
        if held := leftovers.holder(left, gpu.uuid):
            raise EngineError(leftovers.busy(held, f"GPU {gpu.label} {gpu.name}"))
    for each in left:
        if each.running and each.own and each.launcher is None:
            print(f"{each} still trains on another GPU: `make attach` follows it, `make stop` ends it", flush=True)
    if image.find(place.engine, place.image) is None:  # before minutes of a pull: what it is for
        show(place.choices)
    found = image.ensure(place.engine, place.image)
    before = image.earlier_digest(runs, place.image)
    reason = place.choices["image"].reason
    if before and before[1] != found.digest:
        reason += f"; another image than in run {before[0]}: then {before[1][:19]}, now {found.digest[:19]}"
    return replace(place, found=found, choices={**place.choices, "image": Choice(place.image, reason)})
