"""Everything a process prints, C++ and all, goes to a log as well as to where it went before.

The copying is done by a forked child and not by a thread: it still has the pipe when the process is killed, so the
last words of a crash reach the log. It leaves interrupts to its parent and ends when the pipe does, or when told to:
checkpoint workers inherit the pipe and can outlive the training. A reader that stops reading, as a pager does, stops
neither the log nor the training, nor its end on Ctrl-C: what it has not read waits in the child's memory.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Copier(NamedTuple):
    """The copying child, and the pipe that tells it to end."""

    process: int
    told: int


def tee(*logs: Path) -> Copier:
    """Start copying this process's stdout and stderr to `logs` too. Call before threads exist (before torch)."""
    read_end, write_end = os.pipe()
    told, tell = os.pipe()
    targets = [os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644) for log in logs]
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.close(tell)
        try:
            _copy(read_end, told, targets)
        except BaseException as error:  # which must not go on as a second training
            os.write(2, f"tee.py: output is copied no more: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    for end in (read_end, told, *targets):
        os.close(end)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(write_end, 1)
    os.dup2(write_end, 2)
    os.close(write_end)
    sys.stdout.reconfigure(line_buffering=True)
    return Copier(child, tell)


def finish(copier: Copier, seconds: float | None = None) -> None:
    """Flush, tell the child to stop at the end of what was written, and wait until it has.

    For `seconds` at most, where given; a child that still waits for its reader then goes on by itself.
    """
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    with contextlib.suppress(ChildProcessError, BrokenPipeError):
        os.write(copier.told, b"end")
        deadline = time.monotonic() + (math.inf if seconds is None else seconds)
        while os.waitpid(copier.process, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.02)


def _copy(source: int, told: int, logs: list[int]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    targets = set(logs)
    unread: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    teller = threading.Thread(target=_tell, args=(unread,), daemon=True)
    teller.start()
    for chunk in _chunks(source, told):
        for target in tuple(targets):
            try:
                _write_all(target, chunk)
            except OSError:  # a full disk: the others still get everything
                targets.discard(target)
        if teller.is_alive():
            unread.put(chunk)
    unread.put(b"")
    teller.join()


def _chunks(source: int, told: int) -> Iterator[bytes]:
    """What comes through the pipe, until it ends or is empty after somebody said so."""
    watched = {source, told}
    while True:
        if told in watched and told in select.select(watched, [], [])[0]:
            watched.discard(told)
            if os.read(told, 1):  # else the process was killed: its children may still write, until the pipe ends
                os.set_blocking(source, False)  # an empty pipe then raises
        chunk = b""
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(source, 1 << 16)
        if not chunk:
            return
        yield chunk


def _tell(unread: queue.SimpleQueue[bytes]) -> None:
    """Pass on to stdout, however long its reader takes, until there is no more or nobody reads."""
    with contextlib.suppress(OSError):
        while chunk := unread.get():
            _write_all(1, chunk)


def _write_all(target: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(target, view) :]
