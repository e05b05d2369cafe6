"""A training that is a container: started, watched, stopped, and found again after its launcher died.

It is never removed by the engine: the container is its own record until its end is in the run folder. Only then is it
removed, so a launcher, an engine or a disk that fails in between loses nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import requests

from playbook.launch.container.engine import APIError, DockerException, Engine, NotFound, explain
from playbook.launch.container.spec import LABEL, Container, written_folders
from playbook.launch.container.user import take_back
from playbook.launch.watch import End, NotStarted
from pretraining.record import ends
from pretraining.record.run_folder import Verdict

ENGINE_RETURN_SECONDS = 30.0
ENGINE_STOPS_SECONDS = 1.5
_LOST = (requests.RequestException, DockerException, OSError)


class ContainerProcess:
    """A run's container and its output. Made by `start` or `attach`."""

    grace_seconds = 5.0

    def __init__(self, engine: Engine, identity: str, output: Iterable[bytes]) -> None:
        self._engine = engine
        self._identity = identity
        self._output = output
        self._end: End | None = None
        self._asked_to_end = False
        self._over = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()

    @classmethod
    def start(cls, engine: Engine, container: Container, run_dir: Path) -> ContainerProcess:
        """Create, attach, start: attached before it starts, so that its first line is not lost.

        Raises NotStarted where the engine refuses; nothing is left behind, nor after an interruption.
        """
        api = engine.api
        try:
            for path in written_folders(container):
                path.mkdir(parents=True, exist_ok=True)
            identity = api.create_container(**container.create_arguments(api))["Id"]
            output = api.attach(identity, stream=True)
            api.start(identity)
            return cls(engine, identity, output)
        except BaseException as error:
            with contextlib.suppress(*_LOST):
                for leftover in api.containers(all=True, filters={"label": f"{LABEL}={run_dir}"}):
                    api.remove_container(leftover["Id"], force=True)
            if isinstance(error, _LOST):
                raise NotStarted(_why_not(engine, container, error)) from error
            raise

    @classmethod
    def attach(cls, engine: Engine, identity: str) -> ContainerProcess:
        """Watch a container whose launcher is gone."""
        return cls(engine, identity, engine.api.logs(identity, stream=True, follow=True, tail=40))

    def lines(self) -> Iterator[bytes]:
        """What it prints, without line ends, until it ends."""
        rest = b""
        with contextlib.suppress(*_LOST):
            for chunk in self._output:
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole
        if rest:
            yield rest

    def poll(self) -> End | None:
        return self._end

    def interrupt(self) -> None:
        self._signal("SIGINT")

    def kill(self) -> None:
        if not self._over.is_set():
            self._signal("SIGKILL")
            self._over.wait(timeout=3)

    def close(self, *, recorded: bool) -> None:
        """Remove the container once its end is recorded; else it stays, and the next make command records it."""
        if recorded:
            with contextlib.suppress(*_LOST):
                take_back(self._engine, self._identity)

    def _signal(self, name: str) -> None:
        self._asked_to_end = True
        with contextlib.suppress(*_LOST):  # it ended meanwhile, or the engine did: poll() tells
            self._engine.api.kill(self._identity, signal=name)

    def _wait(self) -> None:
        """Ask the engine to say when it ends. That may be over already: it is never removed before it is recorded."""
        lost = False
        while True:
            try:
                code = self._engine.api.wait(self._identity, timeout=None, condition="not-running")["StatusCode"]
                if code and not lost:
                    self._watch_engine()
                self._end = how_it_ended(self._engine, self._identity, engine_lost=lost)
                break
            except NotFound:
                self._end = End(137, Verdict.KILLED, "the container was removed from outside (docker rm)")
                break
            except _LOST:
                lost = True
                if not self._engine_returns():
                    self._end = End(
                        1,
                        Verdict.INCOMPLETE,
                        "the Docker engine stopped while training ran: sudo systemctl start docker; "
                        "the next make command then records how the run ended",
                    )
                    break
            except Exception as error:  # of an answer that is none: the container stays, and may train on
                cause = f"the Docker engine's answer is not understood ({error!r}): `make attach` tries again"
                self._end = End(1, Verdict.INCOMPLETE, cause)
                break
        self._over.set()

    def _watch_engine(self) -> None:
        """An engine that stops ends its containers first and then goes away: see whether it does."""
        deadline = time.monotonic() + ENGINE_STOPS_SECONDS
        while not self._asked_to_end and time.monotonic() < deadline:
            self._engine.api.ping()
            time.sleep(0.1)

    def _engine_returns(self) -> bool:
        deadline = time.monotonic() + ENGINE_RETURN_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.5)
            with contextlib.suppress(*_LOST):
                self._engine.api.ping()
                return True
        return False


def how_it_ended(engine: Engine, identity: str, *, engine_lost: bool = False) -> End:
    """What the engine knows of a container's end; `engine_lost` where it went away while that ran."""
    state = engine.api.inspect_container(identity)["State"]
    code = state["ExitCode"]
    if state.get("OOMKilled"):
        end = ends.BY_STATE["OUT_OF_MEMORY"]
        return End(code, end.verdict, end.told)
    killed = ""
    if engine_lost:
        killed = f"the Docker engine stopped or restarted while training ran (exit code {code})"
    elif code == 137:
        killed = "the container was killed (SIGKILL): docker kill or docker rm -f does that"
    elif code in (129, 130, 143):
        killed = f"the container was stopped from outside (exit code {code}), as docker stop does"
    if killed:
        return End(code, Verdict.KILLED, killed)
    if state.get("Error"):
        return End(code, Verdict.FAILED, explain(RuntimeError(state["Error"])))
    return End(code)


def _why_not(engine: Engine, container: Container, error: Exception) -> str:
    if isinstance(error, APIError) and error.status_code == 409 and container.name:
        with contextlib.suppress(*_LOST):
            labels = engine.api.inspect_container(container.name)["Config"]["Labels"] or {}
            if LABEL in labels:
                return f"run {Path(labels[LABEL]).name} holds this GPU: wait for it, or `make stop` ends it"
    return explain(error, image=container.image, name=container.name or "")
