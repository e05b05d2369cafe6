"""What a person sees while a training runs: a live line on a terminal, plain lines otherwise."""

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining.record import run_folder, schema
from pretraining.record.schema import Damaged

if TYPE_CHECKING:
    from rich.status import Status

PLAIN_EVERY_SECONDS = 15.0


class Progress:
    """Follows the `metrics.jsonl` of a run folder as it grows; a run that trains nothing has 0 iterations."""

    def __init__(self, folder: Path, label: str, iterations: int) -> None:
        self._metrics = folder / run_folder.METRICS
        self._label = label
        self._iterations = iterations
        self._position = 0
        self._last: dict = {}
        self._evaluated: dict | None = None
        self._times: list[float] = []
        self._began = time.monotonic()
        self._said = 0.0
        from rich.console import Console  # not of a dry run, which has the standard library alone

        console = Console()
        self._status: Status | None = None
        if console.is_terminal:
            self._status = console.status("", spinner="dots")
            self._status.start()
        elif self._read():
            self.say(f"{label}: following, from iteration {self._last.get('iteration', 0)} of {iterations}")
        else:
            self.say(f"{label}: starting{f', {iterations} iterations' if iterations else ''}")

    def update(self) -> None:
        grown = self._read()
        if self._status is not None:
            self._status.update(self._line())
        elif grown and (time.monotonic() - self._said > PLAIN_EVERY_SECONDS):
            self.say(self._line())

    def say(self, words: str) -> None:
        self._said = time.monotonic()
        if self._status is not None:
            self._status.update(words)
        else:
            print(words, flush=True)

    def close(self) -> None:
        self._read()
        if self._status is not None:
            self._status.stop()
        if self._last:
            print(self._line(final=True), flush=True)

    def _read(self) -> bool:
        try:
            with self._metrics.open("rb") as file:
                file.seek(self._position)
                new = file.read()
        except OSError:
            return False
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        self._position += len(whole)
        for text in whole.splitlines(keepends=True):
            with contextlib.suppress(Damaged):  # what is shown must not end what is trained
                for line in schema.lines([text], schema.LINE, self._metrics):
                    self._take(line)
        return bool(whole)

    def _take(self, line: dict[str, Any]) -> None:
        if line.get("kind") == "train" and line.get("iteration") and line.get("step_time_s"):
            self._last = line
            self._times = [*self._times[-19:], line["step_time_s"]]
        elif line.get("split") == "validation":
            self._evaluated = line

    def _line(self, *, final: bool = False) -> str:
        seconds = time.monotonic() - self._began
        if not self._last:
            return f"{self._label}: starting, {seconds:.0f} s (imports, model, data)"
        step = sorted(self._times)[len(self._times) // 2]
        done = self._last["iteration"]
        loss = shown(self._last.get("loss"))
        parts = [f"{self._label}: iteration {done}/{self._iterations}", f"loss {loss}", f"{step:.3f} s/step"]
        if self._evaluated:
            parts.append(f"validation loss {shown(self._evaluated.get('loss'))}")
        if final:
            parts.append(f"{seconds:.0f} s in all")
        elif done < self._iterations:
            parts.append(f"{(self._iterations - done) * step:.0f} s left")
        else:
            parts.append("finishing")  # it may evaluate, save, or only end
        return "  ".join(parts)


def shown(loss: float | None) -> str:
    """A loss of `metrics.jsonl`, where one that is not finite is null."""
    return "not finite" if loss is None else f"{loss:.4f}"
