"""`cluster.yaml`: read, checked, and made from the example where there is none."""

from __future__ import annotations

import difflib
import re
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from playbook import PROJECT
from pretraining.errors import UsageError
from pretraining.settings import RUNS

FILE = PROJECT / "cluster.yaml"
EXAMPLE = Path(__file__).resolve().parent.parent / "cluster.example.yaml"
EXECUTORS = ("slurm", "kubeflow", "skypilot")
_TIME = re.compile(r"(\d+-)?\d{1,2}(:\d{2}){0,2}")


@dataclass(frozen=True)
class Cluster:
    """The fields of `cluster.yaml`, whose comments say what each is; a null there is None or the default here."""

    executor: str = "slurm"
    host: str | None = None
    account: str | None = None
    partition: str | None = None
    time: str = "04:00:00"
    gpus: int = 8
    exclusive: bool = False
    sbatch: dict[str, Any] = field(default_factory=dict)
    restarts: int = 5
    end_before_limit: int = 120
    runs: str | None = None
    image: str | None = None
    mounts: list[str] = field(default_factory=list)
    python: str = "python"
    environment: dict[str, str] = field(default_factory=dict)
    kubeflow: dict[str, Any] = field(default_factory=dict)
    skypilot: dict[str, Any] = field(default_factory=dict)

    @property
    def runs_folder(self) -> Path:
        """Where run folders go, the same path on every node."""
        return Path(self.runs) if self.runs else PROJECT / RUNS


def read(path: Path = FILE) -> Cluster:
    """The cluster of `path`; the project's own is copied from the example on first use.

    Raises:
        UsageError: no file, no YAML, an unknown field (with the nearest name) or a value of the wrong kind.
    """
    if path == FILE and not path.exists():
        shutil.copyfile(EXAMPLE, path)
        raise UsageError(f"{path.name} was not there and is now, with comments: say in it where to train, then again")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UsageError(f"CLUSTER={path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} has no `name: value` lines; {EXAMPLE.name} shows them")
    known = {each.name: each for each in fields(Cluster)}
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise UsageError(f"{path}: unknown field {name!r}{f': did you mean {near[0]}?' if near else ''}")
    cluster = Cluster(**{name: value for name, value in content.items() if value is not None})
    _check(cluster, path)
    return cluster


def _check(cluster: Cluster, path: Path) -> None:
    kinds = {"gpus": int, "restarts": int, "end_before_limit": int, "exclusive": bool, "time": str, "python": str}
    kinds |= {"environment": dict, "sbatch": dict, "mounts": list, "kubeflow": dict, "skypilot": dict}
    for name, kind in kinds.items():
        value = getattr(cluster, name)
        if not isinstance(value, kind):
            hint = " (put it in quotes: YAML reads 4:00:00 as a number)" if name == "time" else ""
            raise UsageError(f"{path}: {name} is {value!r}, which is no {kind.__name__}{hint}")
    if cluster.executor not in EXECUTORS:
        raise UsageError(f"{path}: executor is {cluster.executor!r}; one of {', '.join(EXECUTORS)}")
    if not _TIME.fullmatch(cluster.time):
        raise UsageError(f"{path}: time is {cluster.time!r}; write it as hours:minutes:seconds, or days-hours")
    for name in cluster.environment:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise UsageError(f"{path}: environment name {name!r}; use capitals, which is all that NeMo-Run exports")
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
