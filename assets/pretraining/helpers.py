"""The processes that help training: data loaders, checkpoint writers, and the one that collects what those wrote."""

from __future__ import annotations

import multiprocessing.util
import os
import signal
from typing import Any


def outlive_sigterm() -> None:
    """Block SIGTERM in every helper started from here on: training ends them, or SIGKILL does.

    Slurm signals all processes of a job step, and a run without its helpers cannot save before it ends. A signal mask
    survives exec, as `multiprocessing.resource_tracker`, which does the same for itself, relies on.
    """
    os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}))
    spawn = multiprocessing.util.spawnv_passfds

    def spawn_deaf(*arguments: Any) -> int:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return spawn(*arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    multiprocessing.util.spawnv_passfds = spawn_deaf
