"""The last iterations of a training in emulated NVFP4 under measurement: `sensitivity.json` in the run folder.

What is measured, and how: `numerics/quantization_error.py`. The training itself goes on as it would.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.bridge.training.callbacks import Callback
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model

from pretraining.megatron.linear_layers import linear_layers
from pretraining.numerics.quantization_error import Layer, Measurement, findings
from pretraining.record import run_folder
from pretraining.request.models import MOCK

if TYPE_CHECKING:
    from megatron.bridge.training.callbacks import CallbackContext
    from torch.nn import Module

    from pretraining.request.settings import Settings


class Sensitivity(Callback):
    """Measures the products of this process's layers; every process must have one."""

    def __init__(self, settings: Settings, run_dir: Path, *, on_gpu: bool) -> None:
        self._settings, self._folder, self._on_gpu = settings, run_dir, on_gpu
        self._first, self._last = settings.watched
        self._measurement = Measurement()
        self._undo: list[Callable[[], None]] = []

    def on_train_step_start(self, context: CallbackContext) -> None:
        """Have the layers show what they multiply, in the iterations that are measured."""
        if not self._measures(context):
            return
        watch = self._watch_on_gpu if self._on_gpu else self._watch_on_cpu
        for number, projection, module in linear_layers(unwrap_model(context.model)):
            layer = Layer(number, projection, module.weight.numel() * self._settings.tensor_parallel)
            self._measurement.layers.add(layer)
            self._undo += watch(layer, module)

    def on_train_step_end(self, context: CallbackContext) -> None:
        """Take the layers back; at the end of the last iteration gather and write what was found."""
        if not self._measures(context):
            return
        while self._undo:
            self._undo.pop()()
        self._measurement.end_step(_sum_over_replicas)
        if context.state.train_state.step + 1 == self._last:
            self._write()

    def _measures(self, context: CallbackContext) -> bool:
        return self._first <= context.state.train_state.step + 1 <= self._last

    def _watch_on_cpu(self, layer: Layer, module: Module) -> list[Callable[[], None]]:
        from pretraining.numerics import measured_layers

        return [undo] if (undo := measured_layers.measure(module, self._measurement, layer)) else []

    def _watch_on_gpu(self, layer: Layer, module: Module) -> list[Callable[[], None]]:
        """Say whose tensors are quantized while the layer computes forward for a gradient; backward they know it."""
        from pretraining.numerics import te_quantizer

        def enter(*_: Any) -> None:
            self._measurement.layer = layer if torch.is_grad_enabled() else None

        def leave(*_: Any) -> None:
            self._measurement.layer = None

        te_quantizer.measure(self._measurement)
        hooks = module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
        return [partial(te_quantizer.measure, None), *(hook.remove for hook in hooks)]

    def _write(self) -> None:
        everybody: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everybody, (self._measurement.layers, self._measurement.sums()))
        if dist.get_rank() == 0:
            about = {
                "kind": run_folder.SENSITIVITY_KIND,
                "schema": 1,
                "model": self._settings.model.name,
                "num_layers": self._settings.num_layers,
                "mock_data": self._settings.data == MOCK,
                "iterations": self._settings.watched,
                "recipe": self._settings.nvfp4.words(),
            }
            run_folder.write_json(self._folder / run_folder.SENSITIVITY, about | findings(everybody))


def _sum_over_replicas(gradients: Any) -> None:
    if parallel_state.get_data_parallel_world_size() > 1:
        dist.all_reduce(gradients, group=parallel_state.get_data_parallel_group())
