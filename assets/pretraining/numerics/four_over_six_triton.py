"""Which of two scales each block gets by four over six (``nvfp4.quantize``), for the kernels of ``nvfp4_triton``.

Bytes an element of a BF16 source that it moves at least: 2 read, and a float32 scale written for 16 or 256 elements.
The 16 elements of a block lie in 16 vectors, so that their errors add up in the order of the specification.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pretraining.numerics.rounding_triton import (
    LENGTH,
    SCALED_MAX,
    blocks_in,
    count_programs,
    divided_by_six,
    element_multiplier,
    in_fp32,
    largest_of,
    load_rows,
    place,
    rotate_rows,
    row_address,
    strips_of,
    tensor_scales,
    to_bf16,
    to_e2m1,
    to_e4m3,
)
from pretraining.request.recipe.nvfp4_recipe import Rounding

ROWS, COLUMNS, ROTATED, TILES = (tl.constexpr(each) for each in range(4))  # where the elements of a block lie


def choose(x: Tensor, amax: Tensor, blocks: tl.constexpr, how: Rounding) -> Tensor:
    """The scale of each block, float32: of shape (rows, K / 16) for rows, (rows / 16, K) for columns, one a tile.

    Args:
        x: bfloat16 of shape (rows, K), contiguous, K divisible by 16.
        amax: the bits of the tensor's largest magnitude, after the rotation where there is one: int32; by rows, of each
            row or column.
        blocks: ROWS, COLUMNS, ROTATED (columns after the Hadamard transform) or TILES.
        how: where it chooses nothing, amax comes back.
    """
    if not how.four_over_six:
        return amax
    height, width = x.shape
    groups, across = blocks_in(height), blocks_in(width)
    shape = {ROWS: (height, across), TILES: (groups, across)}.get(blocks, (groups, width))
    scales = torch.empty(shape, dtype=torch.float32, device=x.device)
    if x.numel():
        _choose_kernel[(count_programs(height, width),)](
            x,
            amax,
            scales,
            height,
            BLOCKS=blocks.value,
            SQUARED=how.four_over_six == "mse",
            BY_ROW=how.by_row,
            **strips_of(height, width),
            enable_fp_fusion=False,  # a product and a sum are rounded each, as in the specification
        )
    return scales


@triton.jit
def load_scales(scales, strip, row, height, width, COUNT: tl.constexpr):
    """Of a strip's blocks in one row of a matrix of block scales; zeros outside it."""
    columns = strip * COUNT + tl.arange(0, COUNT)
    return tl.load(row_address(scales, row, width) + columns, mask=(columns < width) & (row < height), other=0.0)


@triton.jit
def _load_blocks(x, first, strip, height, width, COUNT: tl.constexpr):
    """16 rows of COUNT blocks: their first elements, their second, ... each float32 (16, COUNT); zeros outside."""
    rows = first + tl.arange(0, LENGTH)[:, None]
    columns = (strip * COUNT + tl.arange(0, COUNT))[None, :] * LENGTH
    inside = (rows < height) & (columns < width)
    loaded = ()
    for i in tl.static_range(LENGTH):
        at = x + rows.to(tl.int64) * width + columns + i
        loaded += (tl.load(at, mask=inside, other=0.0).to(tl.float32),)
    return loaded


@triton.jit
def _errors(elements, scale, decode, amax, SQUARED: tl.constexpr):
    """How far blocks lie from their elements with these scales, summed from the first element to the sixteenth."""
    multiplier = element_multiplier(scale, decode)
    total = tl.zeros_like(scale)
    for i in tl.static_range(LENGTH):
        value = to_e2m1(elements[i], multiplier) * scale * amax
        apart = tl.math.div_rn(value, SCALED_MAX) - tl.abs(elements[i])
        total += apart * apart if SQUARED else tl.abs(apart)
    return total


@triton.jit
def _sum_of_rows(errors, COUNT: tl.constexpr):
    """Of 16 rows, in a tree: two by two, whose sum has no order."""
    for half in tl.static_range(4):
        errors = tl.sum(tl.reshape(errors, [2, LENGTH >> (half + 1), COUNT]), axis=0)
    return tl.reshape(errors, [COUNT])


@triton.jit
def _choose_kernel(
    x,
    amax,
    scales,
    height,
    width: tl.constexpr,
    BLOCKS: tl.constexpr,
    SQUARED: tl.constexpr,
    BY_ROW: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
):  # one program: 16 rows, WIDTH columns
    group, strip = place(tl.program_id(0), width, WIDTH)
    count: tl.constexpr = WIDTH // LENGTH
    if BY_ROW:
        amax += (
            group * LENGTH + tl.arange(0, LENGTH)[:, None] if BLOCKS == ROWS else strip * WIDTH + tl.arange(0, WIDTH)
        )
    encode, decode, _ = tensor_scales(amax, True)
    largest = tl.load(amax).to(tl.float32, bitcast=True)
    if BLOCKS == ROWS or BLOCKS == TILES:  # noqa: SIM109 - Triton knows no `in`
        elements = _load_blocks(x, group * LENGTH, strip, height, width, count)
    else:
        columns = strip * WIDTH + tl.arange(0, WIDTH)
        elements = in_fp32(load_rows(x, group * LENGTH, height, width, columns, WHOLE))
        if BLOCKS == ROTATED:
            turned = rotate_rows(elements)
            rounded = ()
            for i in tl.static_range(LENGTH):
                rounded += (to_bf16(turned[i]).to(tl.float32) * 0.25,)
            elements = rounded
    of_blocks = largest_of(elements)
    if BLOCKS == TILES:
        of_blocks = tl.broadcast_to(tl.max(of_blocks, axis=0)[None, :], [LENGTH, count])
    raw = divided_by_six(of_blocks) * encode
    usual, wider = to_e4m3(raw), to_e4m3(raw * 1.5)
    error = _errors(elements, usual, decode, largest, SQUARED)
    wider_error = _errors(elements, wider, decode, largest, SQUARED)
    if BLOCKS == TILES:
        error, wider_error = _sum_of_rows(error, count), _sum_of_rows(wider_error, count)
        usual, wider = tl.max(usual, axis=0), tl.max(wider, axis=0)
    chosen = tl.where(wider_error < error, wider, usual)
    if BLOCKS == ROWS:
        blocks = (strip * count + tl.arange(0, count))[None, :]
        rows = group * LENGTH + tl.arange(0, LENGTH)[:, None]
        inside = (rows < height) & (blocks < width // LENGTH)
        tl.store(scales + rows.to(tl.int64) * (width // LENGTH) + blocks, chosen, mask=inside)
    elif BLOCKS == TILES:
        blocks = strip * count + tl.arange(0, count)
        tl.store(row_address(scales, group, width // LENGTH) + blocks, chosen, mask=blocks < width // LENGTH)
    else:
        tl.store(row_address(scales, group, width) + columns, chosen, mask=columns < width)
