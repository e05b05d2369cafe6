"""A training that is a process of this machine."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from playbook.launch.watch import End
from pretraining.record import ends, lock
from pretraining.record.run_folder import Verdict
from pretraining.run import signals

KILL_SECONDS = 3.0
# Of another launcher around this command, whose processes this training is none of.
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


class LocalProcess:
    """Runs a command in a process group of its own: Ctrl-C reaches the launcher alone, which passes it on once."""

    grace_seconds = 3.0

    def __init__(self, command: list[str], environment: dict[str, str], *, saves: bool = False) -> None:
        if saves:
            self.grace_seconds = signals.GRACE_SECONDS
        # SIGTERM may come twice, also through torch.distributed.run; a second SIGINT would end a run that saves.
        self._interruption = signal.SIGTERM if saves else signal.SIGINT
        self._process = subprocess.Popen(
            command,
            env={name: value for name, value in os.environ.items() if name not in _NUMBERS} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def lines(self) -> Iterator[bytes]:
        assert self._process.stdout is not None
        yield from self._process.stdout

    def poll(self) -> End | None:
        code = self._process.poll()
        if code is None or code >= 0:
            return None if code is None else End(code)
        end = ends.by_signal(-code)
        return End(code, end.verdict, f"training was {end.told}")

    def interrupt(self) -> None:
        self._signal(self._interruption)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    def close(self, *, recorded: bool) -> None:
        """End the helpers of a training that was killed: nobody else does."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class AdoptedProcess:
    """A training of this machine whose launcher is gone: its processes, which wrote themselves down in its lock."""

    grace_seconds = LocalProcess.grace_seconds

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._known: set[lock.Process] = set()

    def lines(self) -> Iterator[bytes]:
        """Nothing: its output has lost its reader, and goes to its log alone."""
        return iter(())

    def poll(self) -> End | None:
        """How it ended, None while it runs. Its own outcome is right; that it left none is all that is known."""
        if self._living():
            return None
        return End(1, Verdict.KILLED, "training was killed, or died without a word, while no launcher watched it")

    def interrupt(self) -> None:
        """Ask every process to end, with a record; torch.distributed.run ends with them."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        deadline = time.monotonic() + KILL_SECONDS
        while self._living() and time.monotonic() < deadline:
            self._signal(signal.SIGKILL)
            time.sleep(0.05)

    def close(self, *, recorded: bool) -> None:
        """Nothing is left of it: helpers end with their training."""

    def _living(self) -> list[lock.Process]:
        self._known.update(trainings(self._run_dir))  # which are gone where the folder was removed
        return [each for each in self._known if each.lives()]

    def _signal(self, number: signal.Signals) -> None:
        for each in self._living():
            each.send(number)


def trainings(run_dir: Path) -> list[lock.Process]:
    """The processes of this machine that train in a run folder."""
    return [each for each in lock.processes(run_dir) if each.role == "training" and each.lives()]
