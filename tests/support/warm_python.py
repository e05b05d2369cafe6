"""Python processes that begin with their imports done: forked from one that did them once.

Importing Megatron-Bridge takes twice as long as training the tiny model for six iterations. What runs in such a process
is the same script with the same arguments, environment, streams and end; that it computes the same is a test.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

PATIENCE = 300.0  # seconds that the server may take to fork; before the first time it imports


class WarmPython:
    """`WarmPython("import numpy", environment).run(["script.py", "--flag"])`, as `subprocess.run` with captured text.

    `imports` runs once, in the server; what reads the environment while it is imported has read the server's.
    """

    def __init__(self, imports: str, environment: Mapping[str, str]) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind("")  # a name that Linux chooses, in no file system
        self._address = self._listener.getsockname()
        self._listener.listen(16)
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(self._listener.fileno()), imports],
            env=dict(environment), stdin=subprocess.PIPE, pass_fds=[self._listener.fileno()], start_new_session=True,
        )  # fmt: skip
        self._listener.close()

    def close(self) -> None:
        """End the server; no process of its is left that `run` waited for."""
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """A script, or "-c" and code, with its arguments; its standard input is empty.

        Raises:
            subprocess.TimeoutExpired: it took longer, and was killed.
            RuntimeError: the server has ended, or does not answer.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors, open(os.devnull) as nothing:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
                server.settimeout(PATIENCE)
                try:
                    server.connect(self._address)
                    asked = json.dumps({"words": list(words), "environment": dict(environment), "folder": os.getcwd()})
                    socket.send_fds(server, [b"x"], [each.fileno() for each in (nothing, out, errors)])
                    server.sendall(asked.encode())
                    server.shutdown(socket.SHUT_WR)
                    answers = server.makefile()
                    child = int(answers.readline())
                except (OSError, ValueError) as error:
                    code = self._server.poll()
                    state = "still runs" if code is None else f"has ended with {code}"
                    raise RuntimeError(
                        f"no process for {list(words)} within {PATIENCE:g} s: the Python that forks them {state}"
                    ) from error
                server.settimeout(timeout)
                try:
                    code = int(answers.readline())
                except TimeoutError:
                    os.kill(child, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(list(words), timeout) from None
            said = []
            for stream in (out, errors):
                stream.seek(0)
                said.append(stream.read().decode(errors="replace"))
        return subprocess.CompletedProcess(list(words), code, *said)


def _serve(listener: socket.socket) -> list[str]:
    """Fork for each request, until standard input ends; returns in the forked processes alone, with their words."""
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        # Between the server and the process stands one that waits for it, so that the server waits for nobody.
        if first := os.fork():
            connection.close()
            os.waitpid(first, 0)
        elif os.fork():
            os._exit(0)
        else:
            listener.close()
            return _begin(connection)


def _begin(connection: socket.socket) -> list[str]:
    """Fork once more: one process tells its end, in the other this returns."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    asked = json.loads(connection.makefile().read())
    if child := os.fork():
        connection.sendall(f"{child}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError):  # it was given up
            connection.sendall(f"{status}\n".encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    return asked["words"]


def _become(words: list[str]) -> None:
    """Run as `python` would run these words."""
    if words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    exec(sys.argv[2], {})
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
