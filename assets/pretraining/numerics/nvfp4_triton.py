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

from pretraining.numerics.nvfp4 import BLOCK, E2M1_MAX, E4M3_MAX, FP32_MAX, NEAREST, RHT_SIGNS, Operand, require_matrix
from pretraining.request.nvfp4_recipe import Rounding

# Columns a program and warps: each thread holds 4 columns of 16 rows.
WIDTH, WARPS = 512, 4
REGISTERS = 168  # a thread at most, for 12 warps a multiprocessor; stochastic rounding would take more, and leave 8
GROUPS = 2  # of 16 rows, that a program of the amax kernel reads: with more, a narrow matrix has too few programs
PHILOX_ROUNDS = 7  # the fewest that pass BigCrush (Salmon et al., table 2)

_BLOCK = tl.constexpr(BLOCK)
_SIX = tl.constexpr(E2M1_MAX)
_2688 = tl.constexpr(E2M1_MAX * E4M3_MAX)
_FP32_MAX = tl.constexpr(FP32_MAX)
_NEGATIVE = tl.constexpr(RHT_SIGNS)
_ROUNDS = tl.constexpr(PHILOX_ROUNDS)
_ALL_NAN = tl.constexpr(tl.PropagateNan.ALL)
_EXPONENT = tl.constexpr(0x7F800000)
_SIGN = tl.constexpr(-0x80000000)
# Of each type its smallest normal number, and 1.5 * 2**23 times its spacing at 1.
_E2M1_LEAST, _E2M1_SHIFT = tl.constexpr(1.0), tl.constexpr(1.5 * 2.0**22)
_E2M1_RAISE = tl.constexpr(1.5 * 2.0**14)  # the same for a 256th of the spacing
_E4M3_LEAST, _E4M3_SHIFT = tl.constexpr(2.0**-6), tl.constexpr(1.5 * 2.0**20)
_BF16_LEAST, _BF16_SHIFT = tl.constexpr(2.0**-126), tl.constexpr(1.5 * 2.0**16)
# A sixth in two parts. The first has 16 bits, so its product with a BF16 number is exact in FP32; and a sixth of a BF16
# number never lies near the middle of two FP32 numbers, so the sum of both products is the quotient rounded once.
_SIXTH = tl.constexpr(43690.0 / 2.0**18)
_SIXTH_REST = tl.constexpr(1.0 / 6.0 - 43690.0 / 2.0**18)


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
) -> tuple[Operand | None, Operand | None]:
    """``nvfp4.quantize(x, how.of_rows)`` and, transposed back, ``nvfp4.quantize(x.T, how)``.

    Args:
        x: of shape (rows, K), K divisible by 16; rounded to bfloat16 where it is not. Columns are padded with zeros to
            a multiple of 16 rows, and their values have the padded rows: the Hadamard transform fills them.
        how: of tiles, one result is both. The sums of the Hadamard transform are divided by 4 at the end, so that
            numbers over 2e37 count as infinite.
        rows, columns: which of the two to make; the other is None.
        seed: int64 of shape (1,) on x's device, for stochastic rounding, of rows and columns independently. A
            probability is exact to 2**-9: 8 random bits an element, as many as Blackwell's own conversion takes (PTX
            ISA, cvt.rs: 32 bits for 4 numbers).
        stream: numbers independent sequences of one seed, such as the ranks of a training.
        folded: see ``nvfp4.quantize``.
        out: an earlier result of tiles for the same shape, to write into.

    Raises:
        ValueError: x is no matrix, or K is not divisible by 16.
    """
    require_matrix(x)
    x = x.bfloat16().contiguous()
    if how.is_own_transpose:
        return (tiles := _tiles(x, folded, out)), tiles
    height, width = x.shape
    groups = triton.cdiv(height, BLOCK)
    strips = triton.cdiv(width, WIDTH)
    amax = _amax(x, columns=columns, rht=how.rht)
    scales = torch.empty(2, dtype=torch.float32, device=x.device)
    of_rows = torch.empty(x.shape if rows else 0, dtype=torch.bfloat16, device=x.device)
    of_columns = torch.empty((groups * BLOCK, width) if columns else 0, dtype=torch.bfloat16, device=x.device)
    if groups and strips:
        _quantize_kernel[(groups, strips)](
            x,
            of_rows,
            of_columns,
            amax,
            scales,
            seed if how.stochastic else amax,
            stream,
            height,
            width,
            ROWS=rows,
            COLUMNS=columns,
            RHT=how.rht,
            STOCHASTIC=how.stochastic,
            FOLDED=folded,
            WIDTH=WIDTH,
            num_warps=WARPS,
            maxnreg=REGISTERS,
        )
    return Operand(of_rows, scales[:1]) if rows else None, Operand(of_columns, scales[1:]) if columns else None


def _tiles(x: Tensor, folded: bool, out: Operand | None) -> Operand:
    height, width = x.shape
    amax = _amax(x, columns=False, rht=False)
    if out is None:
        out = Operand(torch.empty(x.shape, dtype=torch.bfloat16, device=x.device), amax.new_empty(1).float())
    if x.numel():
        grid = (triton.cdiv(height, BLOCK), triton.cdiv(width, WIDTH))
        _tiles_kernel[grid](x, out.values, amax, out.scale, height, width, FOLDED=folded, WIDTH=WIDTH, num_warps=WARPS)
    return out


def _amax(x: Tensor, *, columns: bool, rht: bool) -> Tensor:
    """Bits of the largest magnitude of x and of its rotated columns, int32 of shape (2,); NaN is the largest."""
    height, width = x.shape
    amax = torch.zeros(2, dtype=torch.int32, device=x.device)
    if x.numel():
        groups = min(GROUPS, triton.cdiv(height, BLOCK))
        grid = (triton.cdiv(height, BLOCK * groups), triton.cdiv(width, WIDTH))
        _amax_kernel[grid](x, amax, height, width, ROTATED=columns and rht, GROUPS=groups, WIDTH=WIDTH, num_warps=WARPS)
    if columns and not rht:
        amax[1:] = amax[:1]
    return amax


@triton.jit
def _row(matrix, number, width):
    """The address of a row, the same for all threads."""
    return matrix + number.to(tl.int64) * width


@triton.jit
def _load_rows(x, first, height, width, columns):
    """16 rows from row ``first``, each float32 of the shape of ``columns``; zeros outside the matrix."""
    loaded = ()
    for i in tl.static_range(_BLOCK):
        inside = (columns < width) & (first + i < height)
        loaded += (tl.load(_row(x, first + i, width) + columns, mask=inside, other=0.0).to(tl.float32),)
    return loaded


@triton.jit
def _rotate(rows):
    """The random Hadamard transform down 16 rows, times 4: ``nvfp4.random_hadamard_transform``'s butterfly."""
    signed = ()
    for i in tl.static_range(_BLOCK):
        signed += (rows[i] * _NEGATIVE[i],)
    rows = signed
    for bit in tl.static_range(4):
        sums = ()
        for i in tl.static_range(_BLOCK):
            sums += (rows[i ^ (1 << bit)] - rows[i] if (i >> bit) & 1 else rows[i] + rows[i ^ (1 << bit)],)
        rows = sums
    return rows


@triton.jit
def _largest(rows):
    """Elementwise largest magnitude of 16 rows; NaN where one is NaN."""
    largest = tl.abs(rows[0])
    for i in tl.static_range(1, _BLOCK):
        largest = tl.maximum(largest, tl.abs(rows[i]), propagate_nan=_ALL_NAN)
    return largest


@triton.jit
def _amax_kernel(
    x, amax, height, width, ROTATED: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr
):  # one program: GROUPS x 16 rows, WIDTH columns
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    plain = tl.zeros([WIDTH], dtype=tl.float32)
    rotated = tl.zeros([WIDTH], dtype=tl.float32)
    for group in range(GROUPS):
        rows = _load_rows(x, (tl.program_id(0) * GROUPS + group) * _BLOCK, height, width, columns)
        plain = tl.maximum(plain, _largest(rows), propagate_nan=_ALL_NAN)
        if ROTATED:
            rotated = tl.maximum(rotated, _largest(_rotate(rows)), propagate_nan=_ALL_NAN)
    # As integers, magnitudes keep their order and NaN is above them all.
    tl.atomic_max(amax, tl.max(plain.to(tl.int32, bitcast=True)), sem="relaxed")
    if ROTATED:
        largest = tl.where(rotated == float("inf"), rotated, tl.abs(_bf16(rotated * 0.25)))
        tl.atomic_max(amax + 1, tl.max(largest.to(tl.int32, bitcast=True)), sem="relaxed")


@triton.jit
def _tensor_scales(amax):
    """From the address of the largest magnitude's bits: ``encode``, its inverse, and the tensor scale."""
    largest = tl.load(amax).to(tl.float32, bitcast=True)
    encode = tl.minimum(tl.math.div_rn(_2688, largest), _FP32_MAX)
    encode = tl.where(encode == 0.0, 1.0, encode)
    return encode, tl.math.div_rn(1.0, encode), tl.math.div_rn(largest, _2688)


_INTERPRETED = tl.constexpr(not isinstance(_tensor_scales, triton.JITFunction))  # knows no PTX


@triton.jit
def _power_of_two(x):
    """The largest power of two up to |x|, or 0."""
    return (x.to(tl.int32, bitcast=True) & _EXPONENT).to(tl.float32, bitcast=True)


@triton.jit
def _round(x, power, shift):
    """x to the nearest multiple of a spacing, ties to even: the sum has no bits below it.

    The spacing is ``power * shift / (1.5 * 2**23)``, and |x| below ``2 * power``.
    """
    return (x + power * shift) - power * shift


@triton.jit
def _bf16(x):
    """The nearest BF16 number to a finite one, in FP32. Triton converts one number at a time, a slow instruction."""
    if _INTERPRETED:  # where conversions round down
        return _round(x, tl.maximum(_power_of_two(x), _BF16_LEAST), _BF16_SHIFT)
    return tl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], tl.bfloat16, is_pure=True, pack=2
    ).to(tl.float32)


@triton.jit
def _inverse(x):
    """1 / x, correctly rounded for 2**-126 <= x < 2**126.

    A division has branches, which keep the compiler from working on rows side by side.
    """
    if _INTERPRETED:
        return tl.math.div_rn(1.0, x)
    near = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    # The instructions of rcp.rn's fast path: one step from a neighbour of 1 / x gives it exactly (Markstein, 1990), but
    # from the lower one of a significand of all ones, which rcp.rn relies on never to come. NaN for x = 0.
    return tl.math.fma(near, tl.math.fma(-x, near, 1.0), near)


@triton.jit
def _block_scales(amax, encode, decode, FOLDED: tl.constexpr):
    """The E4M3 scale of each block from its amax, a BF16 number, and what its elements are multiplied with.

    The largest of all gives 448 but for a rounding, so that none needs to be clipped to it.
    """
    raw = amax * (encode * (1.0 / _SIX)) if FOLDED else (amax * _SIXTH + amax * _SIXTH_REST) * encode
    scale = _round(raw, tl.maximum(_power_of_two(raw), _E4M3_LEAST), _E4M3_SHIFT)
    lift = tl.where(decode < 1.0, 2.0**24, 1.0)  # to normal numbers, exactly
    return scale, tl.minimum(_inverse(scale * decode * lift) * lift, _FP32_MAX)  # also of a block of zeros


@triton.jit
def _e2m1(x, multiplier, byte, STOCHASTIC: tl.constexpr):
    """E2M1 of x * multiplier clipped to [-6, 6].

    Nearest, ties to even; or stochastic, by an integer uniform in 0 to 255: raised until 1/256 of a spacing is its last
    bit, an element is added to, and what is below the spacing cut off. One on the grid stays there.
    """
    scaled = x * multiplier + 0.0  # -0.0 becomes 0.0, as in the specification's codes
    magnitude = tl.minimum(tl.abs(scaled), _SIX)
    power = tl.maximum(_power_of_two(magnitude), _E2M1_LEAST)
    if STOCHASTIC:
        raised = (magnitude + power * _E2M1_RAISE).to(tl.int32, bitcast=True) + byte
        rounded = (raised & -256).to(tl.float32, bitcast=True) - power * _E2M1_RAISE
    else:
        rounded = _round(magnitude, power, _E2M1_SHIFT)
    return (rounded.to(tl.int32, bitcast=True) | (scaled.to(tl.int32, bitcast=True) & _SIGN)).to(
        tl.float32, bitcast=True
    )


@triton.jit
def _byte(words, i: tl.constexpr):
    """For row i of 16, from 4 words of random bits."""
    return ((words[i >> 2] >> (i % 4 * 8)) & 0xFF).to(tl.int32, bitcast=True)


@triton.jit
def _random_words(seed, stream, columns, group):
    """Four 32-bit words for each column: a byte for each of 16 rows."""
    zero = columns * 0
    return tl.philox(tl.load(seed), columns, zero + group, zero + stream, zero, n_rounds=_ROUNDS)


@triton.jit(do_not_specialize=["stream"])
def _quantize_kernel(
    x,
    of_rows,
    of_columns,
    amax,
    scales,
    seed,
    stream,
    height,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RHT: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    FOLDED: tl.constexpr,
    WIDTH: tl.constexpr,
):  # one program: 16 rows, WIDTH columns
    group = tl.program_id(0)
    first = group * _BLOCK
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    rows = _load_rows(x, first, height, width, columns)
    words = _random_words(seed, stream, columns, group) if STOCHASTIC else ()
    if ROWS:
        encode, decode, tensor_scale = _tensor_scales(amax)
        if group + tl.program_id(1) == 0:
            tl.store(scales, tensor_scale)
        for i in tl.static_range(_BLOCK):
            blocks = tl.reshape(rows[i], [WIDTH // _BLOCK, _BLOCK])
            byte = tl.reshape(_byte(words, i), [WIDTH // _BLOCK, _BLOCK]) if STOCHASTIC else 0
            scale, multiplier = _block_scales(tl.max(tl.abs(blocks), axis=1), encode, decode, FOLDED)
            values = _e2m1(blocks, multiplier[:, None], byte, STOCHASTIC) * scale[:, None]
            to = _row(of_rows, first + i, width) + columns
            tl.store(to, tl.reshape(values, [WIDTH]).to(tl.bfloat16), mask=(columns < width) & (first + i < height))
    if COLUMNS:
        encode, decode, tensor_scale = _tensor_scales(amax + 1)
        if group + tl.program_id(1) == 0:
            tl.store(scales + 1, tensor_scale)
        if RHT:
            rows = _rotate(rows)
            rounded = ()
            for i in tl.static_range(_BLOCK):
                rounded += (_bf16(rows[i]),)
            rows = rounded
        unit: tl.constexpr = 0.25 if RHT else 1.0  # of the rows, which are four times the orthonormal transform
        scale, multiplier = _block_scales(_largest(rows) * unit, encode, decode, FOLDED)
        multiplier *= unit
        for i in tl.static_range(_BLOCK):
            # The bits of the row 8 further: each of the two results has bits of its own for each element, and the same
            # element is rounded independently in both, for half the random bits.
            byte = _byte(words, i ^ 8) if STOCHASTIC else 0
            values = _e2m1(rows[i], multiplier, byte, STOCHASTIC) * scale
            to = _row(of_columns, first + i, width) + columns
            tl.store(to, values.to(tl.bfloat16), mask=columns < width)


@triton.jit
def _tiles_kernel(
    x, out, amax, scale_out, height, width, FOLDED: tl.constexpr, WIDTH: tl.constexpr
):  # one program: 16 rows, WIDTH columns
    first = tl.program_id(0) * _BLOCK
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    rows = _load_rows(x, first, height, width, columns)
    encode, decode, tensor_scale = _tensor_scales(amax)
    if tl.program_id(0) + tl.program_id(1) == 0:
        tl.store(scale_out, tensor_scale)
    tiles = tl.max(tl.reshape(_largest(rows), [WIDTH // _BLOCK, _BLOCK]), axis=1)
    scale, multiplier = _block_scales(tiles, encode, decode, FOLDED)
    for i in tl.static_range(_BLOCK):
        blocks = tl.reshape(rows[i], [WIDTH // _BLOCK, _BLOCK])
        values = _e2m1(blocks, multiplier[:, None], 0, False) * scale[:, None]
        to = _row(out, first + i, width) + columns
        tl.store(to, tl.reshape(values, [WIDTH]).to(tl.bfloat16), mask=(columns < width) & (first + i < height))
