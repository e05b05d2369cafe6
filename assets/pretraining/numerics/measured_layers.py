"""Layers that show their products to a measurement while they train; here those of the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pretraining.numerics.cpu_layers import NVFP4, PreparedWeight
from pretraining.numerics.nvfp4 import Operand
from pretraining.numerics.quantization_error import Layer, Measurement, Sample, sampled
from pretraining.request.recipe import nvfp4_recipe


class Measured(NVFP4):
    """The same products, rounded by the same random numbers, each of them shown to a measurement once."""

    def __init__(self, recipe: nvfp4_recipe.Nvfp4Recipe, measurement: Measurement, layer: Layer) -> None:
        super().__init__(recipe)
        self._show = functools.partial(measurement.product, layer)
        self._seen: dict[tuple[str, bool], Sample] = {}  # by tensor, and whether its columns

    def prepare(self, weight: Tensor) -> tuple[Operand, Operand]:
        rows, columns = super().prepare(weight)
        if rows is columns:
            self._seen["weight", True] = sampled(weight, rows, self.how["weight"], columns=True)
        return rows, columns

    def backward(self, gradient: Tensor) -> tuple[Callable[[Any], Tensor], Callable[[Tensor], Tensor]]:
        """fprop is shown here too: forward may be an evaluation, or be computed twice."""
        dgrad, wgrad = super().backward(gradient)

        def seen_dgrad(weight: tuple[Operand, Operand]) -> Tensor:
            result = dgrad(weight)
            self._show("dgrad", self._seen["grad_output", False], self._seen["weight", True])
            return result

        def seen_wgrad(x: Tensor) -> Tensor:
            result = wgrad(x)
            self.quantized("input", x)
            self._show("fprop", self._seen["input", False], self._seen["weight", False])
            self._show("wgrad", self._seen["grad_output", True], self._seen["input", True])
            return result

        return seen_dgrad, seen_wgrad

    def quantized(self, tensor: str, matrix: Tensor, *, columns: bool = False, seed: int = 0) -> Operand:
        operand = super().quantized(tensor, matrix, columns=columns, seed=seed)
        self._seen[tensor, columns] = sampled(matrix, operand, self.how[tensor], columns=columns)
        return operand


def measure(module: torch.nn.Module, measurement: Measurement, layer: Layer) -> Callable[[], None] | None:
    """Show a layer's products to a measurement until what this returns is called; None where it is not in NVFP4."""
    plain = getattr(module, "_forward_impl", None)
    arithmetic = plain.keywords.get("arithmetic") if isinstance(plain, functools.partial) else None
    if not isinstance(arithmetic, NVFP4):
        return None
    measured = Measured(arithmetic.recipe, measurement, layer)
    module._forward_impl = functools.partial(plain, arithmetic=measured, memory=PreparedWeight())
    return functools.partial(setattr, module, "_forward_impl", plain)
