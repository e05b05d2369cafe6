"""What to do with a run whose launcher is gone, and a shell in the container that a training would get."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from playbook.launch import foreground
from playbook.launch.container import engine, leftovers, spec
from playbook.launch.container.container_process import ContainerProcess
from playbook.launch.process import AdoptedProcess, trainings
from playbook.launch.progress import Progress
from playbook.launch.watch import Started, end_now, launch, see_the_end
from pretraining.errors import UsageError
from pretraining.record import lock, run_folder
from pretraining.record.run_folder import Run, Verdict

SHELL = ["sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"]


@dataclass(frozen=True)
class Running:
    """A run under way, as processes of this machine or as a container.

    Attributes:
        folder: its run folder, which may have been removed.
        taken_over: what a launcher would hold.
    """

    folder: Path
    taken_over: Callable[[], Started]

    def adopt(self) -> Started:
        """Do what its launcher did."""
        started = self.taken_over()
        started.grace_seconds = self.plan.get("grace_seconds") or started.grace_seconds
        return started

    @property
    def plan(self) -> dict[str, Any]:
        """Its `plan.json`, {} where that is gone."""
        try:
            return run_folder.read_facts(self.folder).plan
        except (OSError, ValueError):
            return {}


def attach(name: str | None, runs: Path) -> Run:
    """Follow a run whose launcher died, to its end; Ctrl-C stops it, as it would have there.

    Args:
        name: of the run, or its folder; None for the only one.
        runs: the folder that holds runs.

    Raises:
        UsageError: no such run, or its launcher lives.
        EngineError: it is none of this machine's processes, and no engine answers.
    """
    found = pick(name, runs)
    if not found.folder.is_dir():
        raise UsageError(
            f"the run folder {found.folder} was removed, so nothing tells how it goes: `make stop` ends it"
        )
    request = found.plan.get("request", {})
    label = f"{request.get('precision', '')} {request.get('model', '')}".strip() or found.folder.name
    with lock.watch(found.folder):
        progress = Progress(found.folder, label, request.get("train_iters", 0))
        return launch(found.adopt, found.folder, progress)


def stop(name: str | None, runs: Path) -> None:
    """End a run, watched or not; its record is then whole, and nothing of it runs.

    Raises:
        UsageError, EngineError: as `attach`; and it did not end.
    """
    found = pick(name, runs)
    watched = lock.watcher(found.folder) is not None
    started = found.adopt()
    end = end_now(started)
    there = found.folder.is_dir()
    if watched:
        _wait_for_launcher(found.folder)
    else:
        started.close(recorded=see_the_end(found.folder, end, interrupted=True) or not there)
    if not there:
        print(f"stopped {found.folder.name}: its run folder was removed before, and its record with it")
        return
    verdict = run_folder.read_facts(found.folder).verdict
    print(f"stopped {found.folder.name}: {verdict}")
    if verdict is Verdict.INCOMPLETE:
        raise engine.EngineError(f"its end could not be written into {found.folder}; is the disk full?")


def _wait_for_launcher(folder: Path) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and lock.watcher(folder) is not None:
        time.sleep(0.1)


def pick(name: str | None, runs: Path) -> Running:
    """The run to attach to or to stop. Raises as `attach` does, and where there are several and no name."""
    here = {each.folder: each for each in _processes(name, runs)}
    try:
        here |= {each.folder: each for each in _containers()}
    except engine.EngineError as error:
        if not here:
            raise engine.EngineError(
                f"no run of this project is a process of this machine; and {error.cause}", error.remedy
            ) from error
    path = Path(name).absolute() if name else None
    chosen = [each for each in here.values() if name in (None, each.folder.name) or each.folder == path]
    if len(chosen) == 1:
        return chosen[0]
    if not here:
        raise UsageError("no run of this project is running, as a container or as a process of this machine")
    names = ", ".join(each.folder.name for each in here.values())
    asked = f"{len(here)} runs are running" if name is None else f"RUN={name} is not running"
    raise UsageError(f"{asked}: name one with RUN=, of {names}")


def _processes(name: str | None, runs: Path) -> Iterator[Running]:
    named = [Path(name).absolute()] if name and Path(name).is_dir() else []
    for folder in [*sorted(runs.glob("*/")), *named]:
        if trainings(folder):
            yield Running(folder, partial(AdoptedProcess, folder))


def _containers() -> Iterator[Running]:
    connected = engine.connect()
    for each in leftovers.settle(connected):
        if each.running and each.own:
            yield Running(each.run, partial(ContainerProcess.attach, connected, each.identity))


def shell_command(asked: spec.Container) -> list[str]:
    """The docker command for a shell in the container that a training would get."""
    inside = replace(asked, name=None, labels={}, command=SHELL, secrets=spec.given((*spec.SECRETS, *spec.NETWORK)))
    return inside.in_foreground()


def shell(asked: spec.Container, run_dir: Path) -> int:
    """Open it, through the docker command, which has a terminal's manners. Returns the shell's exit code.

    Args:
        asked: the training's container.
        run_dir: a folder made for the shell; it is its working directory.

    Raises:
        EngineError: the docker command is not installed.
    """
    spec.make_ready(asked, "make shell")
    try:
        return foreground.run(shell_command(asked))
    finally:
        if not any(run_dir.iterdir()):
            run_dir.rmdir()
