"""The last iterations of a training under PyTorch's profiler: `trace.json.gz` in the run folder, for a trace viewer.

Megatron-Bridge has a profiler of its own (`ProfilingConfig.use_pytorch_profiler`), which is not used (read in 0.3.1,
0.4.0, 0.4.2, 0.5.1 and 0.6.2): it needs TensorBoard's folder, without which 0.3 fails and later ones write below a
folder called None; it leaves the trace elsewhere in 0.3 than from 0.4 on; and 0.3 always records the Python stack of
every operator, which changes the times that it is to show.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron.bridge.training.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, schedule

from pretraining.record import run_folder

if TYPE_CHECKING:
    from megatron.bridge.training.callbacks import CallbackContext

    from pretraining.request.settings import Settings


class Profiler(Callback):
    """Records operators, and on a GPU kernels, of this process. In the trace each iteration is a `ProfilerStep#n`.

    Call its methods after telemetry's: the device is then synchronised at the end of every step, so that no kernel of
    one lies in the next, and writing the trace is in no step time.
    """

    def __init__(self, settings: Settings, run_dir: Path, *, on_gpu: bool) -> None:
        self._first, self._last = settings.watched
        self._trace = run_dir / run_folder.TRACE
        self._activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        self._profile: profile | None = None

    def on_train_step_start(self, context: CallbackContext) -> None:
        """Begin with the iteration before the first one that is kept, because the profiler itself warms up."""
        iteration = context.state.train_state.step + 1
        if self._profile is not None:
            self._profile.step()
        elif iteration >= self._first - 1:
            kept = schedule(wait=0, warmup=1, active=self._last - iteration, repeat=1)
            self._profile = profile(activities=self._activities, schedule=kept, on_trace_ready=self._write)
            self._profile.start()

    def on_train_step_end(self, context: CallbackContext) -> None:
        """End with the last iteration, which writes the trace. Raises OSError where it cannot be written."""
        if self._profile is not None and context.state.train_state.step + 1 == self._last:
            self._profile.stop()

    def _write(self, recorded: profile) -> None:
        beside = self._trace.with_name(f".{self._trace.name}")  # its ending makes it compressed
        recorded.export_chrome_trace(str(beside))
        beside.replace(self._trace)
