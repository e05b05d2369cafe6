"""NVFP4 rounding on a GPU: the arithmetic of ``nvfp4.py``, fused by Triton, at the speed of memory.

A quantized matrix comes back as a BF16 matrix product wants it: ``values``, code times block scale, exact in BF16, and
the FP32 tensor scale to multiply the product with. Blocks along the rows ("columns" below, what ``nvfp4.quantize``
gives for the transpose) keep the layout of the source, because a BF16 product transposes for free.

Bytes an element of a BF16 source, of which each kernel must move at least: largest magnitudes, 2 read (of the rows and
of the rotated columns at once); rounding, 2 read and 2 written for each of the two; tiles, 2 read and 2 written.

Every program works on 16 rows at a time, each row a vector: blocks along the rows, and the Hadamard transform in them,
then lie within one thread. Rounding to E4M3 and E2M1 adds and subtracts a power of two, in FP32: casts to E4M3 do not
exist on every GPU and are wrong in Triton's interpreter. Results do not depend on the launch: maxima have no order, and
random bits come from a counter, Philox (Salmon et al., 2011) over row and column.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pretraining.numerics.four_over_six_triton import COLUMNS, ROTATED, ROWS, TILES, choose, load_scales
from pretraining.numerics.nvfp4 import BLOCK, NEAREST, Operand, require_matrix, require_rounding
from pretraining.numerics.rounding_triton import (
    ALL_NAN,
    LENGTH,
    WIDTH,
    block_scales,
    blocks_in,
    count_programs,
    element_multiplier,
    in_fp32,
    largest_of,
    load_rows,
    place,
    quantized,
    random_raise,
    random_words,
    rotate_rows,
    store_row,
    strips_of,
    tensor_scales,
    to_bf16,
)
from pretraining.request.recipe.nvfp4_recipe import Rounding

REGISTERS = 168  # a thread at most, for 12 warps a multiprocessor; stochastic rounding would take more, and leave 8
GROUPS = 2  # of 16 rows, that a program of the amax kernel reads: with more, a narrow matrix has too few programs


def quantize(
    x: Tensor,
    how: Rounding = NEAREST,
    *,
    rows: bool = True,
    columns: bool = True,
    seed: Tensor | None = None,
    stream: int = 0,
    folded: bool = False,
    out: Operand | None = None,
    skip: Tensor | None = None,
) -> tuple[Operand | None, Operand | None]:
    """``nvfp4.quantize(x, how.of_rows)`` and, transposed back, ``nvfp4.quantize(x.T, how)``.

    Args:
        x: of shape (rows, K), K divisible by 16; rounded to bfloat16 where it is not. Columns are padded with zeros to
            a multiple of 16 rows, and their values have the padded rows: the Hadamard transform fills them.
        how: of tiles, one result is both. The sums of the Hadamard transform are divided by 4 at the end, so that
            numbers over 2e37 count as infinite.
        rows, columns: which of the two to make; the other is None.
        seed: of stochastic rounding, int64 of shape (1,) on x's device. Rows and columns round independently, with
            probabilities exact to 2**-9: 8 random bits an element, as many as Blackwell's conversion takes (PTX ISA,
            cvt.rs: 32 bits for 4 numbers).
        stream: numbers independent sequences of one seed, such as the ranks of a training.
        folded: see ``nvfp4.quantize``.
        out: an earlier result of tiles for the same shape, to write into.
        skip: float32 of one element, on x's device: where it is not 0, ``out`` keeps what it has.

    Raises:
        ValueError: x is no matrix, or K is not divisible by 16.
    """
    require_matrix(x)
    require_rounding(how)
    x = x.bfloat16().contiguous()
    if how.is_own_transpose:
        return (tiles := _tiles(x, how, folded, out, skip)), tiles
    height, width = x.shape
    amax = _amax(x, columns=columns, rht=how.rht, by_row=how.by_row)
    at = _first_column(height) if how.by_row else 1
    scales = (torch.empty if x.numel() else torch.zeros)(len(amax), dtype=torch.float32, device=x.device)
    of_rows = x.new_empty(x.shape if rows else 0)
    of_columns = x.new_empty((blocks_in(height) * BLOCK, width) if columns else 0)
    row_scales = choose(x, amax, ROWS, how) if rows else amax
    column_scales = choose(x, amax[at:], ROTATED if how.rht else COLUMNS, how) if columns else amax
    if x.numel():
        options = {"ROWS": rows, "COLUMNS": columns, "RHT": how.rht, "STOCHASTIC": how.stochastic, "FOLDED": folded}
        options |= {"CHOSEN": bool(how.four_over_six), "BY_ROW": how.by_row, "maxnreg": REGISTERS}
        options |= strips_of(height, width)
        _quantize_kernel[(count_programs(height, width),)](
            x,
            of_rows,
            of_columns,
            amax,
            scales,
            row_scales,
            column_scales,
            seed if how.stochastic else amax,
            stream,
            height,
            **options,
        )
    row_scale, column_scale = scales[:1], scales[1:]
    if how.by_row:
        row_scale, column_scale = scales[:height, None], scales[None, at : at + width]
    return Operand(of_rows, row_scale) if rows else None, Operand(of_columns, column_scale) if columns else None


def _tiles(x: Tensor, how: Rounding, folded: bool, out: Operand | None, skip: Tensor | None) -> Operand:
    height, width = x.shape
    amax = _amax(x, columns=False, rht=False, skip=skip)
    if out is None:
        out = Operand(torch.empty_like(x), torch.zeros(1, device=x.device))
    if x.numel():
        chosen = choose(x, amax, TILES, how)
        options = {"FOLDED": folded, "CHOSEN": bool(how.four_over_six), "SKIPS": skip is not None}
        to = out.values, out.scale
        _tiles_kernel[(count_programs(height, width),)](
            x, *to, amax, chosen, amax if skip is None else skip, height, **options, **strips_of(height, width)
        )
    return out


def _amax(x: Tensor, *, columns: bool, rht: bool, by_row: bool = False, skip: Tensor | None = None) -> Tensor:
    """Bits of the largest magnitude of x and of its rotated columns, int32 of shape (2,); NaN is the largest.

    Those of each row and, from ``_first_column`` on, of each column where it goes by rows.

    It reads from the end, where x was written last, to the beginning, where the rounding starts: what the GPU's cache
    holds of x is then read from it twice.
    """
    height, width = x.shape
    size = _first_column(height) + blocks_in(width, WIDTH) * WIDTH if by_row else 2  # so that no strip ends outside
    amax = torch.zeros(size, dtype=torch.int32, device=x.device)
    if x.numel():
        groups = min(GROUPS, blocks_in(height))
        options = {"COLUMNS": columns, "RHT": rht, "BY_ROW": by_row, "GROUPS": groups, "SKIPS": skip is not None}
        options |= strips_of(height, width, groups)
        programs = count_programs(height, width, groups)
        _amax_kernel[(programs,)](x, amax, amax if skip is None else skip, height, **options)
    if columns and not rht and not by_row:
        amax[1:] = amax[:1]
    return amax


def _first_column(height: int) -> int:
    """Where those of columns begin, after those of whole groups of 16 rows."""
    return blocks_in(height) * BLOCK


@triton.jit
def _amax_kernel(
    x,
    amax,
    skip,
    height,
    width: tl.constexpr,
    COLUMNS: tl.constexpr,
    RHT: tl.constexpr,
    BY_ROW: tl.constexpr,
    GROUPS: tl.constexpr,
    SKIPS: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
):  # one program: GROUPS x 16 rows, WIDTH columns
    if SKIPS:  # noqa: SIM102 - decided when this is compiled
        if tl.load(skip) != 0:
            return
    first, strip = place(tl.num_programs(0) - 1 - tl.program_id(0), width, WIDTH)
    columns = strip * WIDTH + tl.arange(0, WIDTH)
    plain = tl.zeros([WIDTH], dtype=tl.float32)
    rotated = tl.zeros([WIDTH], dtype=tl.float32)
    for group in range(GROUPS):
        top = (first * GROUPS + group) * LENGTH
        rows = in_fp32(load_rows(x, top, height, width, columns, WHOLE))
        if BY_ROW:
            for i in tl.static_range(LENGTH):
                largest = tl.max(tl.abs(rows[i]).to(tl.int32, bitcast=True))
                tl.atomic_max(amax + top + i, largest, mask=top + i < height, sem="relaxed")
        plain = tl.maximum(plain, largest_of(rows), propagate_nan=ALL_NAN)
        if COLUMNS and RHT:
            rotated = tl.maximum(rotated, largest_of(rotate_rows(rows)), propagate_nan=ALL_NAN)
    # As integers, magnitudes keep their order and NaN is above them all.
    if RHT:
        rotated = tl.where(rotated == float("inf"), rotated, tl.abs(to_bf16(rotated * 0.25).to(tl.float32)))
    if BY_ROW:
        if COLUMNS:
            to = amax + tl.cdiv(height, LENGTH) * LENGTH + columns
            largest = (rotated if RHT else plain).to(tl.int32, bitcast=True)
            tl.atomic_max(to, largest, mask=columns < width, sem="relaxed")
    else:
        tl.atomic_max(amax, tl.max(plain.to(tl.int32, bitcast=True)), sem="relaxed")
        if COLUMNS and RHT:
            tl.atomic_max(amax + 1, tl.max(rotated.to(tl.int32, bitcast=True)), sem="relaxed")


@triton.jit
def _scales(largest, encode, chosen, COUNT: tl.constexpr, FOLDED: tl.constexpr, CHOSEN: tl.constexpr):
    """Of blocks from their largest magnitudes; or those that four over six chose, what ``load_scales`` is asked for."""
    return load_scales(*chosen, COUNT) if CHOSEN else block_scales(largest, encode, FOLDED)


@triton.jit(do_not_specialize=["stream"])
def _quantize_kernel(
    x,
    of_rows,
    of_columns,
    amax,
    scales,
    row_scales,
    column_scales,
    seed,
    stream,
    height,
    width: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RHT: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    FOLDED: tl.constexpr,
    CHOSEN: tl.constexpr,
    BY_ROW: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
):  # one program: 16 rows, WIDTH columns
    group, strip = place(tl.program_id(0), width, WIDTH)
    first = group * LENGTH
    columns = strip * WIDTH + tl.arange(0, WIDTH)
    source = load_rows(x, first, height, width, columns, WHOLE)
    rows = in_fp32(source)
    words = random_words(seed, stream, columns, group) if STOCHASTIC else ()
    if ROWS:
        encode, decode, tensor_scale = tensor_scales(amax, CHOSEN)
        if tl.program_id(0) == 0:
            tl.store(scales, tensor_scale)
        for i in tl.static_range(LENGTH):
            if BY_ROW:
                encode, decode, row_scale = tensor_scales(amax + first + i, CHOSEN)
                if strip == 0:
                    tl.store(scales + first + i, row_scale)
            blocks = tl.reshape(rows[i], [WIDTH // LENGTH, LENGTH])
            raise_by = tl.reshape(random_raise(words, i), [WIDTH // LENGTH, LENGTH]) if STOCHASTIC else 0
            largest = tl.max(tl.abs(blocks), axis=1)
            chosen = row_scales, strip, first + i, height, width // LENGTH
            scale = _scales(largest, encode, chosen, WIDTH // LENGTH, FOLDED, CHOSEN)
            multiplier = element_multiplier(scale, decode)
            signs = tl.reshape(source[i], [WIDTH // LENGTH, LENGTH])
            values = quantized(blocks, multiplier[:, None], scale[:, None], signs, raise_by, STOCHASTIC)
            store_row(of_rows, tl.reshape(values, [WIDTH]), first, i, height, width, columns, WHOLE)
    if COLUMNS:
        at = tl.cdiv(height, LENGTH) * LENGTH + columns if BY_ROW else 1
        encode, decode, tensor_scale = tensor_scales(amax + at, CHOSEN)
        if (group if BY_ROW else tl.program_id(0)) == 0:
            tl.store(scales + at, tensor_scale)
        if RHT:
            rows = rotate_rows(rows)
            source = ()
            for i in tl.static_range(LENGTH):
                source += (to_bf16(rows[i]),)
            rows = in_fp32(source)
        unit: tl.constexpr = 0.25 if RHT else 1.0  # of the rows, which are four times the orthonormal transform
        chosen = column_scales, strip, group, tl.cdiv(height, LENGTH), width
        scale = _scales(largest_of(rows) * unit, encode, chosen, WIDTH, FOLDED, CHOSEN)
        multiplier = element_multiplier(scale, decode) * unit
        for i in tl.static_range(LENGTH):
            # The bits of the row 8 further: each of the two results has bits of its own for each element, and the same
            # element is rounded independently in both, for half the random bits.
            raise_by = random_raise(words, i ^ 8) if STOCHASTIC else 0
            values = quantized(rows[i], multiplier, scale, source[i], raise_by, STOCHASTIC)
            store_row(of_columns, values, first, i, first + LENGTH, width, columns, WHOLE)  # padded to whole groups


@triton.jit
def _tiles_kernel(
    x,
    out,
    scale_out,
    amax,
    tile_scales,
    skip,
    height,
    width: tl.constexpr,
    FOLDED: tl.constexpr,
    CHOSEN: tl.constexpr,
    SKIPS: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE: tl.constexpr,
):  # one program: 16 rows, WIDTH columns
    if SKIPS:  # noqa: SIM102 - decided when this is compiled
        if tl.load(skip) != 0:
            return
    group, strip = place(tl.program_id(0), width, WIDTH)
    first = group * LENGTH
    columns = strip * WIDTH + tl.arange(0, WIDTH)
    source = load_rows(x, first, height, width, columns, WHOLE)
    rows = in_fp32(source)
    encode, decode, tensor_scale = tensor_scales(amax, CHOSEN)
    if tl.program_id(0) == 0:
        tl.store(scale_out, tensor_scale)
    largest = tl.max(tl.reshape(largest_of(rows), [WIDTH // LENGTH, LENGTH]), axis=1)
    chosen = tile_scales, strip, group, tl.cdiv(height, LENGTH), width // LENGTH
    scale = _scales(largest, encode, chosen, WIDTH // LENGTH, FOLDED, CHOSEN)
    multiplier = element_multiplier(scale, decode)
    for i in tl.static_range(LENGTH):
        blocks = tl.reshape(rows[i], [WIDTH // LENGTH, LENGTH])
        signs = tl.reshape(source[i], [WIDTH // LENGTH, LENGTH])
        values = quantized(blocks, multiplier[:, None], scale[:, None], signs, 0, False)
        store_row(out, tl.reshape(values, [WIDTH]), first, i, height, width, columns, WHOLE)
