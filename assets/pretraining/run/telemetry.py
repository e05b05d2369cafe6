"""The Megatron-Bridge callback that writes the record as the run goes.

Megatron prints times to 10 ms and has no structured metrics file; the callback has each step's start and end.
Only one process writes: the one that has the loss (the last pipeline stage's first rank).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from megatron.bridge.training.callbacks import Callback
from megatron.core.num_microbatches_calculator import get_current_global_batch_size

from pretraining.errors import FULL_DISK, Diverged
from pretraining.record import run_folder
from pretraining.record.run_folder import Peak
from pretraining.run import stragglers

if TYPE_CHECKING:
    from megatron.bridge.training.callbacks import CallbackContext


class Telemetry(Callback):
    """Writes `metrics.jsonl` while training and keeps what the outcome needs.

    Args:
        run_dir: the run folder.
        on_start: called on every process with the training context, when model and optimizer exist.
        on_end: called on every process when the last iteration is over.
        on_full: called when the disk takes no line; where it answers True, training saves and ends by itself.
    """

    def __init__(
        self,
        run_dir: Path,
        on_start: Callable[[CallbackContext], None],
        on_end: Callable[[], None],
        on_full: Callable[[OSError], bool],
    ) -> None:
        self._run_dir = run_dir
        self._on_start, self._on_end, self._on_full = on_start, on_end, on_full
        self._writer: run_folder.MetricsWriter | None = None
        self._learning_rate: float | None = None
        self._began = 0.0
        self._own = stragglers.OwnTime()
        self.iterations = 0  # completed, counted from the start of training and not of this process
        self.peaks: dict[Peak, int] = {}  # the largest of all processes in bytes; filled in when training ends
        self.slowest_rank: dict[str, Any] | None = None  # see `stragglers.OwnTime.slowest`; filled in when it ends

    def on_train_start(self, context: CallbackContext) -> None:
        self.iterations = context.state.train_state.step
        if _has_loss():
            self._writer = run_folder.MetricsWriter(self._run_dir / run_folder.METRICS)
        self._on_start(context)
        self._own.watch(context)

    def on_train_step_start(self, context: CallbackContext) -> None:
        """Start the clock of one step, and read its learning rate: at its end the scheduler has set the next one's."""
        if self._writer is not None:
            self._learning_rate = context.optimizer.param_groups[0]["lr"] if context.optimizer else None
        self._began = time.perf_counter()
        self._own.begin()

    def on_train_step_end(self, context: CallbackContext) -> None:
        """Write one iteration.

        Raises:
            Diverged: the loss is not finite. An exception here ends the training, which is what it is for.
            OSError: the record cannot be written, and no checkpoint either: the disk is full, or the folder is gone.
        """
        torch.cuda.synchronize()  # the one synchronisation a step: kernels are still running when the call returns
        step_time = time.perf_counter() - self._began
        self._own.end()
        self.iterations = context.state.train_state.step + 1  # the counter moves after this callback
        if self._writer is None:
            return
        loss = _number((context.loss_dict or {}).get("lm loss"))
        finite = loss is None or math.isfinite(loss)
        self._write(
            kind="train",
            iteration=self.iterations,
            loss=_finite(loss),
            step_time_s=round(step_time, 6),
            grad_norm=_finite(_number(context.grad_norm)),
            learning_rate=self._learning_rate,
            global_batch_size=get_current_global_batch_size(),  # which grows with `rampup_batch_size`
            skipped=bool(context.skipped_iter),
            finite=finite,
        )
        if not finite:
            raise Diverged(f"the loss is {loss} at iteration {self.iterations}")

    def on_train_end(self, context: CallbackContext) -> None:
        """Read the peaks while the process still has its device; the optimizer's state is among them."""
        self._on_end()
        self.peaks = _largest_of_all(peaks())
        self.slowest_rank = self._own.slowest()
        if self.slowest_rank and torch.distributed.get_rank() == 0:
            print(f"pretrain_llama.py: {run_folder.slowest_rank_sentence(self.slowest_rank)}", flush=True)

    def on_eval_end(self, context: CallbackContext) -> None:
        self._write_evaluation("validation", context)

    def on_test_end(self, context: CallbackContext) -> None:
        self._write_evaluation("test", context)

    def _write_evaluation(self, split: str, context: CallbackContext) -> None:
        loss = _number((context.total_loss_dict or {}).get("lm loss"))
        if self._writer is not None and loss is not None:
            self._write(kind="eval", split=split, iteration=context.state.train_state.step, loss=_finite(loss))

    def _write(self, **line: Any) -> None:
        try:
            self._writer.write({**line, "time": round(time.time(), 3)})
        except OSError as error:
            if error.errno not in FULL_DISK or not self._on_full(error):
                raise


def peaks() -> dict[Peak, int]:
    """Peak memory of this process so far: the allocator's on a GPU, and the resident set."""
    found = {}
    if allocated := torch.cuda.max_memory_allocated():
        found = {Peak.ALLOCATED: allocated, Peak.RESERVED: torch.cuda.max_memory_reserved()}
    # Not ru_maxrss: Linux carries that over from the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return found | {Peak.RESIDENT: int(line.split()[1]) * 1024}
    raise OSError("/proc/self/status has no VmHWM line")


def _largest_of_all(found: dict[Peak, int]) -> dict[Peak, int]:
    """The largest of each figure over all processes, because the largest is what must fit."""
    if torch.distributed.get_world_size() == 1:
        return found
    values = torch.tensor(list(found.values()), dtype=torch.int64, device=torch.cuda.current_device())
    torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    return dict(zip(found, values.tolist(), strict=True))


def _has_loss() -> bool:
    from megatron.core import parallel_state

    return (
        parallel_state.is_pipeline_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    )


def _number(value: Any) -> float | None:
    """Read once: of a tensor on a GPU each reading waits for it."""
    return None if value is None else float(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
