"""The training image: here or pulled, and which one it is.

A tag can be moved. So a run records the digest, and is told when the same tag meant another image before.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from playbook.launch.container import DEFAULT_TAG, REPOSITORY
from playbook.launch.container.engine import (
    APIError,
    Engine,
    EngineError,
    ImageNotFound,
    explain,
    message_of,
    pull_problem,
)
from playbook.plan.place import Image
from pretraining import nemo_images, packages
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.units import gigabytes

SAY_EVERY_SECONDS = 15.0


def named(tag: str | None) -> str:
    """The image that `TAG=` means: a tag of NeMo's, or a whole name. Raises UsageError where it can be neither."""
    if tag and not re.fullmatch(r"[A-Za-z0-9][\w./:@+-]*", tag, re.ASCII):
        raise UsageError(f"TAG={tag} is neither a tag of {REPOSITORY} nor an image's name, as in {DEFAULT_TAG}")
    if tag and any(mark in tag for mark in "/:"):
        return tag
    return f"{REPOSITORY}:{tag or DEFAULT_TAG}"


def too_old_to_probe(name: str) -> str:
    """Why an image of NeMo's has no kernels that a probe could admit, and what to do; "" where it may have."""
    tag = re.fullmatch(rf"{re.escape(REPOSITORY)}:(\d\d\.\d\d(\.\d+)?)", name)
    if not tag or not nemo_images.lacks_engine(tag[1], packages.PROBED):
        return ""
    return (
        f"Transformer Engine {packages.dotted(packages.PROBED)} or newer is needed, and {name} has an older one: "
        f"{nemo_images.with_engine(packages.PROBED)}, or for nvfp4 EMULATE=1"
    )


def find(engine: Engine, name: str) -> Image | None:
    """The image, or None where the engine does not have it. Raises EngineError where that is no image's name."""
    try:
        found = engine.api.inspect_image(name)
    except ImageNotFound:
        return None
    except APIError as error:
        raise EngineError(explain(error, image=name)) from error
    variables = dict(pair.partition("=")[::2] for pair in found["Config"].get("Env") or [])
    repository = name.partition("@")[0].rpartition(":")[0] or name
    digests = [each for each in found.get("RepoDigests") or [] if each.startswith(f"{repository}@")]
    digest = digests[0].partition("@")[2] if digests else found["Id"]
    return Image(name, digest, variables.get("PATH", ""), found["Size"], variables.get("CUDA_VERSION", ""))


def ensure(engine: Engine, name: str) -> Image:
    """The image, pulled where it is missing, with progress. Raises EngineError where it cannot be."""
    found = find(engine, name)
    if found is None:
        print(f"Pulling {name}: once, tens of gigabytes for NeMo ...", flush=True)
        try:  # interrupted, it goes on from its finished layers the next time
            _follow(engine.api.pull(name, stream=True, decode=True), name)
        except APIError as error:
            raise EngineError(pull_problem(message_of(error), name)) from error
        found = find(engine, name)
        if found is None:
            raise EngineError(f"{name} was pulled and is not there; is the engine's disk full? docker system df")
    return found


def check_pull(engine: Engine, name: str) -> None:
    """Raise EngineError where no pull would bring the image for this machine: the engine asks the registry."""
    try:
        offered = engine.api.inspect_distribution(name).get("Platforms") or []
        wanted = engine.api.version()["Arch"]
    except (APIError, requests.RequestException) as error:
        said = message_of(error) if isinstance(error, APIError) else "no answer: i/o timeout"
        remedy = "or bring the image: docker save where it is, docker load here"
        raise EngineError(pull_problem(said, name), remedy) from error
    if offered and wanted not in {each.get("architecture") for each in offered}:
        raise EngineError(f"{name} is not here, and its registry has no build for {wanted}", "name another with TAG=")


def _follow(events: Iterable[dict[str, Any]], name: str) -> None:
    """Show what the layers of a pull come to. Raises EngineError where an event says it failed."""
    layers: dict[str, tuple[int, int]] = {}
    console = Console()
    said = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("pulling", total=None)
        for event in events:
            if "error" in event:
                raise EngineError(pull_problem(event["error"], name))
            detail = event.get("progressDetail") or {}
            if event.get("status") == "Downloading" and detail.get("total"):
                layers[event["id"]] = (detail["current"], detail["total"])
            elif event.get("status") in ("Download complete", "Pull complete") and event.get("id") in layers:
                layers[event["id"]] = (layers[event["id"]][1],) * 2
            done, total = (sum(column) for column in zip(*layers.values(), strict=True)) if layers else (0, 0)
            bar.update(task, completed=done, total=total or None)
            if not console.is_terminal and total and time.monotonic() - said > SAY_EVERY_SECONDS:
                said = time.monotonic()
                print(f"  {done / 1e9:.1f} of {gigabytes(total, 1)} pulled", flush=True)


def earlier_digest(runs: Path, name: str) -> tuple[str, str] | None:
    """The newest recorded run that used this name, and the digest it had then."""
    for file in sorted(runs.glob(f"*/{run_folder.PLAN}"), reverse=True):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            image = json.loads(file.read_text(encoding="utf-8")).get("image") or {}
            if image.get("name") == name and image.get("digest"):
                return file.parent.name, image["digest"]
    return None
