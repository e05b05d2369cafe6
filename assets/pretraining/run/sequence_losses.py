"""`sequences.jsonl`: the loss of every sequence of an evaluation, so that two checkpoints can be paired by sequence."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron.bridge.training.callbacks import Callback
from megatron.core import parallel_state

from pretraining.megatron import compat
from pretraining.record import run_folder


class SequenceLosses(Callback):
    """Writes them as they come, each replica those that it evaluates.

    Where a sequence is shared out (context parallel) no process has its loss, and nothing is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._split = ""
        self._writer: run_folder.MetricsWriter | None = None

    def on_eval_start(self, _context: Any) -> None:
        self._split = "validation"

    def on_test_start(self, _context: Any) -> None:
        self._split = "test"

    def forward_step(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        """`usual`, a forward step, which also writes."""

        @functools.wraps(usual)
        def forward_step(state: Any, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
            seen = _Seen(data_iterator)
            output, loss = usual(state, seen, model, return_schedule_plan)
            return output, functools.partial(self._write, loss, seen.batch)

        return forward_step

    def _write(self, loss: functools.partial, batch: dict[str, Any], output: Any) -> Any:
        if (mask := compat.loss_mask(loss)) is not None and _is_whole_here():
            mask = mask.float()
            counts, sums = mask.sum(1).tolist(), (output.float().view_as(mask) * mask).sum(1).tolist()
            if self._writer is None:
                replica = parallel_state.get_data_parallel_rank()
                self._writer = run_folder.MetricsWriter(self._folder / run_folder.sequences_of(replica))
            for tokens, total, count in zip(batch["tokens"], sums, counts, strict=True):
                name = hashlib.blake2b(tokens.cpu().numpy().tobytes(), digest_size=8).hexdigest()
                each = {"split": self._split, "sequence": name, "loss": total / count if count else None}
                self._writer.write({**each, "tokens": round(count)})
        return loss(output)


class _Seen:
    """An iterator that keeps its last batch."""

    def __init__(self, iterator: Iterator[dict[str, Any]]) -> None:
        self._iterator = iterator
        self.batch: dict[str, Any] = {}

    def __iter__(self) -> _Seen:
        return self

    def __next__(self) -> dict[str, Any]:
        self.batch = next(self._iterator)
        return self.batch


def _is_whole_here() -> bool:
    """Whether this process is the one of its replica that writes; the loss is the last pipeline stage's."""
    return (
        parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.get_context_parallel_world_size() == 1
    )
