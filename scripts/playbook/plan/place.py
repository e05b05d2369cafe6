"""Where a job runs: the runtime and its GPU, each with the reason it was chosen. (The image: `launch/container`.)

`RUNTIME=auto` never falls back to the CPU where an NVIDIA GPU is: what keeps that GPU from being used is then an error
with its remedy. Nothing is asked of a container's engine: `launch.start.find_place` does.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from playbook.plan import gpus, local_python
from playbook.plan.gpus import Gpu
from pretraining.errors import UsageError
from pretraining.request.precisions import Precision

RUNTIMES = ("auto", "container", "local", "cpu")
CONTAINER_USERS = ("me", "root")
WIDEST_VALUE = 46  # a longer one pushes its reason out of line


@dataclass(frozen=True)
class Choice:
    value: Any
    reason: str


@dataclass(frozen=True)
class EngineKind:
    """What of an engine changes how a container is asked for. The default is one that runs as root, with a toolkit."""

    gpus: str = "nvidia"  # how it hands them over: "nvidia" (the classic request), "cdi", or "" for not at all
    rootless: bool = False  # it runs as the user, whose own id is root inside
    remaps: bool = False  # its containers have other user ids (userns-remap), which own nothing of the caller's
    selinux: bool = False  # it confines by labels, which the caller's folders and the GPUs' devices do not have

    def __str__(self) -> str:
        said = {"rootless": self.rootless, "userns-remap": self.remaps, "SELinux": self.selinux}
        return "".join(f", {name}" for name, is_so in said.items() if is_so)


@dataclass(frozen=True)
class Image:
    name: str  # with its tag
    digest: str  # the registry's, or the image's own id where it never was in a registry
    path: str  # the PATH it sets
    size: int  # bytes on disk
    cuda: str = ""  # what it is made with, as NVIDIA's images say in CUDA_VERSION; "" elsewhere


@dataclass(frozen=True)
class Place:
    runtime: str
    gpu: Gpu | None = None  # None on the CPU, and where a dry run has none to name
    partners: tuple[Gpu, ...] = ()  # further GPUs of the same kind, for further processes
    engine: EngineKind = EngineKind()  # a container's; the usual one where a dry run finds none
    image: str = ""  # of a container, with its tag
    found: Image | None = None  # that image, once it is on the engine
    container_user: str = ""  # one of `CONTAINER_USERS`, "" where the image decides
    choices: dict[str, Choice] = field(default_factory=dict)  # what to print and store

    @property
    def uuids(self) -> str:
        """Of every GPU, with commas between them; "" without one."""
        return ",".join(gpu.uuid for gpu in (self.gpu, *self.partners) if gpu)


@dataclass(frozen=True)
class Wanted:
    """What the user asked for; empty for the default."""

    runtime: str = "auto"
    gpu: str | None = None  # index or UUID
    tag: str | None = None  # of NeMo's image, or a whole image name
    container_user: str = ""  # one of `CONTAINER_USERS`
    emulate: bool = False
    processes: int = 1
    dry_run: bool = False  # nothing will be started


def runtime_of(asked: str, found: gpus.Inventory, *, refuse: bool = False) -> Choice:
    """The runtime that a job gets, and why: where `RUNTIME=auto` is decided. Raises UsageError for an unknown one.

    A GPU that does not answer is an error with `refuse`; otherwise the runtime is what it would be with it.
    """
    if asked not in RUNTIMES:
        raise UsageError(f"RUNTIME={asked} is not one of {', '.join(RUNTIMES)}")
    if asked != "auto":
        return Choice(asked, "asked for")
    if found.problem and refuse:
        raise UsageError(f"{found.problem}. RUNTIME=cpu trains a small model without it")
    if not found.gpus and not found.problem:
        return Choice("cpu", "no NVIDIA GPU on this machine")
    if local_python.inside_container() and local_python.has_bridge():
        return Choice("local", f"{local_python.python()} in this container has megatron.bridge")
    return Choice("container", "an NVIDIA GPU, and training runs in NVIDIA's NeMo image")


def choose(wanted: Wanted, *precisions: Precision) -> Place:
    """The place for a job, whose one GPU has to have all of `precisions`. Raises UsageError where none has."""
    inventory = gpus.read() if wanted.runtime != "cpu" else gpus.Inventory()
    runtime = runtime_of(wanted.runtime, inventory, refuse=True)
    check_of_use(runtime.value, tag=wanted.tag, gpu=wanted.gpu, user=wanted.container_user)
    place = Place(runtime.value, choices={"runtime": runtime})
    if place.runtime == "cpu":
        return place
    if place.runtime == "local":
        local_python.check()
    return _on_gpu(place, inventory, wanted, precisions)


def check_of_use(runtime: str, *, tag: str | None, gpu: str | None = None, user: str = "") -> None:
    """Raise UsageError for a GPU, an image or a user that there is not, or that a runtime has no use for."""
    if user and user not in CONTAINER_USERS:
        raise UsageError(f"CONTAINER_USER={user} is not one of {', '.join(CONTAINER_USERS)}")
    if user and runtime != "container":
        raise UsageError(f"CONTAINER_USER={user} is for a container, and the runtime here is {runtime}; leave it out")
    if gpu and runtime == "cpu":
        raise UsageError(f"GPU={gpu}: the CPU runtime uses no GPU; leave it out, or name another RUNTIME=")
    if tag and runtime != "container":
        raise UsageError(f"TAG={tag} is the image of a container, and the runtime here is {runtime}; leave it out")


def _on_gpu(place: Place, inventory: gpus.Inventory, wanted: Wanted, precisions: Sequence[Precision]) -> Place:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if place.runtime == "local" and wanted.gpu is None and (visible or not inventory.gpus):
        # Somebody chose already, or the training script says what it finds; it has the same gate. But a second
        # precision that nothing of that can train in would be refused after the first has trained.
        if among := gpus.named(inventory.gpus, (visible or "").split(",")):
            gpus.choose(among, precisions, None, emulate=wanted.emulate)
        chosen = {"GPU": Choice(visible, "CUDA_VISIBLE_DEVICES of the environment")} if visible else {}
        return replace(place, choices=place.choices | chosen)
    if not inventory.gpus:
        if not wanted.dry_run:
            raise UsageError(
                inventory.problem
                or "no NVIDIA GPU on this machine, and RUNTIME=container needs one: RUNTIME=cpu does not"
            )
        choice = Choice("<GPU-UUID>", "no GPU here to name: put one that `nvidia-smi -L` lists in its place")
        return replace(place, choices={**place.choices, "GPU": choice})
    chosen, why = gpus.for_job(inventory.gpus, precisions, wanted.gpu, emulate=wanted.emulate, count=wanted.processes)
    gpu, *partners = chosen
    if partners:
        choice = Choice(", ".join(each.label for each in chosen), f"{len(chosen)} x {gpu.name}: NPROC")
        return replace(place, gpu=gpu, partners=tuple(partners), choices={**place.choices, "GPUs": choice})
    if gpu.users:
        why += f"; in use by {', '.join(map(str, gpu.users))}"
    if probed := gpu.probed(precisions, emulate=wanted.emulate):
        why += f"; {' and '.join(probed)} to be probed at the start"
    choice = Choice(f"{gpu.label}, {gpu.name}", f"{why}; {gpu.size}")
    return replace(place, gpu=gpu, choices={**place.choices, "GPU": choice})


def show(choices: dict[str, Choice], *, margin: str = "  ") -> None:
    """Print choices: a line each, value then reason."""
    width = max(map(len, choices))
    values = min(max(len(str(choice.value)) for choice in choices.values()), WIDEST_VALUE)
    for name, choice in choices.items():
        print(f"{margin}{name:<{width}}  {choice.value!s:<{values}}  {choice.reason}".rstrip(), flush=True)
