"""What to do with a container whose launcher is gone, and a shell in the container that a training would get."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from playbook import engine, foreground, orphans
from playbook.launch import launch, see_the_end
from playbook.progress import Progress
from playbook.runtimes import container, container_process
from playbook.runtimes.container_process import ContainerProcess
from pretraining import record
from pretraining.lock import watch, watcher
from pretraining.record import Run, Verdict

SHELL = ["sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"]


def attach(name: str | None) -> Run:
    """Follow a run whose launcher died, to its end; Ctrl-C stops it, as it would have there.

    Raises:
        UsageError: no such run, or its launcher lives.
        EngineError: no engine answers.
    """
    connected = engine.connect()
    found = orphans.pick(connected, name)
    request = record.read_facts(found.run).plan.get("request", {})
    label = f"{request.get('precision', '')} {request.get('model', '')}".strip() or found.run.name
    with watch(found.run):
        progress = Progress(found.run, label, request.get("train_iters", 0))
        return launch(lambda: ContainerProcess.attach(connected, found.identity), found.run, progress)


def stop(name: str | None) -> None:
    """End a run that is a container, watched or not; its record is then whole and the container gone.

    Raises:
        UsageError: no such run.
        EngineError: no engine answers, or it did not stop.
    """
    connected = engine.connect()
    found = orphans.pick(connected, name)
    api = connected.api
    grace = record.read_facts(found.run).plan.get("grace_seconds") or ContainerProcess.grace_seconds
    for signal in ("SIGINT", "SIGKILL"):
        try:
            api.kill(found.identity, signal=signal)
            api.wait(found.identity, timeout=grace, condition="not-running")
            break
        except (engine.NotFound, engine.APIError):  # it ended by itself, or its launcher has removed it
            break
        except OSError:  # still there after the wait
            continue
    if found.launcher is None:
        end = container_process.how_it_ended(connected, found.identity)
        if see_the_end(found.run, end, interrupted=True):
            api.remove_container(found.identity, force=True, v=True)
    else:
        _wait_for_launcher(found)
    verdict = record.read_facts(found.run).verdict
    print(f"stopped {found.run.name}: {verdict}")
    if verdict is Verdict.INCOMPLETE:
        raise engine.EngineError(f"its end could not be written into {found.run}; is the disk full?")


def _wait_for_launcher(found: orphans.Contained) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and watcher(found.run) is not None:
        time.sleep(0.1)


def shell_command(asked: container.Container) -> list[str]:
    """The docker command for a shell in the container that a training would get."""
    inside = replace(
        asked, name=None, labels={}, command=SHELL, secrets=container.given((*container.SECRETS, *container.NETWORK))
    )
    return inside.in_foreground()


def shell(asked: container.Container, run_dir: Path) -> int:
    """Open it, through the docker command, which has a terminal's manners. Returns the shell's exit code.

    Args:
        asked: the training's container.
        run_dir: a folder made for the shell; it is its working directory.

    Raises:
        EngineError: the docker command is not installed.
    """
    container.make_ready(asked, "make shell")
    try:
        return foreground.run(shell_command(asked))
    finally:
        if not any(run_dir.iterdir()):
            run_dir.rmdir()
