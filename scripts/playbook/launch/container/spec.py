"""The container runtime: the training script inside NVIDIA's NeMo image, on one chosen GPU.

A `Container` says everything that the engine is asked for, once. It is sent through the SDK (`create_arguments`) or
printed as the command a person could paste (`docker_run`); a test holds the two equal on a real engine.

Every folder has the same path inside as outside, so a path in a log, a record or an error is right in both places.
Training runs as the user, who need not exist in the image: what such a user lacks there (a home, caches) is a folder
of the project's cache. Files of a run then belong to the user, and compiled kernels last from run to run.
"""

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

from playbook import ASSETS, PROJECT
from playbook.launch.container.folders import behind_links, read_by
from playbook.plan.place import EngineKind, Place
from pretraining.errors import UsageError
from pretraining.request.recipe import nvfp4_recipe
from pretraining.request.settings import Settings

SCRIPT = str(ASSETS / "pretrain_llama.py")
LABEL = "nvfp4-playbook"
LIMITS = {"memlock": -1, "stack": 67108864}
PLACEHOLDER = "<GPU-UUID>"
IMAGE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SECRETS = ("HF_TOKEN",)
# How the host reaches a network. The address of a proxy or a mirror may hold a password: they go by name, as secrets.
PROXIES = tuple(spelt(f"{name}_PROXY") for name in ("HTTP", "HTTPS", "ALL", "NO") for spelt in (str.upper, str.lower))
NETWORK = ("HF_ENDPOINT", *PROXIES)
# What a writer needs to reach a server, by package: secret or not, it goes by name alone.
WRITERS = {
    "wandb": ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY"),
    "mlflow": ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
}
# A mount at or above one of these would hide what the image itself needs.
_OF_THE_IMAGE = ("/opt/venv", "/opt/Megatron-Bridge", "/usr", "/bin", "/lib", "/etc", "/proc", "/sys", "/dev", "/tmp")


@dataclass(frozen=True)
class Folder:
    """A folder that exists under the same path inside and outside."""

    path: Path
    writable: bool = False


@dataclass(frozen=True)
class Container:
    image: str  # name and tag
    command: list[str]  # program and arguments; the program replaces the image's entry point
    environment: dict[str, str]  # none of them secret
    folders: tuple[Folder, ...]
    workdir: str
    name: str | None = None  # a run's is made from its GPU, so an engine never holds two runs on one GPU
    secrets: tuple[str, ...] = ()  # names of variables whose values come from the caller's environment
    gpu: str | None = None  # UUIDs with commas between them, PLACEHOLDER, or None for a container without one
    engine: EngineKind = field(default_factory=EngineKind)  # what of it changes how it is asked
    labels: dict[str, str] = field(default_factory=dict)
    as_root: bool = False  # root works inside, and not the caller, to whom its files are then handed

    @property
    def user(self) -> str:
        """Who works inside: the caller, so that files are the caller's."""
        return "0:0" if self.as_root else caller(self.engine)

    @property
    def owner(self) -> str:
        """Whom files have to be handed to at the end; "" where they are the caller's already."""
        return "" if self.user == caller(self.engine) else caller(self.engine)

    @property
    def all_labels(self) -> dict[str, str]:
        """With those by which `user.take_back` knows what it has to do."""
        return {**self.labels, **(ownership(self.engine) if self.owner else {})}

    @property
    def _of_the_host(self) -> list[tuple[list[str], dict[str, Any]]]:
        """What it gets of the machine: each thing in docker's words, and as the SDK's argument of a host config."""
        limits = [Ulimit(name=name, soft=limit, hard=limit) for name, limit in LIMITS.items()]
        mounts = [Mount(str(each.path), str(each.path), "bind", not each.writable) for each in self.folders]
        log = LogConfig(type="json-file", config={"max-size": "20m"})  # train.log is the whole log
        found = [(["--ipc", "host"], {"ipc_mode": "host"}), (["--init"], {"init": True})]
        if self.gpu:
            found.append(self._gpu_request())
        if self.engine.remaps:
            found.append((["--userns", "host"], {"userns_mode": "host"}))
        if self.engine.selinux:  # without labels the folders can be read, and they keep those that the host needs
            found.append((["--security-opt", "label=disable"], {"security_opt": ["label=disable"]}))
        return [
            *found,
            (_each("--ulimit", (f"{each.name}={each.soft}:{each.hard}" for each in limits)), {"ulimits": limits}),
            (["--log-driver", log.type, *_each("--log-opt", _pairs(log.config))], {"log_config": log}),
            (_each("--mount", map(_as_word, mounts)), {"mounts": mounts}),
        ]

    def create_arguments(self, api: docker.APIClient) -> dict[str, Any]:
        """The arguments for `api.create_container`, the only place where a secret's value is read."""
        host = {name: value for _, argument in self._of_the_host for name, value in argument.items()}
        return {
            "image": self.image,
            "name": self.name,
            "entrypoint": self.command[:1],
            "command": self.command[1:],
            "environment": {**self.environment, **{name: os.environ[name] for name in self.secrets}},
            "user": self.user,
            "working_dir": self.workdir,
            "labels": self.all_labels,
            "host_config": api.create_host_config(**host),
        }

    def _gpu_request(self) -> tuple[list[str], dict[str, Any]]:
        uuids = self.gpu.split(",")
        if self.engine.gpus == "cdi":
            names = [f"nvidia.com/gpu={uuid}" for uuid in uuids]
            return _each("--device", names), {"device_requests": [DeviceRequest(driver="cdi", device_ids=names)]}
        request = DeviceRequest(device_ids=uuids, capabilities=[["gpu"]])
        return ["--gpus", f'"device={self.gpu}"'], {"device_requests": [request]}

    def docker_run(self, *extra: str) -> list[str]:
        """The same as a `docker run` command. Secrets go by name: docker takes their values from the environment."""
        return [
            *("docker", "run", *extra, *(("--name", self.name) if self.name else ())),
            *(word for words, _ in self._of_the_host for word in words),
            *("--user", self.user, "--workdir", self.workdir),
            *_each("-e", (*_pairs(self.environment), *self.secrets)),
            *_each("--label", _pairs(self.all_labels)),
            *("--entrypoint", self.command[0], self.image, *self.command[1:]),
        ]

    def in_foreground(self) -> list[str]:
        """The `docker run` command for this terminal, whose container stays only where files are to be handed."""
        return self.docker_run(*([] if self.owner else ["--rm"]), "-it" if sys.stdin.isatty() else "-i")


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _pairs(values: Mapping[str, str]) -> Iterator[str]:
    return (f"{name}={value}" for name, value in values.items())


def _as_word(mount: Mount) -> str:
    words = f"type=bind,source={mount['Source']},target={mount['Target']}"
    return f"{words},readonly" if mount["ReadOnly"] else words


def caller(engine: EngineKind) -> str:
    """The user and group of this process as an engine numbers them: of a rootless one root is the caller."""
    return "0:0" if engine.rootless else f"{os.getuid()}:{os.getgid()}"


def ownership(engine: EngineKind) -> dict[str, str]:
    """Labels of a container that leaves root's files, or is itself left behind by a launcher that was killed."""
    return {f"{LABEL}.owner": caller(engine), f"{LABEL}.project": str(PROJECT)}


def pasteable(words: list[str]) -> str:
    """A shell command over several lines, an option and its value a line."""
    lines = [shlex.join(words[:2])]
    for word in words[2:]:
        quoted = shlex.quote(word)
        if word.startswith("--") or not lines[-1].lstrip().startswith("-") or len(lines[-1].split()) > 1:
            lines.append(f"  {quoted}")
        else:
            lines[-1] += f" {quoted}"
    return " \\\n".join(lines)


def script(container: Container, words: list[str]) -> str:
    """`words`, a docker command for this container, for a shell, behind the folders that it mounts."""
    return f"mkdir -p {shlex.join(map(str, written_folders(container)))}\n{pasteable(words)}"


def inside(
    place: Place,
    command: list[str],
    *,
    cache: Path,
    folders: Iterable[Folder],
    workdir: Path,
    hub: Iterable[str] = (),
    variables: Mapping[str, str] = {},
    **more: Any,
) -> Container:
    """The container of a job of this project: with its code, its caches and, for the user, a home. Raises as `checked`.

    `folders` are what the job reads and writes, `hub` names what Hugging Face's cache may have for it.
    """
    of_all = [Folder(ASSETS), *(Folder(path, True) for path in (cache, *huggingface_folders(*hub)))]
    return Container(
        image=place.image,
        command=command,
        environment={**user_environment(cache, place.found.path if place.found else ""), **variables},
        folders=checked([*of_all, *folders]),
        workdir=str(workdir),
        engine=place.engine,
        as_root=place.container_user == "root",
        **more,
    )


def training(
    settings: Settings,
    place: Place,
    run_dir: Path,
    flags: list[str],
    *,
    processes: int = 1,
    more: Mapping[str, str] = {},
) -> Container:
    """The container of a training, for the script's `flags` without the run folder. Raises UsageError as `checked`."""
    launcher = ["python", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    folders = [Folder(run_dir, True), *map(Folder, read_by(settings))]
    if settings.export:
        folders.append(Folder(settings.export.parent, True))
    asks_hub = settings.weights or settings.has_own_data
    for_writers = given(name for package in settings.writers for name in WRITERS.get(package, ()))
    return inside(
        place,
        [*launcher, SCRIPT, *flags, "--run-dir", str(run_dir)],
        cache=settings.cache_dir,
        folders=folders,
        workdir=run_dir,
        hub=filter(None, (settings.weights, settings.tokenizer)),
        variables=more,
        name=f"{LABEL}-{place.uuids.partition(',')[0]}" if place.uuids else None,
        # Nothing else asks Hugging Face: model configs are in assets/, and the built-in data needs no tokenizer.
        secrets=(*(given(SECRETS) if asks_hub else ()), *given(NETWORK), *for_writers),
        gpu=place.uuids or PLACEHOLDER,
        labels={LABEL: str(run_dir), f"{LABEL}.project": str(PROJECT), f"{LABEL}.gpu": place.uuids},
    )


def given(names: Iterable[str]) -> tuple[str, ...]:
    """Those that the caller's environment has."""
    return tuple(name for name in names if os.environ.get(name))


def huggingface_caches() -> dict[str, Path]:
    """Where Hugging Face's library keeps things, by its own variables; the second only where it is set apart.

    Without links in them: relative ones further in then lead to the same places inside.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    caches = {"HF_HOME": Path(os.environ.get("HF_HOME") or cache / "huggingface")}
    if hub := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        caches["HF_HUB_CACHE"] = Path(hub)
    return {name: Path(os.path.expanduser(path)).resolve() for name, path in caches.items()}


def huggingface_folders(*names: str) -> list[Path]:
    """The folders of the caches, and those that links lead to from the repositories of these names."""
    caches = huggingface_caches()
    hub = caches.get("HF_HUB_CACHE", caches["HF_HOME"] / "hub")
    repositories = [hub.resolve() / f"models--{name.replace('/', '--')}" for name in names]
    linked = {hub.resolve()}.union(*map(behind_links, repositories)) if hub.exists() else set()
    return [*caches.values(), *sorted(linked)]


def user_environment(cache: Path, image_path: str) -> dict[str, str]:
    """What a user without a passwd entry lacks, the image's own Python first, and the switches that are set."""
    home = cache / "container"
    return {
        "PATH": path_of(image_path),
        "HOME": str(home),
        "USER": os.environ.get("USER") or "trainer",
        **{name: str(path) for name, path in huggingface_caches().items()},
        "TRITON_CACHE_DIR": str(home / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "PYTHONUNBUFFERED": "1",
        **{name: os.environ[name] for name in ("HF_HUB_OFFLINE",) if name in os.environ},
        **nvfp4_recipe.passed_on(),
    }


def path_of(image_path: str) -> str:
    """The PATH inside: the image's, with the Python of NeMo's first."""
    return f"/opt/venv/bin:{image_path or IMAGE_PATH}".replace("/opt/venv/bin:/opt/venv/bin:", "/opt/venv/bin:")


def written_folders(container: Container) -> list[Path]:
    """What is written to, and has to be there before the start: the engine mounts nothing that is missing."""
    caches = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    mounted = [each.path for each in container.folders if each.writable]
    return [*mounted, *(Path(container.environment[name]) for name in caches)]


def checked(folders: list[Folder]) -> tuple[Folder, ...]:
    """Each folder once, outer before inner. Raises UsageError where one would hide what the image needs."""
    once: dict[Path, Folder] = {}
    for each in folders:
        known = once.get(each.path)
        once[each.path] = Folder(each.path, each.writable or (known is not None and known.writable))
    for path in once:
        for taken in map(Path, _OF_THE_IMAGE):
            if path == taken or path in taken.parents:
                raise UsageError(f"{path} cannot be mounted: it would hide the image's own {taken}; move it elsewhere")
        if "," in str(path):
            raise UsageError(f"{path} cannot be mounted: docker takes no comma in a path; rename the folder")
    return tuple(sorted(once.values(), key=lambda each: each.path.parts))
