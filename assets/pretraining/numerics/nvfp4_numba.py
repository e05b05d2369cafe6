"""NVFP4 and BF16 rounding for the CPU: the arithmetic of ``nvfp4.py``, fused by numba.

Every function takes a float32 or bfloat16 matrix and first rounds it to BF16, the type in which NVFP4 training hands
its tensors to the quantizer; so ``quantize(x)`` equals ``nvfp4.quantize(x.bfloat16())`` bit for bit. What comes
back is ready for a float32 product: the exact ``values`` and the tensor scale to multiply the product with.

Blocks along the rows ("columns" below, what ``nvfp4.quantize`` gives for the transpose) are computed and returned in
the layout of x: the product transposes for free, and 16 rows side by side are what a vector unit likes.

Results do not depend on the number of threads: maxima have no order, and random bits come from a counter, the index of
the element.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import float32, int32, njit, prange, uint32
from numba.extending import intrinsic

from pretraining.numerics.nvfp4 import (
    BLOCK,
    E2M1_MAX,
    E4M3_MAX,
    ERRORS,
    FOUR_OVER_SIX_MAX,
    FP32_MAX,
    NEAREST,
    RHT_SIGNS,
    Operand,
    require_matrix,
    require_rounding,
)  # fmt: skip
from pretraining.request.recipe.nvfp4_recipe import Rounding

ROWS, COLUMNS, TILES = 0, 1, 2  # where the 16 (or 256) elements of a block lie

LANES = 64  # columns that the Hadamard transform takes at a time: 16 x 64 floats stay in the first-level cache
CHUNK = 4096

# numba computes in float64 wherever a Python number takes part.
_ZERO, _ONE, _SIX, _448 = np.float32(0), np.float32(1), np.float32(E2M1_MAX), np.float32(E4M3_MAX)
_FP32_MAX, _1536 = np.float32(FP32_MAX), np.float32(FOUR_OVER_SIX_MAX * E2M1_MAX)
_SIGNS = np.array(RHT_SIGNS, dtype=np.float32) * np.float32(0.25)
# numpy's error model: 1 / 0 is inf, as in PyTorch, and not an exception; it also lets the loops vectorize.
_compile = njit(cache=True, error_model="numpy")
_compile_parallel = njit(cache=True, error_model="numpy", parallel=True, nogil=True)
# torchrun gives PyTorch one thread a rank; numba would still take every core for each.
numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


def quantize(x: torch.Tensor, how: Rounding = NEAREST, *, columns: bool = False, seed: int = 0) -> Operand:
    """``nvfp4.quantize(x.bfloat16(), how.of_rows)``, or by columns, of the transpose with ``how`` and transposed back.

    Args:
        x: float32 or bfloat16 of shape (rows, K), K divisible by 16 but for columns.
        how: a tile is its own transpose, so one call serves the forward product and the input gradient.
        columns: blocks of 16x1 along the first axis. Zeros are appended up to a multiple of 16 rows, and the values
            have the padded rows, because the Hadamard transform fills them; a product over the rows needs them.
        seed: 64 bits, of stochastic rounding.

    Raises:
        ValueError: x is no matrix, or K is not divisible by 16.
    """
    blocks = TILES if how.is_own_transpose else COLUMNS if columns else ROWS
    require_matrix(x, of_blocks=blocks != COLUMNS)
    require_rounding(how)
    source = x.detach().float().contiguous().numpy()
    rows, width = source.shape
    out = np.empty((rows + -rows % BLOCK if blocks == COLUMNS else rows, width), np.float32)
    each = (width if blocks == COLUMNS else BLOCK) if how.by_row else 1  # vectors of a strip with scales of their own
    largest = np.zeros((-(-rows // BLOCK), each), np.int32)
    scales = np.empty((largest.size if how.by_row and blocks == ROWS else each, 4), np.float32)
    scales[:, 3] = E2M1_MAX * (FOUR_OVER_SIX_MAX if how.four_over_six else E4M3_MAX)
    choice = ERRORS.index(how.four_over_six) + 1 if how.four_over_six else 0
    asked = (blocks, how.rht and blocks == COLUMNS, scales, choice, how.stochastic, *_keys(seed))
    _for_each_strip(source, out, largest, True, *asked)
    _tensor_scales(largest.ravel() if how.by_row and blocks == ROWS else largest.max(axis=0, initial=0), scales)
    _for_each_strip(source, out, largest, False, *asked)
    values, each = torch.from_numpy(out), torch.from_numpy(scales[:, 2].copy())
    return Operand(values, (each[None] if blocks == COLUMNS else each[:rows, None]) if how.by_row else float(each[0]))


def round_bf16(x: torch.Tensor, scale: float = 1.0, *, inplace: bool = False) -> torch.Tensor:
    """``(x * scale).bfloat16().float()`` in one pass. To work ``inplace``, float32 x must be contiguous."""
    x = x.detach().contiguous()
    out = x if inplace else torch.empty_like(x)
    _scale_and_round(x.view(-1).numpy(), out.view(-1).numpy(), np.float32(scale), inplace)
    return out


def _keys(seed: int) -> tuple[np.uint32, np.uint32]:
    """Two 32-bit keys from a seed by one step of splitmix64 (Steele, Lea, Flood 2014)."""
    mask = 2**64 - 1
    z = (seed + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    return np.uint32(z & 0xFFFFFFFF), np.uint32(z >> 32)


@intrinsic
def _bits(typing_context, value):
    """The bits of a float32 as an int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return int32(float32), generate


@intrinsic
def _float(typing_context, value):
    """The float32 with the bits of an int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return float32(int32), generate


# numba widens every integer operation to 64 bits; the casts below keep 32, and with them twice the vector lanes.
@_compile
def _magnitude(x):
    """The bits of abs(x): as integers they have the order of the numbers, with NaN above infinity."""
    return int32(_bits(x) & int32(0x7FFFFFFF))


@_compile
def _bf16(x):
    bits = _bits(x)
    rounded = _float(int32((bits + int32(0x7FFF) + ((bits >> int32(16)) & int32(1))) & int32(-0x10000)))
    return rounded if x == x else x  # the carry could turn a NaN into an infinity or a zero


@_compile
def _power_of_two(x):
    """The largest power of two not above x > 0; 0 for a subnormal."""
    return _float(int32(_bits(x) & int32(0x7F800000)))


@_compile
def _round_to_multiple(x, step):
    """x rounded to the nearest multiple of step (a power of two), ties to even, for 0 <= x < 2**22 * step."""
    rounder = step * float32(1.5 * 2**23)
    return (x + rounder) - rounder


@_compile
def _with_sign(magnitude, x):
    return _float(int32(_bits(magnitude) | (_bits(x) & int32(-0x80000000))))


@_compile
def _uniform(index, key0, key1):
    """24 random bits of (index, keys) as a float32 in [0, 1): multiply and xor-shift rounds, a key in each."""
    h = uint32(uint32(index * uint32(0x9E3779B9)) ^ key0)
    h = uint32((h ^ (h >> uint32(16))) * uint32(0x21F0AAAD))
    h = uint32((h ^ (h >> uint32(15)) ^ key1) * uint32(0x735A2D97))
    h = uint32(h ^ (h >> uint32(15)))
    return float32(int32(h >> uint32(8))) * float32(2.0**-24)


@_compile
def _e4m3(x):
    """Nearest E4M3 of x in [0, 448]: 3 bits after the leading one, multiples of 2**-9 below 2**-6."""
    return _round_to_multiple(x, max(_power_of_two(x), float32(2.0**-6)) * float32(2.0**-3))


@_compile
def _e2m1(x, multiplier, stochastic, uniform):
    """E2M1 of x * multiplier clipped to [-6, 6]: 1 bit after the leading one, multiples of 0.5 below 2.

    Nearest, ties to even; or stochastic: the neighbour above with the probability of the distance to the one below.
    """
    scaled = x * multiplier + _ZERO  # -0.0 becomes 0.0, as in the specification's codes
    magnitude = min(abs(scaled), _SIX)
    step = max(_power_of_two(magnitude), _ONE) * float32(0.5)
    if stochastic:
        steps = magnitude / step
        below = float32(int32(steps))
        return _with_sign((below + (_ONE if uniform < steps - below else _ZERO)) * step, scaled)
    return _with_sign(_round_to_multiple(magnitude, step), scaled)


@_compile
def _tensor_scales(largest, scales):
    """From each largest magnitude (as bits) and what it is scaled to, last: ``encode``, 1 / it, tensor scale, amax."""
    for v in range(largest.size):
        amax, full = _bf16(_float(largest[v])), scales[v, 3]
        encode = min(full / amax, _FP32_MAX)
        if encode == _ZERO:
            encode = _ONE
        scales[v, 0], scales[v, 1], scales[v, 2], scales[v, 3] = encode, _ONE / encode, amax / full, amax


@_compile
def _block_scales(amax, scales, wider, scale, multiplier):
    """The E4M3 scale of each block from its amax (as bits), and what its elements are multiplied with."""
    each = 1 if len(scales) > 1 else 0  # blocks have one ``encode``, or one each
    for b in range(amax.size):
        encode, decode = scales[b * each, 0], scales[b * each, 1]
        scale[b] = _e4m3(min(_bf16(_float(amax[b])) / _SIX * encode * wider, _448))
        multiplier[b] = min(_ONE / (scale[b] * decode), _FP32_MAX)


@_compile
def _error(x, multiplier, scale, amax, choice):
    """Of an element by four over six: how far its value, in its own units, lies from it, or the square of that."""
    apart = _e2m1(x, multiplier, False, _ZERO) * scale * amax / _1536 - x
    return abs(apart) if choice == 1 else apart * apart


@_compile
def _block_errors(x, of_columns, scale, multiplier, scales, choice):
    """How far each block lies from x, summed as in the specification: along each row, then up to 16 rows in a tree."""
    each = 1 if len(scales) > 1 else 0
    error = np.zeros((1 if of_columns or x.shape[0] == 1 else BLOCK, scale.size), np.float32)
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            e, b = (0, c) if of_columns else (r, c // BLOCK)
            error[e, b] += _error(_bf16(x[r, c]), multiplier[b], scale[b], scales[b * each, 3], choice)
    half = error.shape[0] // 2
    while half:
        error[:half] += error[half : 2 * half]
        half //= 2
    return error[0]


@_compile
def _four_over_six(x, of_columns, amax, scales, choice, scale, multiplier):
    """Replace the scale of each block, and its multiplier, by 1.5 times it where that has the smaller error."""
    wider, wider_multiplier = np.empty_like(scale), np.empty_like(scale)
    _block_scales(amax, scales, float32(1.5), wider, wider_multiplier)
    error = _block_errors(x, of_columns, scale, multiplier, scales, choice)
    wider_error = _block_errors(x, of_columns, wider, wider_multiplier, scales, choice)
    for b in range(scale.size):
        if wider_error[b] < error[b]:
            scale[b], multiplier[b] = wider[b], wider_multiplier[b]


@_compile
def _quantize_columns(x, out, scales, choice, stochastic, index, key0, key1):
    """One block a column. ``index`` counts the elements of the matrix before this strip."""
    rows, columns = x.shape
    amax = np.zeros(columns, np.int32)
    scale, multiplier = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for r in range(rows):
        for c in range(columns):
            amax[c] = max(amax[c], _magnitude(x[r, c]))
    _block_scales(amax, scales, _ONE, scale, multiplier)
    if choice:
        _four_over_six(x, True, amax, scales, choice, scale, multiplier)
    for r in range(rows):
        source, target, first = x[r], out[r], index + r * columns
        if stochastic:
            for c in range(columns):
                u = _uniform(uint32(first + c), key0, key1)
                target[c] = _e2m1(_bf16(source[c]), multiplier[c], True, u) * scale[c]
        else:
            for c in range(columns):
                target[c] = _e2m1(_bf16(source[c]), multiplier[c], False, _ZERO) * scale[c]
    for r in range(rows, out.shape[0]):
        for c in range(columns):
            out[r, c] = _ZERO * scale[c]  # NaN under a NaN scale


@_compile
def _quantize_blocks(x, out, height, scales, choice, stochastic, index, key0, key1):
    """One block for 16 columns of ``height`` rows."""
    rows, columns = x.shape
    amax = np.empty(columns // BLOCK, np.int32)
    scale, multiplier = np.empty(amax.size, np.float32), np.empty(amax.size, np.float32)
    for top in range(0, rows, height):
        amax[:] = 0
        for r in range(top, top + height):
            _raise_block_amax(x[r].reshape(amax.size, BLOCK), amax)
        of_row = scales[index // columns + top :][:1] if len(scales) > 1 else scales
        _block_scales(amax, of_row, _ONE, scale, multiplier)
        if choice:
            _four_over_six(x[top : top + height], False, amax, of_row, choice, scale, multiplier)
        for r in range(top, top + height):
            source, target = x[r].reshape(amax.size, BLOCK), out[r].reshape(amax.size, BLOCK)
            _quantize_row(source, target, scale, multiplier, stochastic, index + r * columns, key0, key1)


# A row as (blocks, 16): the constant length lets the inner loop become one or two vector instructions.
@_compile
def _raise_block_amax(row, amax):
    for b in range(amax.size):
        m = amax[b]
        for j in range(BLOCK):
            m = max(m, _magnitude(row[b, j]))
        amax[b] = m


@_compile
def _quantize_row(row, out, scale, multiplier, stochastic, index, key0, key1):
    for b in range(scale.size):
        s, m, first = scale[b], multiplier[b], index + b * BLOCK
        if stochastic:
            for j in range(BLOCK):
                u = _uniform(uint32(first + j), key0, key1)
                out[b, j] = _e2m1(_bf16(row[b, j]), m, True, u) * s
        else:
            for j in range(BLOCK):
                out[b, j] = _e2m1(_bf16(row[b, j]), m, False, _ZERO) * s


@_compile
def _rotated(x):
    """The random Hadamard transform along up to 16 rows, rounded to BF16: always 16 rows; those x lacks are zeros."""
    rows, columns = x.shape
    out = np.empty((BLOCK, columns), np.float32)
    block = np.zeros(BLOCK * LANES, np.float32)  # one flat array: distances are constant, so the loops vectorize
    for left in range(0, columns, LANES):
        lanes = min(LANES, columns - left)
        for r in range(rows):
            source, target, sign = x[r, left : left + lanes], block[r * LANES : (r + 1) * LANES], _SIGNS[r]
            for c in range(lanes):
                target[c] = _bf16(source[c]) * sign
        block[rows * LANES :] = _ZERO
        for stride in (1, 2, 4, 8):
            _butterfly(block, stride * LANES)
        for r in range(BLOCK):
            source, target = block[r * LANES : (r + 1) * LANES], out[r, left : left + lanes]
            for c in range(lanes):
                target[c] = _bf16(source[c])
    return out


@_compile
def _butterfly(block, distance):
    for start in range(0, BLOCK * LANES, 2 * distance):
        for i in range(start, start + distance):
            low, high = block[i], block[i + distance]
            block[i] = low + high
            block[i + distance] = low - high


@_compile
def _largest(row):
    m = int32(0)
    for c in range(row.size):
        m = max(m, _magnitude(row[c]))
    return m


@_compile
def _measure(x, largest, of_columns):
    """The largest magnitude of up to 16 rows; or of each of them, or of each column, where there is room for it."""
    for r in range(x.shape[0]):
        if of_columns and largest.size > 1:
            for c in range(x.shape[1]):
                largest[c] = max(largest[c], _magnitude(x[r, c]))
        else:
            to = r if largest.size > 1 else 0
            largest[to] = max(largest[to], _largest(x[r]))


@_compile
def _round(x, out, scale):
    for i in range(x.size):
        out[i] = _bf16(x[i] * scale)


@_compile
def _round_inplace(x, scale):  # its own function: with two names for one array, the loop would not vectorize
    for i in range(x.size):
        x[i] = _bf16(x[i] * scale)


# One loop for both passes, because parallel code is slow to compile. The transform is computed in both: to store its
# result and read it back would take longer.
@_compile_parallel
def _for_each_strip(x, out, largest, measure, blocks, rht, scales, choice, stochastic, key0, key1):
    """Measure (largest magnitudes, as bits) or quantize each strip of 16 rows."""
    for strip in prange(len(largest)):
        first, last = strip * BLOCK, (strip + 1) * BLOCK
        rows, target, index = x[first:last], out[first:last], first * x.shape[1]
        source = _rotated(rows) if rht else rows
        if measure:
            _measure(source, largest[strip], blocks == COLUMNS)
        elif blocks == COLUMNS:
            _quantize_columns(source, target, scales, choice, stochastic, index, key0, key1)
        else:
            height = 1 if blocks == ROWS else source.shape[0]
            _quantize_blocks(source, target, height, scales, choice, stochastic, index, key0, key1)


@_compile_parallel
def _scale_and_round(x, out, scale, inplace):
    for i in prange((x.size + CHUNK - 1) // CHUNK):
        first, last = i * CHUNK, (i + 1) * CHUNK
        if inplace:
            _round_inplace(out[first:last], scale)
        else:
            _round(x[first:last], out[first:last], scale)
