"""Which process is slow: what each one needs for its own work, compared when training ends.

Ranks wait for one another in every step, so their whole step times are equal. Two parts of a step tell them apart:

- core attention, which waits for nobody (unless the sequence is split) and is the same work on every tensor rank of
  every pipeline stage, so that all ranks are compared. It shows a slow device, and not a slow loader.
- forward and backward, which come before the gradients are reduced over the copies of the model. They show all that
  makes a rank late, and hold waiting for those that share a copy with it: copies are compared, each pipeline stage with
  the same stage of the others, because stages have unlike work.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from megatron.bridge.training.callbacks import CallbackContext

NOTABLE = 0.05
SKIPPED = 2  # the first steps compile and warm up
ENOUGH = 16  # steps to compare attention by; of fewer, a busy machine may have disturbed most

ATTENTION, COMPUTATION = "attention", "computation"


class AttentionTime:
    """Times the last layer's core attention in every step of this process, without a synchronisation of its own.

    The last layer, because early in a step the CPU may not be ahead of a GPU yet, and parameters are still gathered.
    Of a step's calls the shortest counts: other work on the same machine or device only makes one longer.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._calls: list[tuple[Any, Any]] | None = None  # None between steps, as in an evaluation
        self._entered: Any = None

    def watch(self, chunks: list[torch.nn.Module], config: Any) -> None:
        """Hook the module of that name; a stage of another architecture may have none.

        Nothing is timed where the sequence is split, because attention then waits for the others, nor where layers
        differ in their attention; `config`, Megatron's TransformerConfig, says so.
        """
        unlike = ("window_attn_skip_freq", "heterogeneous_block_specs")
        if config.context_parallel_size > 1 or any(getattr(config, name, None) for name in unlike):
            return
        modules = [each for chunk in chunks for each in chunk.named_modules()]
        layers = [module for name, module in modules if name.rpartition(".")[2] == "core_attention"]
        if layers:
            layers[-1].register_forward_pre_hook(self._enter)
            layers[-1].register_forward_hook(self._leave)

    def begin(self) -> None:
        self._calls = []

    def end(self) -> None:
        """A step has ended, and the device is synchronised."""
        if self._calls:
            self._seconds.append(min(_between(*call) for call in self._calls))
        self._calls = None

    def settled(self) -> dict[str, float | None]:
        """The quartiles of the steps, in seconds a call; None of each where there are too few steps."""
        seconds = self._seconds[SKIPPED:]
        names = ("attention_low_s", "attention_s", "attention_high_s")
        quartiles = statistics.quantiles(seconds, method="inclusive") if len(seconds) >= ENOUGH else (None,) * 3
        return dict(zip(names, quartiles, strict=True))

    def _enter(self, *_: Any) -> None:
        if self._calls is not None:
            self._entered = _now()

    def _leave(self, *_: Any) -> None:
        if self._calls is not None and self._entered is not None and (left := _now()) is not None:
            self._calls.append((self._entered, left))


class OwnTime:
    """Times the forward and backward pass of every step of this process, and attention in it, likewise."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._attention = AttentionTime()
        self._began: Any = None
        self._computed: Any = None

    def watch(self, context: CallbackContext) -> None:
        """Hook attention, and the call that Megatron's schedules make when the gradients are computed."""
        from megatron.core.utils import get_model_config

        config = get_model_config(context.model[0])
        if torch.distributed.get_world_size() > 1:
            self._attention.watch(context.model, config)
        finalize = config.finalize_model_grads_func
        if finalize is None:
            return

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._computed = _now()
            return finalize(*args, **kwargs)

        config.finalize_model_grads_func = timed

    def begin(self) -> None:
        self._attention.begin()
        self._began, self._computed = _now(), None

    def end(self) -> None:
        """A step has ended, and the device is synchronised."""
        self._attention.end()
        if self._computed is not None:
            self._seconds.append(_between(self._began, self._computed))

    def slowest(self) -> dict[str, Any] | None:
        """The slowest rank where it is more than 5 % over the median of those like it; every rank must ask.

        Returns:
            `rank`, `host`, `local_rank`, `stage`, `own_s` (median of forward and backward, seconds a step),
            `over_median` (0.12 is 12 %) and the `measure` that this is of:
            `attention`: the rank itself is slow, by `attention_s` (seconds a call of its last layer's);
            `computation`: by `own_s`; `partners` are the ranks, if any, that wait for one another with it within a
            step, of which any may be the slow one.
        """
        settled = self._seconds[SKIPPED:]
        processes = torch.distributed.get_world_size()
        if processes == 1:
            return None
        mine = {
            "rank": torch.distributed.get_rank(),
            "host": socket.gethostname(),
            "local_rank": int(os.environ.get("LOCAL_RANK", 0)),
            **_place(),
            "own_s": statistics.median(settled) if settled else None,
            **self._attention.settled(),
        }
        ranks: list[Any] = [None] * processes
        torch.distributed.all_gather_object(ranks, mine)
        return slowest_of(ranks)


def slowest_of(ranks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """See `OwnTime.slowest`."""
    found = _slow_in_attention(ranks) or _in_a_slow_copy(ranks)
    if found is None:
        return None
    told = ("rank", "host", "local_rank", "stage", "own_s", "attention_s", "over_median", "measure", "partners")
    digits = {"own_s": 6, "attention_s": 9, "over_median": 4}
    values = {name: found[name] for name in told if found.get(name) is not None}
    return {name: round(value, digits[name]) if name in digits else value for name, value in values.items()}


def _slow_in_attention(ranks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The rank whose quick steps are slow for the others: its lower quartile against their upper one.

    Of ranks that are alike, chance moves the medians of such short times apart by more than is notable where the
    machine has other work; it also widens both ranges, which then overlap. On an idle device both are narrow.
    """
    known = [rank for rank in ranks if rank["attention_s"]]
    if len(known) < 2:
        return None
    worst = max(known, key=lambda rank: rank["attention_low_s"])
    others = [rank for rank in known if rank is not worst]
    if worst["attention_low_s"] / statistics.median(rank["attention_high_s"] for rank in others) - 1 <= NOTABLE:
        return None
    usual = statistics.median(rank["attention_s"] for rank in others)
    return {**worst, "over_median": worst["attention_s"] / usual - 1, "measure": ATTENTION}


def _in_a_slow_copy(ranks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The rank that computed longest in the copy of the model that takes longer than the others.

    Ranks of one copy are not compared: what differs between them is who waits where.
    """
    stages: dict[int, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for rank in ranks:
        if rank["own_s"]:
            stages[rank["stage"]][rank["copy"]].append(rank)
    over = []
    for copies in stages.values():
        times = [statistics.median_low(rank["own_s"] for rank in copy) for copy in copies.values()]
        usual = statistics.median_low(times)  # of two, the faster is the middle
        over += [(seconds / usual - 1, copy) for seconds, copy in zip(times, copies.values(), strict=True)]
    share, copy = max(over, key=lambda each: each[0], default=(0.0, []))
    if share <= NOTABLE:
        return None
    worst = max(copy, key=lambda rank: rank["own_s"])
    partners = [rank["rank"] for rank in ranks if rank["copy"] == worst["copy"] and rank is not worst]
    return {**worst, "over_median": share, "measure": COMPUTATION, "partners": partners or None}


def _place() -> dict[str, int]:
    """The pipeline `stage` of this rank, and which `copy` of the model it has a part of.

    Experts that are spread over several copies make one of them: all wait for all in each layer.
    """
    from megatron.core import parallel_state

    spread = parallel_state.get_expert_model_parallel_world_size() > 1
    return {
        "stage": parallel_state.get_pipeline_model_parallel_rank(),
        "copy": parallel_state.get_expert_data_parallel_rank() if spread else parallel_state.get_data_parallel_rank(),
    }


def _now() -> Any:
    """A moment of the device's work: an event on a GPU, the clock where the CPU computes.

    None while a CUDA graph is captured, whose events have no time.
    """
    if not _on_gpu():
        return time.perf_counter()
    if torch.cuda.is_current_stream_capturing():
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first: Any, second: Any) -> float:
    return second - first if isinstance(first, float) else first.elapsed_time(second) / 1e3


def _on_gpu() -> bool:
    return torch.distributed.get_backend() != "gloo"
