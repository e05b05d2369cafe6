"""The two sides of a selfcheck: Transformer Engine's native kernels, and this project's arithmetic.

Of Transformer Engine it uses what 2.8 to 2.20 have alike: `NVFP4Quantizer`'s keywords and the fields of the tensor it
returns. Tests put the specification in its place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretraining import packages
from pretraining.numerics import nvfp4
from pretraining.numerics.nvfp4 import BLOCK, Operand, QuantizedMatrix
from pretraining.request.recipe.nvfp4_recipe import Rounding

SIDES = ("rows", "columns")
SCALE_ROWS, SCALE_COLUMNS = 128, 4  # what Transformer Engine pads block scales to, for cuBLAS


class Stored(NamedTuple):
    """One side of a quantized matrix as Transformer Engine keeps it (`NVFP4TensorStorage`)."""

    codes: Tensor  # uint8 of shape (rows, K / 2), packed; of the columns' side, of the transpose
    scales: Tensor  # uint8, bits of E4M3, of shape (rows, K / 16) padded to multiples of 128 and 4
    amax: Tensor  # float32 of shape (1,)
    swizzled: bool = False  # the scales are said to be in the order of cuBLAS's tiles


class LayoutError(Exception):
    """A quantized tensor does not have the shape or order in which it can be read."""


def read(stored: Stored, rows: int, columns: int, *, by_row: bool = False) -> QuantizedMatrix:
    """One side as the specification has it, on the CPU, without padding. Raises LayoutError.

    `rows` and `columns` are of the side's matrix, which for columns is the transpose.
    """
    padded = _up(rows, SCALE_ROWS), _up(columns // BLOCK, SCALE_COLUMNS)
    for name, found, wanted in (
        ("codes", stored.codes, (rows, columns // 2)),
        ("block scales", stored.scales, padded),
        ("amax", stored.amax, (rows if by_row else 1,)),
    ):
        if tuple(found.shape) != wanted:
            raise LayoutError(f"{name} of shape {tuple(found.shape)}, expected {wanted}")
    if stored.swizzled:
        raise LayoutError("block scales in the order of cuBLAS's tiles, expected row by row")
    scales = stored.scales.cpu()[:rows, : columns // BLOCK].contiguous().view(torch.float8_e4m3fn)
    amax = stored.amax.cpu().float()
    return QuantizedMatrix(stored.codes.cpu(), scales, amax[:, None] if by_row else amax)


def stored(made: Any) -> dict[str, Stored]:
    """Both sides of Transformer Engine's NVFP4 tensor."""
    swizzled = getattr(made, "_with_gemm_swizzled_scales", False)  # from 2.12
    fields = {"rows": ("rowwise", "_amax_rowwise"), "columns": ("columnwise", "_amax_columnwise")}
    return {
        side: Stored(
            getattr(made, f"_{usage}_data").view(torch.uint8),
            getattr(made, f"_{usage}_scale_inv").view(torch.uint8),
            getattr(made, amax),
            swizzled,
        )
        for side, (usage, amax) in fields.items()
    }


def _up(number: int, multiple: int) -> int:
    return number + -number % multiple


class TransformerEngine:
    """Its kernels for Blackwell, and its NVFP4 recipe."""

    def __init__(self, device: str = "cuda") -> None:
        self._device = device

    def quantize(self, x: Tensor, mode: Rounding) -> dict[str, Stored]:
        """Both sides of a bfloat16 matrix whose rows and columns are multiples of 16."""
        from transformer_engine.pytorch.tensor.nvfp4_tensor import NVFP4Quantizer

        quantizer = NVFP4Quantizer(
            rowwise=True,
            columnwise=True,
            with_rht=mode.rht,
            with_post_rht_amax=mode.rht,
            with_2d_quantization=mode.is_own_transpose,
            stochastic_rounding=mode.stochastic,
        )
        return stored(quantizer(x.to(self._device)))

    def model(self, weights: list[Tensor]) -> torch.nn.Module:
        """Linear layers of the given weights (N, K), SiLU between them, in the recipe without stochastic rounding."""
        from transformer_engine.common.recipe import NVFP4BlockScaling

        recipe = NVFP4BlockScaling(disable_rht=False, disable_stochastic_rounding=True, disable_2d_quantization=False)
        return Layers(weights, recipe, self._device)


class Ours:
    """The Triton kernels, and Transformer Engine's layers with this project's quantizers."""

    def __init__(self, device: str = "cuda") -> None:
        self._device = device

    def kernels(self, x: Tensor, mode: Rounding, seed: int = 0) -> dict[str, Operand]:
        """Both sides of any matrix with K divisible by 16 as the kernels round them, shaped as in `specified`."""
        from pretraining.numerics import nvfp4_triton

        seeds = torch.tensor([seed], device=x.device)
        rows, columns = nvfp4_triton.quantize(x, mode, seed=seeds, folded=packages.folds_block_scale())
        return {
            "rows": Operand(rows.values.cpu(), rows.scale.cpu()),
            "columns": Operand(padded(columns.values).T.cpu(), columns.scale.cpu()),
        }

    def model(self, weights: list[Tensor]) -> torch.nn.Module:
        from transformer_engine.common.recipe import CustomRecipe

        return Layers(weights, CustomRecipe(qfactory=_nearest_quantizer), self._device)


def specified(x: Tensor, mode: Rounding) -> dict[str, QuantizedMatrix]:
    """Both sides as the specification rounds them to nearest, on the CPU. Columns are padded to whole blocks."""
    folded, nearest = packages.folds_block_scale(), replace(mode, stochastic=False)
    how = {"rows": nearest.of_rows, "columns": nearest}
    return {side: nvfp4.quantize(matrix, how[side], folded=folded) for side, matrix in matrices(x).items()}


def matrices(x: Tensor) -> dict[str, Tensor]:
    """What each side quantizes, on the CPU: x, and the transpose of x with its rows padded to a multiple of 16."""
    x = x.cpu()
    return {"rows": x, "columns": padded(x).T.contiguous()}


def padded(x: Tensor) -> Tensor:
    """x with zeros appended up to a multiple of 16 rows; Transformer Engine takes nothing else."""
    return torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % BLOCK))


def _nearest_quantizer(role: Any) -> Any:
    from pretraining.numerics import te_quantizer

    quantizer = te_quantizer.quantizer_factory(role)
    if quantizer is not None:
        quantizer.how = replace(quantizer.how, stochastic=False)
    return quantizer


class Layers(torch.nn.Module):
    """Transformer Engine's linear layers under one of its recipes."""

    def __init__(self, weights: list[Tensor], recipe: Any, device: str) -> None:
        super().__init__()
        import transformer_engine.pytorch as te

        self._recipe = recipe
        self._autocast = te.fp8_autocast
        self.layers = torch.nn.ModuleList(
            te.Linear(weight.shape[1], weight.shape[0], bias=False, params_dtype=torch.bfloat16, device=device)
            for weight in weights
        )
        for layer, weight in zip(self.layers, weights, strict=True):
            layer.weight.data.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        with self._autocast(enabled=True, fp8_recipe=self._recipe):
            for number, layer in enumerate(self.layers):
                x = layer(torch.nn.functional.silu(x) if number else x)
        return x
