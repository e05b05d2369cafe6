"""The processes that help training: data loaders, checkpoint writers, and the one that collects what those wrote."""

from __future__ import annotations

import multiprocessing.popen_fork
import multiprocessing.util
import os
import signal
from typing import Any

_DEAF_TO = {signal.SIGTERM, signal.SIGINT}


def outlive_signals() -> None:
    """Block SIGTERM and SIGINT in every helper started from here on: training ends them, by SIGKILL.

    Slurm, a terminal and torch.distributed.run signal all processes of a run, and a run without its helpers cannot save
    before it ends. A signal mask survives exec, as `multiprocessing.resource_tracker`, which does the same for itself,
    relies on. `Process.terminate`, with which pools and data loaders end theirs, sends SIGTERM, so it becomes `kill`.
    """
    os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF_TO))
    multiprocessing.popen_fork.Popen.terminate = multiprocessing.popen_fork.Popen.kill  # spawn's inherits it
    spawn = multiprocessing.util.spawnv_passfds

    def spawn_deaf(*arguments: Any) -> int:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF_TO)
        try:
            return spawn(*arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    multiprocessing.util.spawnv_passfds = spawn_deaf
