"""A container's place: the engine that it is on, and made ready for a training."""

from dataclasses import replace
from pathlib import Path

from playbook.launch.container import engine, image, underway, user
from playbook.launch.container.engine import Engine, EngineError
from playbook.plan.place import Choice, Place, Wanted, show


def on_engine(place: Place, wanted: Wanted) -> Place:
    """A container's place with its image's name and the engine; in a dry run what of it there is.

    Raises UsageError for what is no image's name, and EngineError where no engine hands GPUs over.
    """
    name = image.named(wanted.tag)
    choices = {**place.choices, "image": Choice(name, "asked for" if wanted.tag else "the default")}
    if wanted.container_user:
        choices["user"] = Choice(wanted.container_user, "asked for")
    place = replace(place, image=name, choices=choices, container_user=wanted.container_user)
    try:
        connected = engine.connect()
    except EngineError:
        if wanted.dry_run:
            return place
        raise
    place = replace(place, engine=connected.kind)
    if not wanted.dry_run:
        if connected.no_gpus:
            raise EngineError(*connected.no_gpus)
        return place
    if connected.no_gpus:
        choices["engine"] = Choice("cannot train", connected.no_gpus[0])
    return replace(place, found=image.find(connected, name))


def ready(place: Place, runs: Path, *, alone: bool = True) -> Place:
    """Make the place of `on_engine` ready: ends that nobody saw are recorded, the GPU is free, the image is here.

    Raises EngineError where another run holds a GPU that is to be had `alone`, or the image cannot be pulled.
    """
    assert place.gpu is not None
    connected = engine.connect()
    left = underway.settle(connected)
    for gpu in (place.gpu, *place.partners) if alone else ():
        if held := next((each for each in left if each.holds(gpu.uuid)), None):
            raise EngineError(underway.busy(held, f"GPU {gpu.label} {gpu.name}"))
    for each in left:
        if each.running and each.own and each.launcher is None:
            print(f"{each} still trains on another GPU: `make attach` follows it, `make stop` ends it", flush=True)
    if image.find(connected, place.image) is None:  # before minutes of a pull: what it is for
        show(place.choices)
    place = entered(place, connected)
    found = place.found
    before = image.earlier_digest(runs, place.image)
    reason = place.choices["image"].reason
    if before and before[1] != found.digest:
        reason += f"; another image than in run {before[0]}: then {before[1][:19]}, now {found.digest[:19]}"
    return replace(place, choices={**place.choices, "image": Choice(place.image, reason)})


def entered(place: Place, connected: Engine) -> Place:
    """A container's place with its image on the engine, and who works in it.

    Raises EngineError: the image cannot be pulled, is none to train in, or is closed to the user that was asked for.
    """
    found = image.ensure(connected, place.image)
    closed = user.remembered(connected, found).closed
    if closed and place.container_user == "me":
        raise EngineError(f"{closed} of {found.name} is closed to you", user.REMEDY)
    choices, who = place.choices, place.container_user or ("root" if closed else "me")
    if closed and not place.container_user:
        reason = f"{closed} of the image is closed to you; files are handed to you at the end"
        choices = {**choices, "user": Choice(who, reason)}
    return replace(place, found=found, container_user=who, choices=choices)
