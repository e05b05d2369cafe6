"""Runs under way, in containers or as processes of this machine: who watches them, and what if nobody does."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playbook import PROJECT
from playbook.launch.container import engine, user
from playbook.launch.container.container_process import ContainerProcess, how_it_ended
from playbook.launch.container.engine import Engine, EngineError, NotFound
from playbook.launch.container.spec import LABEL
from playbook.launch.process import AdoptedProcess, trainings
from playbook.launch.progress import Progress
from playbook.launch.watch import Started, end_now, launch, see_the_end
from playbook.plan import earlier_run
from pretraining.errors import UsageError
from pretraining.record import lock, run_folder, schema
from pretraining.record.run_folder import Run, Verdict

_RUNNING = ("running", "paused", "restarting")


@dataclass(frozen=True)
class Underway:
    """A run that trains, or whose ended container is still there."""

    folder: Path  # which may have been removed
    launcher: int | None  # the process that watches it, None where none does
    engine: Engine | None = None  # of a container; of one in processes None
    container: str = ""
    gpu: str = ""  # UUIDs of a container's, with commas between them, "" without one
    running: bool = True  # it has not ended
    own: bool = True  # of this project's folder, and not of another copy or user

    def __str__(self) -> str:
        if not self.own:
            return f"run {self.folder}"
        watched = "its launcher is gone" if self.launcher is None else f"its launcher is process {self.launcher}"
        return f"run {self.folder.name} ({watched})"

    def holds(self, gpu: str) -> bool:
        """Whether no other run can have this GPU."""
        return gpu in self.gpu.split(",") and (self.running or self.launcher is not None)

    def adopt(self) -> Started:
        """What its launcher would hold, to do what that did."""
        started = ContainerProcess.attach(self.engine, self.container) if self.engine else AdoptedProcess(self.folder)
        started.grace_seconds = self.plan.get("grace_seconds") or started.grace_seconds
        return started

    @property
    def plan(self) -> dict[str, Any]:
        """Its `plan.json`, {} where that is gone or damaged."""
        with contextlib.suppress(OSError, UsageError):
            return schema.read(self.folder / run_folder.PLAN, schema.PLAN)
        return {}


def in_processes(runs: Path, name: str | None = None) -> Iterator[Underway]:
    """Every run that is processes of this machine: of `runs`, and where `name` is a folder that one."""
    named = [Path(name).absolute()] if name and Path(name).is_dir() else []
    for folder in dict.fromkeys([*sorted(runs.absolute().glob("*/")), *named]):
        if trainings(folder):
            yield Underway(folder, lock.watcher(folder))


def in_containers(connected: Engine) -> list[Underway]:
    """Every run's container that the engine has, ended ones too."""
    found = []
    for each in connected.api.containers(all=True, filters={"label": LABEL}):
        labels = each["Labels"]
        folder, own = Path(labels[LABEL]), labels.get(f"{LABEL}.project") == str(PROJECT)
        gpu, running = labels.get(f"{LABEL}.gpu", ""), each["State"] in _RUNNING
        found.append(Underway(folder, lock.watcher(folder), connected, each["Id"], gpu, running, own))
    return found


def settle(connected: Engine) -> list[Underway]:
    """Record the ends that no launcher saw, and remove those containers. Returns the runs that are still there."""
    user.take_back_all(connected)
    left = []
    for each in in_containers(connected):
        if each.running or not each.own or each.launcher is not None or not _record_end(connected, each):
            left.append(each)
    return left


def _record_end(connected: Engine, ended: Underway) -> bool:
    with contextlib.suppress(NotFound):
        if ended.folder.is_dir():
            end = how_it_ended(connected, ended.container)
            said = connected.api.logs(ended.container, tail=40).decode("utf-8", errors="replace").splitlines()
            if not see_the_end(ended.folder, end, said):
                print(f"{ended}: its end cannot be written into {ended.folder}; is the disk full?", flush=True)
                return False
            print(f"run {ended.folder.name} ended while nobody watched: {_verdict(ended.folder)}", flush=True)
        user.take_back(connected, ended.container)
    return True


def busy(held: Underway, gpu: str) -> str:
    """The sentence for a GPU that another run holds."""
    if held.own and held.launcher is None:
        return f"{gpu} is held by {held}: `make attach` follows it, `make stop` ends it"
    return f"{gpu} is held by {held}: wait for it, or end it with `make stop` in its folder"


def attach(name: str | None, runs: Path) -> Run:
    """Follow a run whose launcher died, by name or the only one, to its end; Ctrl-C stops it, as it would have there.

    Raises UsageError: no such run, or its launcher lives; EngineError: it may be in a container, and no engine answers.
    """
    found = pick(name, runs)
    if not found.folder.is_dir():
        gone = f"the run folder {found.folder} was removed"
        raise UsageError(f"{gone}, so nothing tells how it goes: `make stop` ends it")
    request = found.plan.get("request", {})
    label = f"{request.get('precision', '')} {request.get('model', '')}".strip() or found.folder.name
    with lock.watch(found.folder):
        progress = Progress(found.folder, label, request.get("train_iters", 0))
        return launch(found.adopt, found.folder, progress)


def stop(name: str | None, runs: Path) -> None:
    """End a run, watched or not. Raises as `attach`, and EngineError where its end could not be written."""
    found = pick(name, runs)
    started = found.adopt()
    end = end_now(started)
    there = found.folder.is_dir()
    if found.launcher is not None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and lock.watcher(found.folder) is not None:
            time.sleep(0.1)
    else:
        started.close(recorded=see_the_end(found.folder, end, interrupted=True) or not there)
    if not there:
        print(f"stopped {found.folder.name}: its run folder was removed before, and its record with it")
        return
    verdict = _verdict(found.folder)
    print(f"stopped {found.folder.name}: {verdict}")
    if verdict is Verdict.INCOMPLETE:
        raise EngineError(f"its end could not be written into {found.folder}; is the disk full?")


def _verdict(folder: Path) -> Verdict:
    """How a run ended, by that record alone: another one of it may be damaged."""
    return Run(folder, outcome=schema.read(folder / run_folder.OUTCOME, schema.OUTCOME)).verdict


def pick(name: str | None, runs: Path) -> Underway:
    """The run to attach to or to stop. Raises as `attach` does, and where there are several and no name."""
    here = {each.folder: each for each in in_processes(runs, name)}
    unreachable: EngineError | None = None
    try:
        here |= {each.folder: each for each in settle(engine.connect()) if each.running and each.own}
    except EngineError as error:
        unreachable = error
    path = Path(name).absolute() if name else None
    chosen = [each for each in here.values() if name in (None, each.folder.name) or each.folder == path]
    if len(chosen) == 1:
        return chosen[0]
    folder = earlier_run.folder_of(name, runs) if name else None
    if folder and not folder.is_dir():
        raise UsageError(f"RUN={name} is no run folder, here or in {runs}; make history lists the runs")
    if unreachable and not chosen:
        for each in [folder] if folder else sorted(runs.glob("*/")):
            if _may_be_contained(each):
                cause = f"run {each.name} is or was in a container, and {unreachable.cause}"
                raise EngineError(cause, unreachable.remedy) from unreachable
    if not here:
        raise UsageError("no run of this project is running, as a container or as a process of this machine")
    names = ", ".join(each.folder.name for each in here.values())
    asked = f"{len(here)} runs are running" if name is None else f"RUN={name} is not running"
    raise UsageError(f"{asked}: name one with RUN=, of {names}")


def _may_be_contained(folder: Path) -> bool:
    """Whether a run went into a container, and nobody has recorded its end."""
    ended = (folder / run_folder.OUTCOME).exists()
    return not ended and Underway(folder, None).plan.get("request", {}).get("runtime") == "container"
