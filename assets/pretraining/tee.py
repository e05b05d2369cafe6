"""Everything a process prints, C++ and all, goes to a log as well as to where it went before.

The copying is done by a forked child and not by a thread: it still has the pipe when the process is killed, so the
last words of a crash reach the log. It leaves interrupts to its parent and ends when the pipe does.
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
    """Flush, close this process's end of the pipe, and wait until the child has written everything."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def _copy(source: int, log: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    targets = {log, 1}
    while True:
        chunk = os.read(source, 1 << 16)
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
