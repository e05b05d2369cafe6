"""Which process is slow: each one's own part of a step, compared when training ends.

Ranks wait for one another in every step, so their whole step times are equal. Their own part is what comes before the
gradients are reduced over the data-parallel ranks: forward and backward. It holds waiting for tensor- and
pipeline-parallel partners, so within one copy of the model a slow rank shows in all of them. Pipeline stages have
unlike work: a rank is compared with those of its own stage.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from megatron.bridge.training.callbacks import CallbackContext

NOTABLE = 0.05
SKIPPED = 2  # the first steps compile and warm up


class OwnTime:
    """Times the forward and backward pass of every step of this process, without a synchronisation of its own."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._began: Any = None
        self._computed: Any = None

    def watch(self, context: CallbackContext) -> None:
        """Hook the call that Megatron's schedules make when the gradients are computed."""
        from megatron.core.utils import get_model_config

        config = get_model_config(context.model[0])
        finalize = config.finalize_model_grads_func
        if finalize is None:
            return

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._computed = _now()
            return finalize(*args, **kwargs)

        config.finalize_model_grads_func = timed

    def begin(self) -> None:
        """A step begins."""
        self._began, self._computed = _now(), None

    def end(self) -> None:
        """A step has ended, and the device is synchronised."""
        if self._computed is not None:
            self._seconds.append(_between(self._began, self._computed))

    def slowest(self) -> dict[str, Any] | None:
        """The slowest rank where it is more than 5 % over the median of its stage; every rank must ask.

        Returns:
            `rank`, `host`, `local_rank`, `stage`, `own_s` (its median, seconds a step) and
            `over_median` (0.12 is 12 %).
        """
        from megatron.core import parallel_state

        settled = self._seconds[SKIPPED:]
        processes = torch.distributed.get_world_size()
        if processes == 1:
            return None
        mine = {
            "rank": torch.distributed.get_rank(),
            "host": socket.gethostname(),
            "local_rank": int(os.environ.get("LOCAL_RANK", 0)),
            "stage": parallel_state.get_pipeline_model_parallel_rank(),
            "own_s": statistics.median(settled) if settled else None,
        }
        ranks: list[Any] = [None] * processes
        torch.distributed.all_gather_object(ranks, mine)
        return slowest_of(ranks)


def slowest_of(ranks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """See `OwnTime.slowest`."""
    over = []
    for rank in ranks:
        alike = [other["own_s"] for other in ranks if other["stage"] == rank["stage"] and other["own_s"]]
        if rank["own_s"] and len(alike) > 1:  # of two, the faster is the middle
            over.append((rank["own_s"] / statistics.median_low(alike) - 1, rank))
    if not over:
        return None
    share, worst = max(over, key=lambda each: each[0])
    return {**worst, "own_s": round(worst["own_s"], 6), "over_median": round(share, 4)} if share > NOTABLE else None


def _now() -> Any:
    """A moment of the device's work: an event on a GPU, the clock where the CPU computes."""
    if not _on_gpu():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first: Any, second: Any) -> float:
    """Seconds."""
    return second - first if isinstance(first, float) else first.elapsed_time(second) / 1e3


def _on_gpu() -> bool:
    return torch.distributed.get_backend() != "gloo"
