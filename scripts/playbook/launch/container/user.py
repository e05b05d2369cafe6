"""Who works in a container: the caller, or root where the image is closed to anybody else.

Root's files are handed to the caller when the container has ended: by its launcher, or by the next command that starts
or looks for one. assets/container_user.py does what has to be done inside.
"""

import contextlib
import hashlib
import json
import os
import shlex
from dataclasses import asdict, dataclass
from datetime import datetime
from http.client import CONFLICT, NOT_FOUND
from pathlib import Path
from typing import Any

import requests

from playbook import ASSETS, PROJECT
from playbook.launch.container import DEFAULT_TAG, spec
from playbook.launch.container.engine import APIError, DockerException, Engine, EngineError, explain
from playbook.launch.container.spec import Container, Folder
from playbook.plan.place import Image
from pretraining.record import files

SCRIPT = str(ASSETS / "container_user.py")
CACHE = PROJECT / ".cache" / "images"
ANOTHER = f"name NVIDIA's NeMo image or one that is built on it: TAG={DEFAULT_TAG}"
REMEDY = "CONTAINER_USER=root, or leave CONTAINER_USER out"
_LOST = (requests.RequestException, DockerException, OSError)


class _NoAnswer(EngineError):
    """There is no Python in the image that would answer."""


@dataclass(frozen=True)
class Found:
    versions: dict[str, str]  # by package
    closed: str  # what the caller may not read in it, with its mode; "" where everything can be read

    def __str__(self) -> str:
        return ", ".join(f"{name} {version}" for name, version in self.versions.items()) or "no package that is known"


def check(engine: Engine, image: Image) -> Found:
    """Look into an image, from inside. Raises EngineError where it has no Python, or no Megatron-Bridge for that."""
    try:
        answer = _inside(engine, image.name, image.path, ["check", spec.caller(engine.kind)])
    except _NoAnswer as error:
        raise EngineError(f"{image.name} is no NeMo image: {error.cause}", ANOTHER) from error
    found = Found(answer["versions"], answer["closed"])
    if missing := [name for name, place in answer["modules"].items() if not place]:
        cause = f"{image.name} has no {' and no '.join(missing)} where its Python ({answer['python']}) looks"
        raise EngineError(f"{cause}; found: {found}", ANOTHER)
    return found


def remembered(engine: Engine, image: Image) -> Found:
    """`check`, once for an image and a caller: an image of one digest never changes. Raises as that does."""
    asked = f"{image.digest} {spec.caller(engine.kind)} {Path(SCRIPT).read_text(encoding='utf-8')}"
    file = CACHE / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Found(**json.loads(file.read_text(encoding="utf-8")))
    found = check(engine, image)
    with contextlib.suppress(OSError):  # then it is asked again
        CACHE.mkdir(parents=True, exist_ok=True)
        files.write_text(file, json.dumps(asdict(found)))
    return found


def take_back(engine: Engine, identity: str) -> None:
    """Hand root's files of an ended container to the caller, where it was root's, and remove it.

    Raises requests' errors or DockerException where the engine is away; the container stays.
    """
    container = engine.api.inspect_container(identity)
    owner = (container["Config"]["Labels"] or {}).get(f"{spec.LABEL}.owner")
    folders = sorted(each["Source"] for each in container["Mounts"] if each["RW"] and os.path.isdir(each["Source"]))
    if owner and folders:
        # The engine writes nanoseconds, which Python 3.11 cuts.
        since = datetime.fromisoformat(container["Created"]).timestamp()
        mounts = tuple(Folder(Path(each), True) for each in folders)
        path = dict(pair.partition("=")[::2] for pair in container["Config"]["Env"]).get("PATH", "")
        try:
            failed = _inside(engine, container["Image"], path, ["hand", owner, str(since), *folders], mounts)["failed"]
        except EngineError as error:
            away = error.__cause__
            if isinstance(away, requests.RequestException) and not isinstance(away, APIError):  # and may come back
                raise away from error
            failed = error.cause
        if failed:
            by_hand = f"sudo find {shlex.join(folders)} -user 0 -exec chown -h {owner} {{}} +"
            print(f"files that were made as root could not be handed to you ({failed}): {by_hand}", flush=True)
    engine.api.remove_container(identity, force=True, v=True)


def take_back_all(engine: Engine) -> None:
    """The same for the caller's ended containers in the foreground of a terminal, whose command was killed.

    Another user of the project has folders that the caller may not see: theirs are left to them.
    """
    wanted = [f"{name}={value}" for name, value in spec.ownership(engine.kind).items()]
    for each in engine.api.containers(all=True, filters={"label": wanted, "status": ["exited", "dead"]}):
        if spec.LABEL not in each["Labels"]:  # a run's has an end to record first
            try:
                take_back(engine, each["Id"])
            except APIError as error:
                if error.status_code not in (NOT_FOUND, CONFLICT):  # another terminal's command was first, or is at it
                    raise


def _inside(engine: Engine, image: str, path: str, words: list[str], folders: tuple[Folder, ...] = ()) -> Any:
    """The answer of assets/container_user.py inside an image. Raises EngineError where there is none."""
    asked = Container(
        image=image,
        command=["python", SCRIPT, *words],
        environment={"PATH": spec.path_of(path), "PYTHONDONTWRITEBYTECODE": "1"},
        folders=(Folder(ASSETS), *folders),
        workdir="/",
        engine=engine.kind,
        as_root=True,
        labels=spec.ownership(engine.kind),
    )
    arguments = asked.create_arguments(engine.api)
    arguments["host_config"] |= {"Init": False, "NetworkMode": "none"}
    identity, said = "", []
    try:
        identity = engine.api.create_container(**arguments)["Id"]
        output = engine.api.attach(identity, stream=True)
        engine.api.start(identity)
        said = b"".join(output).decode("utf-8", errors="replace").splitlines()
        return json.loads(next(line for line in reversed(said) if line.startswith("{")))
    except (StopIteration, ValueError) as error:
        raise _NoAnswer(f"its Python says {said[-1] if said else 'nothing'!r}") from error
    except _LOST as error:
        if isinstance(error, APIError) and 'exec: "python"' in str(error.explanation):
            raise _NoAnswer(f"it has no Python on its PATH ({asked.environment['PATH']})") from error
        raise EngineError(explain(error, image=image)) from error
    finally:
        with contextlib.suppress(*_LOST):  # by its labels the next command knows it, where this process is killed
            engine.api.remove_container(identity, force=True, v=True)
