"""Start a training, watch it, and see its end: the launcher only reads what training writes."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from playbook.progress import Progress
from pretraining import record
from pretraining.record import Verdict

GRACE_SECONDS = 3.0  # from Ctrl-C to SIGKILL: with the poll below, everything is over within 5 s
POLL_SECONDS = 0.25


def launch(command: list[str], environment: dict[str, str], folder: Path, progress: Progress) -> record.Run:
    """Run a training to its end and return its record.

    It gets a process group of its own, so that Ctrl-C reaches the launcher alone, which then passes it on once.

    Args:
        command, environment: from the plan.
        folder: the run folder, which exists.
        progress: shows what happens.

    Raises:
        KeyboardInterrupt: after the training was stopped and its record is whole.
    """
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    last_words: collections.deque[str] = collections.deque(maxlen=40)
    reader = threading.Thread(target=_drain, args=(process, last_words), daemon=True)
    reader.start()
    try:
        with _sigterm_as_interrupt():
            while process.poll() is None:
                progress.update()
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        progress.say("stopping ...")
        _stop(process)
        _see_the_end(folder, process.returncode, last_words, interrupted=True)
        raise
    finally:
        progress.close()
    reader.join(timeout=5)
    _see_the_end(folder, process.returncode, last_words, interrupted=False)
    return record.read_run(folder)


def _drain(process: subprocess.Popen[bytes], last_words: collections.deque[str]) -> None:
    """Keep the pipe empty. train.log has everything; these lines matter only if training dies before it opens it."""
    assert process.stdout is not None
    for line in process.stdout:
        last_words.append(line.decode("utf-8", errors="replace").rstrip())


@contextlib.contextmanager
def _sigterm_as_interrupt():
    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt the whole process group, wait, then kill what is left. A second Ctrl-C kills at once."""
    with contextlib.suppress(KeyboardInterrupt):
        _signal(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _see_the_end(folder: Path, code: int, last_words: collections.deque[str], *, interrupted: bool) -> None:
    """Write the outcome that training could not: it was killed, or ended before it had a folder to write to."""
    if (folder / record.OUTCOME).exists():
        return
    if interrupted:
        verdict, cause, code = Verdict.INTERRUPTED, "interrupted and stopped by the launcher", 130
    elif code < 0:
        name = signal.Signals(-code).name
        hint = ": if nobody sent it, the kernel ran out of memory (`dmesg | tail` says so)" if code == -9 else ""
        verdict, cause = Verdict.KILLED, f"training was ended by {name}{hint}"
    else:
        said = [line for line in last_words if line.strip()]
        words = said[-1] if said else "it said nothing"
        verdict, cause = Verdict.FAILED, f"training ended with exit code {code} before it began: {words}"
    with contextlib.suppress(OSError):  # a full disk: the folder stays without an outcome, which is incomplete
        record.write_outcome(folder, verdict, cause=cause, exit_code=code)
