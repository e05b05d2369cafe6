"""What a signal does to a run that keeps checkpoints, which saves first, and to the processes that help training.

Between the first iteration and the last, SIGTERM and the first Ctrl-C let the iteration finish, and Megatron-Bridge
saves and ends the process on all ranks together (its `exit_signal_handler`). A second Ctrl-C ends at once, as any
signal does before and after. The launcher imports this for its constants: what is heavy is imported late.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron.bridge.training.callbacks import CallbackContext

# A launcher gives a run that saves this long, and torch.distributed.run where it can be told (PyTorch 2.12; before, it
# kills after 30 s). 105 GB, a checkpoint of an 8B model, at 350 MB/s.
GRACE_SECONDS = 300
GRACE_VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
SAME_KEY_SECONDS = 1.0  # a terminal and torch.distributed.run both pass one Ctrl-C on


class SaveFirst:
    """What a signal does while the training loop runs."""

    def __init__(self) -> None:
        self.active = False  # from the first iteration until `end`
        self.signal = ""  # the name of the one that came, "" where it came to another process
        self.problem: OSError | None = None  # why the run cannot go on, where that is what ends it
        self._flag: Callable[[int, FrameType | None], object] = lambda *_: None
        self._came = 0.0
        self._at_once: Callable[[int, FrameType | None], object] = signal.default_int_handler

    def begin(self, context: CallbackContext) -> None:
        """Take the signals over; call when the model and its checkpoint are loaded."""
        from pretraining.megatron import compat

        at_once = signal.getsignal(signal.SIGINT)
        if callable(at_once):
            self._at_once = at_once
        compat.end_on_sigterm(context.state)  # from here: it would make the start-up deaf to signals
        if callable(flag := signal.getsignal(signal.SIGTERM)):
            self._flag = flag

        def save_first(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if number == signal.SIGINT and self.signal == "SIGINT" and now - self._came > SAME_KEY_SECONDS:
                self._at_once(number, frame)
            if not self.signal:
                self.signal, self._came = signal.Signals(number).name, now
                # Not print: a signal may come while the main thread holds its lock.
                os.write(2, b"saving a checkpoint, then ending; Ctrl-C again ends at once\n")
            self._flag(signal.SIGTERM, frame)

        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, save_first)
        self.active = True

    def instead_of_raising(self, problem: OSError) -> bool:
        """Save and end, as on a signal, because of a problem. Returns whether that will be: not outside the loop."""
        if self.active and self.problem is None:
            self.problem = problem
            print(f"pretrain_llama.py: {problem}: saving a checkpoint, then ending", file=sys.stderr, flush=True)
            self._flag(signal.SIGTERM, None)
        return self.active

    def end(self) -> None:
        """Give the signals back: the loop is over."""
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._at_once)
        self.active = False


_DEAF_TO = {signal.SIGTERM, signal.SIGINT}


def outlive_signals() -> None:
    """Block SIGTERM and SIGINT in every helper started from here on: training ends them, by SIGKILL.

    Slurm, a terminal and torch.distributed.run signal all processes of a run, and a run without its helpers cannot save
    before it ends. A signal mask survives exec, as `multiprocessing.resource_tracker`, which does the same for itself,
    relies on. `Process.terminate`, with which pools and data loaders end theirs, sends SIGTERM, so it becomes `kill`.
    """
    import multiprocessing.popen_fork
    import multiprocessing.util

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
