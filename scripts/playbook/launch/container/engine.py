"""The Docker engine: reaching it, what it can do with GPUs, and its errors in words."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from playbook.launch.container import engine_address
from playbook.launch.container.engine_address import Address, EngineError
from playbook.plan.place import EngineKind

__all__ = ["APIError", "DockerException", "Engine", "EngineError", "ImageNotFound", "NotFound", "connect"]

HOOK = "nvidia-container-runtime-hook"  # where the engine finds it, it serves `--gpus`, configured or not
TIMEOUT_SECONDS = 30

TOOLKIT = (
    "install the NVIDIA Container Toolkit (Ubuntu: sudo apt install nvidia-container-toolkit), then: "
    "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
)
PODMAN = (
    "point DOCKER_HOST or the Docker context to a Docker engine, or start NVIDIA's image by hand (podman run -it "
    "--device nvidia.com/gpu=all --security-opt label=disable --ipc host -v $PWD:$PWD -w $PWD "
    "nvcr.io/nvidia/nemo:26.04), and in it: make nvfp4 RUNTIME=local"
)
CDI_REMEDY = "describe the GPUs anew: sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"

_SYMPTOMS = {"FileNotFoundError": "its socket is not there", "ConnectionRefused": "nothing listens on its socket"}


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answers."""

    api: docker.APIClient  # the SDK's low-level client
    version: str
    api_version: str
    kind: EngineKind
    podman: bool  # behind Docker's API
    memory: int  # bytes it may give to containers
    data: str  # where it keeps images, on its machine

    @property
    def no_gpus(self) -> tuple[str, str] | None:
        """Why it hands no GPU over, and what would work; None where it does."""
        if self.podman:
            return f"this is Podman {self.version}, whose Docker API ignores requests for a GPU", PODMAN
        return None if self.kind.gpus else ("the Docker engine cannot hand over a GPU", TOOLKIT)


def connect() -> Engine:
    """The engine that the docker command would use. Raises EngineError: not installed, not running, no permission."""
    address = engine_address.find()
    try:
        api = docker.APIClient(version="auto", timeout=TIMEOUT_SECONDS, **address.options())
        info, version = api.info(), api.version()
    except (DockerException, requests.RequestException, OSError, ValueError) as error:  # ValueError: a port of 70000
        raise EngineError(*_unreachable(error, address)) from error
    podman = any("podman" in str(part.get("Name")).lower() for part in version.get("Components") or [])
    security = {option.partition(",")[0] for option in info.get("SecurityOptions") or []}
    return Engine(
        api=api,
        version=info["ServerVersion"],
        api_version=api.api_version,
        kind=EngineKind(
            gpus="" if podman else _gpu_support(info),
            rootless="name=rootless" in security,
            remaps="name=userns" in security,
            selinux="name=selinux" in security,
        ),
        podman=podman,
        memory=info.get("MemTotal", 0),
        data=info.get("DockerRootDir", ""),
    )


def _unreachable(error: Exception, address: Address) -> tuple[str, str]:
    said = str(error)
    if "Permission denied" in said or "PermissionError" in said:
        remedy = "sudo usermod -aG docker $USER, then log out and in again (or `newgrp docker` in this shell)"
        return "this user may not talk to the Docker engine", remedy
    why = next((words for mark, words in _SYMPTOMS.items() if mark in said), _short(said))
    why = engine_address.without_user(why)
    if address.named:
        otherwise = "unset DOCKER_HOST" if address.named.startswith("DOCKER_HOST") else "docker context use default"
        return f"no Docker engine answers at {address.named} ({why})", f"correct it, or for this machine's: {otherwise}"
    if not (shutil.which("dockerd") or shutil.which("docker")):
        return "Docker is not installed", "docs.docker.com/engine/install says how; then `make doctor`"
    return f"the Docker engine does not answer ({why})", "sudo systemctl start docker"


def _short(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "no message"


def _gpu_support(info: dict[str, Any]) -> str:
    """How GPUs are asked for. The classic request is preferred: every engine since 19.03 has it."""
    if "nvidia" in (info.get("Runtimes") or {}) or shutil.which(HOOK):
        return "nvidia"
    return "cdi" if _has_cdi(info) else ""


def _has_cdi(info: dict[str, Any]) -> bool:
    """Engines since 28.2 list the devices; before, CDI is on where folders are named and one describes GPUs."""
    if any(str(device.get("ID", "")).startswith("nvidia.com/gpu") for device in info.get("DiscoveredDevices") or []):
        return True
    for folder in info.get("CDISpecDirs") or []:
        for file in (*Path(folder).glob("*.yaml"), *Path(folder).glob("*.json")):
            try:
                if "nvidia.com/gpu" in file.read_text(encoding="utf-8", errors="replace"):
                    return True
            except OSError:
                continue
    return False


def explain(error: Exception, *, image: str = "", name: str = "") -> str:
    """An engine's refusal as a cause and a remedy, on one line."""
    said = " ".join((getattr(error, "explanation", None) or str(error)).split())
    lower = said.lower()
    if "invalid reference format" in lower:
        return f"{image} is no image name: TAG= takes a tag of NeMo's, such as 26.04, or a whole name"
    if isinstance(error, ImageNotFound) or "no such image" in lower:
        return f"the image {image} is not here: it was removed meanwhile; the same command pulls it again"
    if "could not select device driver" in lower:
        return f"the Docker engine has no NVIDIA runtime: {TOOLKIT}"
    if "cdi" in lower and ("unresolvable" in lower or "injection" in lower):
        return f"the Docker engine knows no such CDI device ({said}): {CDI_REMEDY}"
    if "nvidia-container-cli" in lower or "nvidia-container-runtime" in lower:
        return f"NVIDIA's container runtime failed ({said}): see that `nvidia-smi` works, then {TOOLKIT}"
    if "bind source path does not exist" in lower:
        return f"a folder to mount is missing on the engine's machine ({said}): make it, then try again"
    if "is already in use by container" in lower:
        return f"a container called {name} exists that is none of this playbook's: docker rm {name}"
    if "rlimit" in lower:
        return f"the Docker engine may not raise a limit that training needs ({said}): use an engine that runs as root"
    if "no space left on device" in lower:
        return f"the Docker engine's disk is full ({said}): docker system prune frees what is unused"
    if isinstance(error, requests.ConnectionError):
        return f"the Docker engine went away ({_short(said)}): sudo systemctl status docker says why"
    return f"the Docker engine said: {said}"


def pull_problem(message: str, image: str) -> str:
    """Why a pull failed, as a cause and a remedy."""
    lower = message.lower()
    if any(word in lower for word in ("no such host", "lookup", "dial tcp", "i/o timeout", "network is unreachable")):
        return f"{image} is not here and cannot be pulled, the registry is out of reach ({message}): check the network"
    if any(word in lower for word in ("unauthorized", "denied", "forbidden")):
        return f"{image} may not be pulled ({message}): docker login nvcr.io (user $oauthtoken, an NGC key), or TAG="
    if "not found" in lower or "manifest unknown" in lower:
        return f"there is no {image} ({message}): name another with TAG="
    if "no space left" in lower:
        return f"the disk is full while pulling {image} ({message}): docker system prune frees what is unused"
    return f"{image} could not be pulled: {message}"


def message_of(error: APIError) -> str:
    """What the engine said, without the HTTP around it."""
    explanation = error.explanation or str(error)
    try:
        return str(json.loads(explanation)["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(str(explanation).split())
