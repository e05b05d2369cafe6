"""How far NVFP4's products lie from BF16's on the tensors of a training, layer by layer.

A linear layer has three products, each of two operands with the contraction as their last axis: fprop of the input
(tokens, K) and the weight (N, K); dgrad of the output gradient (tokens, N) and the weight (K, N); wgrad of the output
gradient (N, tokens) and the input (K, tokens). Of both operands the same vectors are taken before and after
quantization, at most ``SAMPLE`` of each, and multiplied in float32. So what is measured is the training's own rounding,
for a small part of its cost; an operand comes as it is in this training, with what earlier layers' rounding did to it.

* The relative error of an operand or a product is ``norm(NVFP4 - BF16) / norm(BF16)``, Frobenius norms over all that
  was sampled. The exact operand is the tensor rounded to BF16.
* Clipped elements lay beyond 6 times their block's scale, which was rounded down. Zeroed ones became 0 and were not:
  of a block whose scale is rounded to 0, all.
* A weight gradient is summed over the micro batches and data-parallel ranks of a step before norms are taken: noise
  that averages out there harms nobody.

**The gradient over its noise** is ``norm(G) / norm(G' - G)``, with G the step's weight gradient by BF16's product and
G' by NVFP4's, of the same operands: the reciprocal of wgrad's relative error. arXiv 2505.19115 finds, by theory and by
training, that 4-bit training becomes less effective where the gradient's norm is below about sqrt(3) times the
quantization noise (its abstract): a relative error above 0.58. Noise that came with the operands is not in G' - G, so
the ratio of the whole training is lower than this one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretraining.numerics import nvfp4
from pretraining.numerics.nvfp4 import BLOCK, Operand
from pretraining.request.recipe.kept_in_bf16 import PROJECTIONS
from pretraining.request.recipe.nvfp4_recipe import Rounding

SAMPLE = 128  # rows or columns of a matrix, in groups of 16
PRODUCTS = {  # each with its two operands
    "fprop": ("input", "weight"),
    "dgrad": ("grad_output", "weight"),
    "wgrad": ("grad_output", "input"),
}


class Layer(NamedTuple):
    """A linear layer of the model."""

    number: int  # of its transformer layer in the whole model, from 0
    projection: str  # one of PROJECTIONS
    parameters: int  # of its weight in the whole model; each of the three products costs 2 FLOPs a token for each


class Sample(NamedTuple):
    """Some vectors of an operand, along the contraction, before and after quantization."""

    exact: Tensor  # float32 of shape (vectors, contraction)
    rounded: Tensor  # likewise
    sums: Tensor  # squared error, squared norm, clipped and zeroed elements, all of them; float64 of shape (5,)


@torch.no_grad()
def sampled(source: Tensor, operand: Operand, how: Rounding, *, columns: bool = False, folded: bool = False) -> Sample:
    """Vectors of a quantized matrix, rotated where quantization rotates them.

    Args:
        source: what was quantized, of shape (rows, K).
        operand: what became of it, in the layout of the source, its columns perhaps padded with zeros.
        how, folded: see ``nvfp4.quantize``.
        columns: whether its blocks lie along the columns.
    """
    values, scale = operand.values, torch.as_tensor(operand.scale, device=source.device).float()
    if columns:
        source, values = source.T, values.T
    else:
        how = how.of_rows
    chosen = _chosen(source.shape[0], str(source.device))
    if how.by_row:
        scale = scale.view(-1, 1)[chosen]
    values = _whole_blocks(values[chosen].float())
    exact = _whole_blocks(source.detach()[chosen].bfloat16().float(), values.shape[1])
    if how.rht:
        rotated = exact.view(-1, BLOCK) @ _rotation(str(exact.device))
        exact = rotated.view(exact.shape).bfloat16().float()
    rounded = values * scale
    scale_max = nvfp4.FOUR_OVER_SIX_MAX if how.four_over_six else nvfp4.E4M3_MAX
    amax = (scale * scale_max * nvfp4.E2M1_MAX).reshape(-1, *scale.shape[1:])
    scales = nvfp4.block_scales(exact, how, amax, folded=folded)
    scaled = nvfp4.unclipped(exact, scales, nvfp4.encode_scale(amax, scale_max)).abs()
    sums = (
        (rounded - exact).square().sum(dtype=torch.float64),
        exact.square().sum(dtype=torch.float64),
        ((scaled > nvfp4.E2M1_MAX * (1 + 2**-20)) & (values != 0)).sum(),  # amax is known to a bit or two
        ((values == 0) & (exact != 0)).sum(),
        exact.new_full((), exact.numel(), dtype=torch.float64),  # exact beyond 2**24
    )
    return Sample(exact, rounded, torch.stack([each.double() for each in sums]))


def _whole_blocks(vectors: Tensor, length: int = 0) -> Tensor:
    """Padded with zeros to that length, or to a multiple of 16."""
    return torch.nn.functional.pad(vectors, (0, max(length - vectors.shape[1], -vectors.shape[1] % BLOCK)))


@functools.cache
def _chosen(length: int, device: str) -> Tensor:
    """Indices of whole groups of 16, by a fixed lot: every eighth, say, would be the same part of each head."""
    groups = -(-length // BLOCK)
    lot = torch.randperm(groups, generator=torch.Generator().manual_seed(0))[: SAMPLE // BLOCK].sort().values
    indices = (lot[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
    return indices[indices < length].to(device)


@functools.cache
def _rotation(device: str) -> Tensor:
    return nvfp4.random_hadamard_transform(torch.eye(BLOCK)).to(device)


Sums = dict[tuple[Layer, str, str], list[float]]  # by layer, product, and operand or "" for the product itself


class Measurement:
    """Sums over all that passes through the layers of this process."""

    def __init__(self) -> None:
        self.layer: Layer | None = None  # whose forward pass is running, where the layers themselves do not know it
        self.layers: set[Layer] = set()  # all that there are, also those in BF16
        self._sums: dict[tuple[Layer, str, str], Tensor] = {}  # by layer, product, and operand or ""
        self._gradients: dict[Layer, Tensor] = {}  # of this step, BF16's and NVFP4's

    @torch.no_grad()
    def product(self, layer: Layer, name: str, left: Sample, right: Sample) -> None:
        """Take in one of ``PRODUCTS``, of one micro batch."""
        exact, rounded = left.exact @ right.exact.T, left.rounded @ right.rounded.T
        for operand, sample in zip(PRODUCTS[name], (left, right), strict=True):
            self._add((layer, name, operand), sample.sums)
        if name == "wgrad":
            both = torch.stack((exact, rounded))
            self._gradients[layer] = self._gradients[layer] + both if layer in self._gradients else both
        else:
            self._add((layer, name, ""), _squares(exact, rounded))

    def end_step(self, over_ranks: Callable[[Tensor], Any] = lambda gradients: None) -> None:
        """Take in the weight gradients of a step; ``over_ranks`` sums them over data-parallel ranks, in place."""
        for layer in sorted(self._gradients):
            over_ranks(self._gradients[layer])
            self._add((layer, "wgrad", ""), _squares(*self._gradients[layer]))
        self._gradients.clear()

    def sums(self) -> Sums:
        """All sums as numbers, to be added to other processes'."""
        return {key: sums.tolist() for key, sums in self._sums.items()}

    def _add(self, key: tuple[Layer, str, str], sums: Tensor) -> None:
        self._sums[key] = self._sums[key] + sums if key in self._sums else sums


def _squares(exact: Tensor, rounded: Tensor) -> Tensor:
    parts = (rounded - exact).square(), exact.square()
    return torch.stack([each.sum(dtype=torch.float64) for each in parts])


def findings(of_processes: list[tuple[set[Layer], Sums]]) -> dict[str, Any]:
    """What the layers and sums of all processes come to, for ``sensitivity.json``.

    ``gradient_over_noise`` is of all sampled weight gradients, each layer by its parameters. A layer in BF16 has no
    products, and a figure is None where there is nothing to divide by.
    """
    whole: Sums = {}
    for _, sums in of_processes:
        for key, values in sums.items():
            whole[key] = [a + b for a, b in zip(whole[key], values, strict=True)] if key in whole else values
    layers = sorted(
        set().union(*(layers for layers, _ in of_processes)),
        key=lambda each: (each.number, PROJECTIONS.index(each.projection)),
    )
    squares = {layer: whole.get((layer, "wgrad", ""), [0.0, 0.0]) for layer in layers}
    noise, norm = (sum(layer.parameters * each[part] for layer, each in squares.items()) for part in (0, 1))
    return {
        "gradient_over_noise": _root(norm, noise),
        "layers": [
            {
                "layer": layer.number,
                "projection": layer.projection,
                "parameters": layer.parameters,
                "gradient_over_noise": _root(*reversed(squares[layer])),
                "products": {name: _of_product(whole, layer, name) for name in PRODUCTS if (layer, name, "") in whole},
            }
            for layer in layers
        ],
    }


def _of_product(whole: Sums, layer: Layer, name: str) -> dict[str, Any]:
    operands = {}
    for operand in PRODUCTS[name]:
        error, norm, clipped, zeroed, count = whole[layer, name, operand]
        operands[operand] = {"error": _root(error, norm), "clipped": clipped / count, "zeroed": zeroed / count}
    return {"error": _root(*whole[layer, name, ""]), "operands": operands}


def _root(above: float, below: float) -> float | None:
    """The root of their quotient; None where that is no finite number."""
    found = math.sqrt(above / below) if below > 0 and math.isfinite(above / below) else None
    return found if found is None or math.isfinite(found) else None
