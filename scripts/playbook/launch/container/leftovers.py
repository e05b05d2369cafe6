"""Containers of runs: which there are, who watches them, and what to do about those that nobody does."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from playbook import PROJECT
from playbook.launch.container import container_process
from playbook.launch.container.engine import Engine, NotFound
from playbook.launch.container.spec import LABEL
from playbook.launch.watch import see_the_end
from pretraining.record.lock import watcher
from pretraining.record.run_folder import read_facts

_RUNNING = ("running", "paused", "restarting")


@dataclass(frozen=True)
class Contained:
    """A run that is a container.

    Attributes:
        run: its folder.
        gpu: UUIDs with commas between them, "" without one.
        running: it has not ended.
        own: of this project's folder, and not of another copy or user.
        launcher: the process that watches it, None where none does.
    """

    identity: str
    run: Path
    gpu: str
    running: bool
    own: bool
    launcher: int | None

    def __str__(self) -> str:
        if not self.own:
            return f"run {self.run}"
        watched = "its launcher is gone" if self.launcher is None else f"its launcher is process {self.launcher}"
        return f"run {self.run.name} ({watched})"


def find(engine: Engine) -> list[Contained]:
    """Every run's container that the engine has, ended ones too."""
    found = []
    for each in engine.api.containers(all=True, filters={"label": LABEL}):
        labels = each["Labels"]
        run = Path(labels[LABEL])
        found.append(
            Contained(
                identity=each["Id"],
                run=run,
                gpu=labels.get(f"{LABEL}.gpu", ""),
                running=each["State"] in _RUNNING,
                own=labels.get(f"{LABEL}.project") == str(PROJECT),
                launcher=watcher(run),
            )
        )
    return found


def settle(engine: Engine) -> list[Contained]:
    """Record the ends that no launcher saw, and remove those containers. Returns the runs that are still there."""
    left = []
    for each in find(engine):
        if each.running or not each.own or each.launcher is not None or not _record_end(engine, each):
            left.append(each)
    return left


def _record_end(engine: Engine, ended: Contained) -> bool:
    with contextlib.suppress(NotFound):
        if ended.run.is_dir():
            end = container_process.how_it_ended(engine, ended.identity)
            said = engine.api.logs(ended.identity, tail=40).decode("utf-8", errors="replace").splitlines()
            if not see_the_end(ended.run, end, said):
                print(f"{ended}: its end cannot be written into {ended.run}; is the disk full?", flush=True)
                return False
            print(f"run {ended.run.name} ended while nobody watched: {read_facts(ended.run).verdict}", flush=True)
        engine.api.remove_container(ended.identity, force=True, v=True)
    return True


def holder(left: list[Contained], gpu: str) -> Contained | None:
    """The run that holds a GPU."""
    return next(
        (each for each in left if gpu in each.gpu.split(",") and (each.running or each.launcher is not None)), None
    )


def busy(held: Contained, gpu: str) -> str:
    """The sentence for a GPU that another run holds."""
    if held.own and held.launcher is None:
        return f"{gpu} is held by {held}: `make attach` follows it, `make stop` ends it"
    return f"{gpu} is held by {held}: wait for it, or end it with `make stop` in its folder"
