"""What Transformer Engine's quantizers promise, and what is in the tensors that they make.

FP8: an element times its tile's scale, rounded to E4M3 or E5M2, to nearest, ties to even, saturating. The scale is the
format's largest number over the tile's amax, rounded down to a power of two where the recipe says so; a delayed scale
is given. NVFP4 is `numerics/nvfp4.py`. Read in Transformer Engine 2.12 to 2.20: `recipe_common.cuh`, `ptx.cuh`, and the
`get_scale_shape` of each quantizer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretraining import packages
from pretraining.numerics import nvfp4
from pretraining.numerics.nvfp4 import BLOCK, E4M3_MAX, FOUR_OVER_SIX_MAX
from pretraining.request.recipe.nvfp4_recipe import Rounding
from pretraining.selfcheck import engines
from pretraining.selfcheck.engines import LayoutError

ULPS = 4  # of float32, by which a scale may be off that is known from its inverse alone


class NotKnown(Exception):
    """A quantizer of which this project has no specification, or one whose tensors have another layout."""


class Side(NamedTuple):
    """One side of a quantized matrix beside the specification."""

    found: Tensor  # codes, counted in steps of the format's grid from zero
    wanted: Tensor  # likewise, for the scales that were found
    scales_off: Tensor  # by how many steps each scale is off; none should be, and one is a rounding
    scaled: Tensor  # what was rounded, in the grid's own numbers
    values: Tensor  # that the codes stand for, likewise


@dataclass(frozen=True)
class Nvfp4:
    """NVFP4 as one quantizer rounds to it."""

    how: Rounding

    @property
    def stochastic(self) -> bool:
        return self.how.stochastic

    def _of(self, side: str) -> Rounding:
        return self.how if side == "columns" else self.how.of_rows

    def specified(self, matrix: Tensor, side: str, stochastic: bool = False) -> Tensor:
        """What a side's matrix comes to: float32, rotated where the side is."""
        return self._quantized(matrix, side, stochastic).dequantize()

    def _quantized(self, matrix: Tensor, side: str, stochastic: bool = False) -> nvfp4.QuantizedMatrix:
        how = replace(self._of(side), stochastic=stochastic and self.stochastic)
        return nvfp4.quantize(matrix, how, folded=packages.folds_block_scale())

    def read(self, made: Any, side: str, matrix: Tensor) -> Side:
        """One side of the engine's tensor. Raises LayoutError for codes of another shape, NotKnown for scales."""
        stored, specified = engines.stored(made)[side], self._quantized(matrix, side)
        _shaped(stored.codes, (len(matrix), matrix.shape[1] // 2))
        try:
            found = engines.read(stored, *matrix.shape, by_row=self.how.by_row)
        except LayoutError as error:
            raise NotKnown(str(error)) from error
        scales_off = _steps(found.scales).sub(_steps(specified.scales)).abs()
        if self.how.four_over_six:  # where both scales do alike, an error summed otherwise takes the other one
            scales_off = scales_off.clamp(max=1)
        if not torch.allclose(found.amax, specified.amax, rtol=2.0**-8):  # the transform may stay unrounded
            scales_off = torch.full_like(scales_off, 2)
        rotated = nvfp4.random_hadamard_transform(matrix) if self._of(side).rht else matrix
        encode = nvfp4.encode_scale(found.amax, specified.scale_max)
        scaled = nvfp4.scale_elements(rotated.float(), found.scales, encode)
        codes = nvfp4.unpack(found.codes)
        signed = [torch.where(each >= 8, 8 - each, each) for each in (codes.int(), nvfp4.nearest_codes(scaled).int())]
        return Side(*signed, scales_off, scaled, nvfp4.decode(codes))


@dataclass(frozen=True)
class Fp8:
    """FP8 as one quantizer rounds to it."""

    dtype: torch.dtype  # of the codes
    tile: tuple[int, int] | None = None  # rows and columns of the side's matrix that share a scale; None for all
    power_of_two: bool = False  # scales are
    scale: float | None = None  # that is given, of delayed scaling
    least: float = 0.0  # the smallest amax that a scale is made of
    stochastic = False

    def specified(self, matrix: Tensor, side: str, stochastic: bool = False) -> Tensor:
        """What a side's matrix comes to: float32. FP8 is rounded to nearest alone."""
        scale = self._scales(matrix)
        return self._rounded(matrix.float() * scale).float() / scale

    def _scales(self, matrix: Tensor) -> Tensor:
        if self.scale is not None:
            return torch.full_like(matrix, self.scale, dtype=torch.float32)
        rows, columns = tile = self.tile or tuple(matrix.shape)
        tiles = matrix.float().abs().view(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)
        amax = tiles.amax(dim=(1, 3)).clamp(min=self.least)
        scale = torch.full_like(amax, torch.finfo(self.dtype).max) / amax
        scale = torch.where(torch.isfinite(scale), scale, 1.0)
        if self.power_of_two:
            scale = torch.ldexp(torch.ones_like(scale), torch.frexp(scale).exponent - 1)
        return _spread(scale, tile)

    def _rounded(self, scaled: Tensor) -> Tensor:
        most = torch.finfo(self.dtype).max
        return scaled.clamp(-most, most).to(self.dtype)

    def read(self, made: Any, side: str, matrix: Tensor) -> Side:
        """One side of the engine's tensor. Raises LayoutError for codes of another shape, NotKnown for scales."""
        codes, inverse = (each.cpu().contiguous() for each in self._stored(made, side, matrix))
        scale = 1 / inverse.float()
        apart = scale.view(torch.int32).sub(self._scales(matrix).view(torch.int32)).abs()
        values, scaled = codes.view(self.dtype), matrix.float() * scale
        wanted = _steps(self._rounded(scaled))
        return Side(_steps(values), wanted, torch.where(apart > ULPS, 2, 0), scaled, values.float())

    def _stored(self, made: Any, side: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, and what each of them is multiplied with, both in the shape of the side's matrix."""
        if self.tile is None:
            data, columns = made._data, made._transpose
            if side == "columns":  # where products take them so, there is no transpose
                data = data.T if columns is None or made._transpose_invalid else columns
            return _shaped(data, matrix.shape), made._scale_inv.float().reshape(1, 1).expand(matrix.shape)
        rows, columns = (found // one for found, one in zip(matrix.shape, self.tile, strict=True))
        whose = "rowwise" if side == "rows" else "columnwise"
        data, scales = getattr(made, f"_{whose}_data"), getattr(made, f"_{whose}_scale_inv")
        if scales.dtype == torch.uint8:  # MXFP8: E8M0, and the columns are not stored as a transpose
            if getattr(made, "_with_gemm_swizzled_scales", False):
                raise NotKnown("block scales in the order of cuBLAS's tiles, expected row by row")
            data, scales = (each.T if side == "columns" else each for each in (data, scales))
            scales = torch.ldexp(torch.ones_like(scales, dtype=torch.float32), scales.int() - 127)
        elif self.tile[0] == 1:  # tiles of a row are stored tile by tile, for all rows
            scales = scales.T
        if scales.shape[0] < rows or scales.shape[1] < columns:
            raise NotKnown(f"scales of shape {tuple(scales.shape)}, expected at least {(rows, columns)}")
        return _shaped(data, matrix.shape), _spread(scales[:rows, :columns], self.tile)


def of_quantizer(quantizer: Any) -> Nvfp4 | Fp8:
    """The specification of one of Transformer Engine's quantizers. Raises NotKnown."""
    kind = type(quantizer).__name__
    if kind == "NVFP4Quantizer":
        return Nvfp4(_rounding(quantizer))
    dtype = torch.float8_e5m2 if "E5M2" in quantizer.dtype.name else torch.float8_e4m3fn
    if kind == "Float8Quantizer":
        return Fp8(dtype, scale=float(quantizer.scale))
    if kind == "Float8CurrentScalingQuantizer":
        return Fp8(dtype, power_of_two=quantizer.force_pow_2_scales, least=quantizer.amax_epsilon)
    if kind == "Float8BlockQuantizer":
        long = quantizer.block_len
        tile = (long if quantizer.block_scaling_dim == 2 else 1, long)
        return Fp8(dtype, tile, quantizer.force_pow_2_scales, least=quantizer.amax_epsilon)
    if kind == "MXFP8Quantizer":
        return Fp8(dtype, (32 if getattr(quantizer, "with_2d_quantization", False) else 1, 32), power_of_two=True)
    raise NotKnown(f"{kind} has no specification here")


def _rounding(quantizer: Any) -> Rounding:
    """Attributes that a release does not have are of what it cannot do."""
    chooses = getattr(quantizer, "nvfp4_use_4over6", False)
    if chooses and getattr(quantizer, "nvfp4_e4m3_max", E4M3_MAX) != FOUR_OVER_SIX_MAX:
        raise NotKnown(f"four over six of scales up to {E4M3_MAX:g} has no specification here")
    by_row = getattr(quantizer, "row_scaled_nvfp4", False)
    if by_row and quantizer.with_2d_quantization:
        raise NotKnown("tiles with a scale for each row have no specification here")
    return Rounding(
        tile=(BLOCK, BLOCK) if quantizer.with_2d_quantization else (1, BLOCK),
        rht=quantizer.with_rht,
        stochastic=quantizer.stochastic_rounding,
        four_over_six=quantizer.nvfp4_4over6_err_mode.lower() if chooses else "",
        by_row=by_row,
    )


def _shaped(data: Tensor, wanted: tuple[int, ...]) -> Tensor:
    if tuple(data.shape) != tuple(wanted):
        raise LayoutError(f"codes of shape {tuple(data.shape)}, expected {tuple(wanted)}")
    return data.view(torch.uint8)


def _spread(scales: Tensor, tile: tuple[int, int]) -> Tensor:
    return scales.repeat_interleave(tile[0], dim=0).repeat_interleave(tile[1], dim=1)


def _steps(codes: Tensor) -> Tensor:
    """Codes of 8 bits, sign and magnitude, as whole numbers in the order of what they stand for."""
    bits = codes.contiguous().view(torch.uint8).int()
    return torch.where(bits >= 128, 128 - bits, bits)
