"""Start a training, watch it, and see its end: the launcher only reads what training writes."""

import collections
import contextlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from playbook.common.failures import Failure
from playbook.launch.progress import Progress
from pretraining.record import ends, files, run_folder
from pretraining.record.run_folder import Verdict

POLL_SECONDS = 0.25
LAST_WORDS = 200
_KILLED_RANK = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: -9\b")
_OWN = "pretrain_llama.py: "  # how the training script's own last words begin


@dataclass(frozen=True)
class End:
    """How what was started ended; verdict and cause only where the runtime alone knows, as of a kill."""

    code: int  # its exit code; negative for a signal, where the system says so
    verdict: Verdict | None = None
    cause: str = ""


class NotStarted(Failure):
    """A training could not be started. Nothing of it is left."""


class Started(Protocol):
    """A training under way, wherever it runs."""

    grace_seconds: float

    def lines(self) -> Iterator[bytes]:
        """What it prints, as it comes, until it ends."""

    def poll(self) -> End | None:
        """How it ended, None while it runs. Never blocks for long."""

    def interrupt(self) -> None:
        """Ask it to end with a record, as Ctrl-C does."""

    def kill(self) -> None:
        """End it now, and return when it has."""

    def close(self, *, recorded: bool) -> None:
        """Leave nothing behind, now that its end is in the run folder (or, not `recorded`, could not be written)."""


def launch(start: Callable[[], Started], folder: Path, progress: Progress) -> run_folder.Run:
    """Run a training to its end and return its record, without its metrics and samples.

    `start`, failing, leaves nothing behind; the run folder exists. Raises KeyboardInterrupt after the training was
    stopped and its record is whole.
    """
    last_words: collections.deque[str] = collections.deque(maxlen=LAST_WORDS)
    started: Started | None = None
    end: End | None = None
    recorded = False
    with _interruptions() as interruptions:
        try:
            started = start()
            reader = threading.Thread(target=_drain, args=(started, last_words), daemon=True)
            reader.start()
            while (end := started.poll()) is None and not interruptions:
                progress.update()
                time.sleep(POLL_SECONDS)
            stopped = end is None
            if stopped:
                progress.say(f"stopping ... (at most {started.grace_seconds:.0f} s; Ctrl-C again: at once)")
                end = end_now(started, lambda: len(interruptions) > 1)
            else:
                reader.join(timeout=5)
            recorded = see_the_end(folder, end, last_words, interrupted=stopped)
        except NotStarted as error:
            end = End(1, Verdict.FAILED, str(error))
            recorded = see_the_end(folder, end)
        except Exception as error:  # the launcher's own, for which training must not lose its end
            if started and end is None:
                end_now(started, lambda: bool(interruptions))
            recorded = see_the_end(folder, End(1, Verdict.FAILED, f"the launcher failed: {error!r}"), last_words)
            raise
        finally:
            if started:
                started.close(recorded=recorded)
            progress.close()
    if recorded:
        files.sweep(folder)
    ended = _read(folder, end, recorded)
    if interruptions:
        raise KeyboardInterrupt(ended.outcome.get("cause", ""))
    if end.cause and end.cause != ended.outcome.get("cause"):  # training wrote its own; this says why it came to that
        print(end.cause, file=sys.stderr)
    return ended


def _read(folder: Path, end: End, recorded: bool) -> run_folder.Run:
    """The record, and a word on what keeps it from being whole."""
    if not folder.is_dir():
        cause = f"the run folder {folder} was removed while it trained, and its record with it"
        return run_folder.Run(folder, outcome={"cause": cause, "exit_code": 1})
    if not recorded and end.verdict is not Verdict.INCOMPLETE:
        print(f"how the run ended could not be written into {folder}: is the disk full?", file=sys.stderr)
    return run_folder.read_facts(folder)


def _drain(started: Started, last_words: collections.deque[str]) -> None:
    """Keep the output flowing. train.log has all of it; these lines matter if training dies before it opens that."""
    for line in started.lines():
        last_words.append(line.decode("utf-8", errors="replace").rstrip())


@contextlib.contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Collects Ctrl-C, SIGTERM and a closed terminal, and raises nothing: no call, as a start, is left half done."""
    seen: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: seen.append(number)) for number in numbers}
    try:
        yield seen
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def end_now(started: Started, at_once: Callable[[], bool] = lambda: False) -> End:
    """Interrupt, wait unless `at_once` says not to, then kill what is left."""
    started.interrupt()
    deadline = time.monotonic() + started.grace_seconds
    while (end := started.poll()) is None and time.monotonic() < deadline and not at_once():
        time.sleep(0.05)
    started.kill()
    return end or started.poll() or End(130)


def see_the_end(
    folder: Path, end: End, last_words: collections.deque[str] | list[str] = (), *, interrupted: bool = False
) -> bool:
    """Write the outcome that training could not: it was killed, or ended before it had a folder to write to.

    Returns whether the folder now holds an outcome, whoever wrote it: not where the disk is full, and the run stays
    incomplete. `last_words` is what it printed last; `interrupted`: because the launcher stopped it.
    """
    if (folder / run_folder.OUTCOME).exists():
        return True
    if end.verdict is Verdict.INCOMPLETE:
        return False
    last_words = list(last_words)  # at once: its reader may still add to it
    said = [line for line in last_words if re.search(r"\w", line)]
    code = end.code
    if interrupted:
        verdict, cause, code = Verdict.INTERRUPTED, "interrupted and stopped by the launcher", 130
    elif end.verdict is not None:
        verdict, cause = end.verdict, end.cause
    elif memory := [line for line in said if "CUDA out of memory" in line]:
        verdict, cause = Verdict.OUT_OF_MEMORY, f"{memory[-1]} Lower MBS or SEQ, or take a smaller MODEL"
    elif ends.by_signal(signal.SIGKILL) in map(ends.signalled, said):  # torch.distributed.run itself ends with 1
        rank = _KILLED_RANK.search(" ".join(said))
        which = f"the training process of rank {rank[1]}" if rank else "a training process"
        killed = ends.by_signal(signal.SIGKILL)
        verdict, cause = killed.verdict, f"{which} was killed (SIGKILL): {killed.remedy}"
    else:
        when = "" if (folder / run_folder.METRICS).exists() else " before it began"
        # A refusal comes before there is a log, and torch's own report after it. Of a training under way, other ranks'
        # words are no cause: torch's report says which one died.
        began = (folder / run_folder.LOG).exists()
        own = [] if began else [line.removeprefix(_OWN) for line in said if line.startswith(_OWN)]
        words = own[-1] if own else said[-1] if said else "it said nothing"
        verdict, cause = Verdict.FAILED, f"training ended with exit code {code}{when}: {words}"
    try:
        if said and not (folder / run_folder.LOG).exists():  # it never came to open its log: these are its only words
            (folder / run_folder.LOG).write_text("\n".join([*last_words, ""]), encoding="utf-8")
        run_folder.write_outcome(folder, verdict, cause=cause, exit_code=code)
    except OSError:
        return False
    return True
