"""A job that is one command on this terminal, and not a watched training."""

from __future__ import annotations

import signal
import subprocess


def run(command: list[str]) -> int:
    """Run it on this terminal, from where Ctrl-C reaches it; this process only waits. Returns the exit code."""
    with subprocess.Popen(command) as process:
        meanwhile = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: lambda *_: process.terminate()}
        before = {number: signal.signal(number, handler) for number, handler in meanwhile.items()}
        code = process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
