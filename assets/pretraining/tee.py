"""Everything a process prints, C++ and all, goes to a log as well as to where it went before.

The copying is done by a forked child and not by a thread: it still has the pipe when the process is killed, so the
last words of a crash reach the log. It leaves interrupts to its parent and ends when the pipe does, or when told to:
checkpoint workers inherit the pipe and can outlive the training.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path


def tee(log: Path) -> int:
    """Start copying this process's stdout and stderr to `log` too. Call before threads exist (before torch).

    Returns:
        The child's process id; `finish` waits for it.
    """
    read_end, write_end = os.pipe()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    child = os.fork()
    if child == 0:
        os.close(write_end)
        _copy(read_end, target)
        os._exit(0)
    os.close(read_end)
    os.close(target)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(write_end, 1)
    os.dup2(write_end, 2)
    os.close(write_end)
    sys.stdout.reconfigure(line_buffering=True)
    return child


def finish(child: int) -> None:
    """Flush, tell the child to stop at the end of what was written, and wait until it has."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        os.kill(child, signal.SIGUSR1)
        os.waitpid(child, 0)


def _copy(source: int, log: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: os.set_blocking(source, False))  # an empty pipe then raises
    targets = {log, 1}
    while True:
        try:
            chunk = os.read(source, 1 << 16)
        except BlockingIOError:
            return
        if not chunk:
            return
        for target in tuple(targets):
            try:
                _write_all(target, chunk)
            except OSError:  # a full disk, or a reader that went away: the other target still gets everything
                targets.discard(target)


def _write_all(target: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(target, view) :]
