"""Printing to somebody who may go away: `make compare | head` trains on, and ends with its own exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class _Patient:
    """A text stream whose reader may go, or never was: what is left to say then goes nowhere, and raises nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._leave_if_gone(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._leave_if_gone(error)

    def _leave_if_gone(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):  # a pipe's reader, and a terminal
            raise error
        self.leave()

    def leave(self) -> None:
        """Send what is still in buffers, and what comes, nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # for children too
        os.close(nowhere)


@contextlib.contextmanager
def outlive_readers() -> Iterator[None]:
    """Let neither stdout nor stderr end the work when who reads them has gone. Other failures to write are raised."""
    nowhere = open(os.devnull, "w")  # noqa: SIM115  # stays open as long as the streams that it stands in for
    out, err = _Patient(sys.stdout or nowhere), _Patient(sys.stderr or nowhere)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            for stream in (out, err):
                try:
                    stream.flush()
                except OSError:  # a full disk, which was said already if it could be
                    stream.leave()
