"""`cluster.yaml`: read, checked, and made from the example where there is none."""

import difflib
import re
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta

from playbook import PROJECT
from pretraining.errors import UsageError
from pretraining.request.flags import RUNS
from pretraining.request.recipe import nvfp4_recipe

FILE = PROJECT / "cluster.yaml"
EXAMPLE = Path(__file__).resolve().parent.parent / "cluster.example.yaml"
# Fields of earlier versions: what they may still say, and what to do with anything else.
_GONE = {
    "executor": ("slurm", "this playbook submits to Slurm; NeMo-Run's own examples show its other executors"),
    "host": (None, "submit on a login node of the cluster, in a checkout there"),
}
_GPU_FLAGS = {"gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "tres-per-node", "tres-per-task"}
_TIME = r"(\d+-)?\d{1,2}(:\d{2}){0,2}"
_HINTS = {
    "time": "; hours:minutes:seconds or days-hours, in quotes: YAML reads 4:00:00 as a number",
    "environment": "; NAME: value",
}
Count = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True)
class Cluster:
    """The fields of `cluster.yaml`, whose comments say what each is. One that is null is left out of the job."""

    account: str | None = None
    partition: str | None = None
    time: Annotated[str, Meta(pattern=rf"^({_TIME})$")] | None = "04:00:00"
    gpus: Count | None = 8
    exclusive: bool | None = False
    sbatch: dict[str, Any] | None = field(default_factory=dict)
    restarts: Count | None = 5
    end_before_limit: Count | None = 120
    runs: str | None = None
    image: str | None = None
    mounts: list[str] | None = field(default_factory=list)
    python: str = "python"
    environment: dict[str, Any] | None = field(default_factory=dict)

    @property
    def runs_folder(self) -> Path:
        """Where run folders go, the same path on every node."""
        return Path(self.runs) if self.runs else PROJECT / RUNS

    @property
    def on_gpu(self) -> bool:
        """Whether the nodes train on GPUs, counted or not."""
        return self.gpus != 0

    @property
    def gpus_per_node(self) -> int | None:
        """What to ask Slurm for by `--gpus-per-node`: nothing where `sbatch` has words of its own about GPUs."""
        own = {str(name).replace("_", "-") for name in self.sbatch or {}}
        return None if own & _GPU_FLAGS else self.gpus or None


def read(path: Path = FILE) -> Cluster:
    """The cluster of `path`; the project's own is copied from the example on first use.

    Raises UsageError: no file, no YAML, an unknown field (with the nearest name) or a value of the wrong kind.
    """
    if path == FILE and not path.exists():
        shutil.copyfile(EXAMPLE, path)
        raise UsageError(f"{path.name} was not there and is now, with comments: say in it where to train, then again")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UsageError(f"CLUSTER={path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} has no `name: value` lines; {EXAMPLE.name} shows them")
    for name, (harmless, instead) in _GONE.items():
        if content.pop(name, harmless) not in (harmless, None):
            raise UsageError(f"{path}: {name} is no longer a field: {instead}")
    known = {each.name: each for each in fields(Cluster)}
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise UsageError(f"{path}: unknown field {name!r}{f': did you mean {near[0]}?' if near else ''}")
    for name, value in content.items():
        try:
            msgspec.convert({name: value}, Cluster)
        except msgspec.ValidationError as error:
            wanted = str(error).partition(" - at ")[0].replace("E", "e", 1)
            said = name if name == "environment" else f"{name} is {value!r}"  # whose values may be secret
            raise UsageError(f"{path}: {said}: {wanted}{_HINTS.get(name, '')}") from None
    cluster = Cluster(**content)
    _check(cluster, path)
    return cluster


def _check(cluster: Cluster, path: Path) -> None:
    for name in cluster.environment or {}:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise UsageError(f"{path}: environment name {name!r}; use capitals, which is all that NeMo-Run exports")
        if nvfp4_recipe.is_variable(name):
            raise UsageError(f"{path}: {name} is NVFP4's recipe, and a job gets that by flag: make submit NVFP4=...")
        if re.search(r"TOKEN|PASSWORD|SECRET|API_KEY", name):
            raise UsageError(
                f"{path}: {name} would be written into the batch script and its log; "
                f"export it in your shell instead: sbatch hands it on"
            )
    runs = str(cluster.runs_folder)
    if not cluster.runs_folder.is_absolute() or re.search(r"\s|/nemo_run\b", runs):
        raise UsageError(
            f"{path}: runs is {runs!r}; it must be an absolute path, the same on every node, without spaces or "
            "/nemo_run in it, which NeMo-Run's scripts do not stand"
        )
