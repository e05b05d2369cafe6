"""What NVFP4's Triton kernels are made of: rounding, block scales and random bits, in FP32 on vectors."""

from __future__ import annotations

import triton
import triton.language as tl

from pretraining.numerics.nvfp4 import BLOCK, E2M1_MAX, E4M3_MAX, FOUR_OVER_SIX_MAX, FP32_MAX, RHT_SIGNS

# Columns a program, 128 a warp: each thread holds 4 columns of 16 rows.
WIDTH = 512
PHILOX_ROUNDS = 7  # the fewest that pass BigCrush (Salmon et al., table 2)

LENGTH = tl.constexpr(BLOCK)
_SIX = tl.constexpr(E2M1_MAX)
_2688 = tl.constexpr(E2M1_MAX * E4M3_MAX)
SCALED_MAX = tl.constexpr(E2M1_MAX * FOUR_OVER_SIX_MAX)
_FP32_MAX = tl.constexpr(FP32_MAX)
_NEGATIVE = tl.constexpr(RHT_SIGNS)
_ROUNDS = tl.constexpr(PHILOX_ROUNDS)
ALL_NAN = tl.constexpr(tl.PropagateNan.ALL)
_EXPONENT = tl.constexpr(0x7F800000)
_SIGN = tl.constexpr(-0x80000000)
# Of each type its smallest normal number, and 1.5 * 2**23 times its spacing at 1.
_E2M1_LEAST, _E2M1_SHIFT = tl.constexpr(1.0), tl.constexpr(1.5 * 2.0**22)
# 64, whose spacing in BF16 is E2M1's, and half a 256th of that; as bits of a float32, whose byte 1 counts 256ths.
_RAISE, _RAISE_BITS = tl.constexpr(64.0), tl.constexpr(0x42800080)
_E4M3_LEAST, _E4M3_SHIFT = tl.constexpr(2.0**-6), tl.constexpr(1.5 * 2.0**20)
_BF16_LEAST, _BF16_SHIFT = tl.constexpr(2.0**-126), tl.constexpr(1.5 * 2.0**16)
# A sixth in two parts. The first has 16 bits, so its product with a BF16 number is exact in FP32; and a sixth of a BF16
# number never lies near the middle of two FP32 numbers, so the sum of both products is the quotient rounded once.
_SIXTH = tl.constexpr(43690.0 / 2.0**18)
_SIXTH_REST = tl.constexpr(1.0 / 6.0 - 43690.0 / 2.0**18)


def strips_of(height: int, width: int, groups: int = 1) -> dict[str, int | bool]:
    """Constants of a kernel for a matrix: the columns and warps of a program, and whether all lie wholly in it.

    A program has so many ``groups`` of 16 rows, and half as many columns where the last strip would be half empty.
    A width that is known when compiling makes rows' addresses constants, for a tenth fewer instructions and a quarter
    fewer registers; a model has few widths.
    """
    strip = WIDTH // 2 if 0 < width % WIDTH <= WIDTH // 2 else WIDTH
    return {
        "width": width,
        "WIDTH": strip,
        "WHOLE": height % (BLOCK * groups) == 0 and width % strip == 0,
        "num_warps": strip // 128,
    }


def count_programs(height: int, width: int, groups: int = 1) -> int:
    """Programs of ``place``."""
    return blocks_in(height, BLOCK * groups) * blocks_in(width, strips_of(height, width)["WIDTH"])


def blocks_in(length: int, block: int = BLOCK) -> int:
    """Blocks that cover a length. ``triton.cdiv`` also takes what is known when compiling, at 1.5 us a call."""
    return -(-length // block)


@triton.jit
def place(number, width, WIDTH: tl.constexpr):
    """The 16 rows and the strip of columns of a program; programs go along the rows, as memory does."""
    strips = tl.cdiv(width, WIDTH)
    return number // strips, number % strips


@triton.jit
def row_address(matrix, number, width):
    """The address of a row, the same for all threads."""
    return matrix + number.to(tl.int64) * width


@triton.jit
def load_rows(x, first, height, width, columns, WHOLE: tl.constexpr):
    """16 rows from row ``first``, each bfloat16 of the shape of ``columns``; zeros outside the matrix."""
    at = row_address(x, first, width) + columns
    loaded = ()
    for i in tl.static_range(LENGTH):
        inside = None if WHOLE else (columns < width) & (first + i < height)
        loaded += (tl.load(at + i * width, mask=inside, other=None if WHOLE else 0.0),)
    return loaded


@triton.jit
def store_row(matrix, values, first, i: tl.constexpr, height, width, columns, WHOLE: tl.constexpr):
    """Row ``first + i`` of a matrix, where it is inside."""
    to = row_address(matrix, first, width) + columns + i * width
    tl.store(to, values, mask=None if WHOLE else (columns < width) & (first + i < height))


@triton.jit
def in_fp32(rows):
    wide = ()
    for i in tl.static_range(LENGTH):
        wide += (rows[i].to(tl.float32),)
    return wide


@triton.jit
def rotate_rows(rows):
    """The random Hadamard transform down 16 rows, times 4: ``nvfp4.random_hadamard_transform``'s butterfly."""
    signed = ()
    for i in tl.static_range(LENGTH):
        signed += (rows[i] * _NEGATIVE[i],)
    rows = signed
    for bit in tl.static_range(4):
        sums = ()
        for i in tl.static_range(LENGTH):
            sums += (rows[i ^ (1 << bit)] - rows[i] if (i >> bit) & 1 else rows[i] + rows[i ^ (1 << bit)],)
        rows = sums
    return rows


@triton.jit
def largest_of(rows):
    """Elementwise largest magnitude of 16 rows in FP32; NaN where one is NaN."""
    largest = tl.abs(rows[0])
    for i in tl.static_range(1, LENGTH):
        largest = tl.maximum(largest, tl.abs(rows[i]), propagate_nan=ALL_NAN)
    return largest


@triton.jit
def tensor_scales(amax, FOUR_OVER_SIX: tl.constexpr):
    """From the address of the largest magnitude's bits: ``encode``, its inverse, and the tensor scale."""
    full: tl.constexpr = SCALED_MAX if FOUR_OVER_SIX else _2688
    largest = tl.load(amax).to(tl.float32, bitcast=True)
    encode = tl.minimum(tl.math.div_rn(full, largest), _FP32_MAX)
    encode = tl.where(encode == 0.0, 1.0, encode)
    return encode, tl.math.div_rn(1.0, encode), tl.math.div_rn(largest, full)


_INTERPRETED = tl.constexpr(not isinstance(tensor_scales, triton.JITFunction))  # knows no PTX


@triton.jit
def power_of_two(x):
    """The largest power of two up to |x|, or 0."""
    return (x.to(tl.int32, bitcast=True) & _EXPONENT).to(tl.float32, bitcast=True)


@triton.jit
def _round(x, power, shift):
    """x to the nearest multiple of a spacing, ties to even: the sum has no bits below it.

    The spacing is ``power * shift / (1.5 * 2**23)``, and |x| below ``2 * power``.
    """
    return (x + power * shift) - power * shift


@triton.jit
def to_bf16(x):
    """The nearest BF16 number to a finite one. Triton converts one number at a time, a slow instruction."""
    if _INTERPRETED:  # where conversions round down
        return _round(x, tl.maximum(power_of_two(x), _BF16_LEAST), _BF16_SHIFT).to(tl.bfloat16)
    return tl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], tl.bfloat16, is_pure=True, pack=2)


@triton.jit
def inverse(x):
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
def block_scales(amax, encode, FOLDED: tl.constexpr):
    """The E4M3 scale of each block from its amax, a BF16 number.

    The largest of all gives 448 but for a rounding, so that none needs to be clipped to it.
    """
    return to_e4m3(amax * (encode * (1.0 / _SIX)) if FOLDED else divided_by_six(amax) * encode)


@triton.jit
def divided_by_six(x):
    """A BF16 number over six, rounded once."""
    return x * _SIXTH + x * _SIXTH_REST


@triton.jit
def to_e4m3(x):
    return _round(x, tl.maximum(power_of_two(x), _E4M3_LEAST), _E4M3_SHIFT)


@triton.jit
def element_multiplier(scale, decode):
    """What the elements of a block are multiplied with, also of a block of zeros."""
    lift = tl.where(decode < 1.0, 2.0**24, 1.0)  # to normal numbers, exactly
    return tl.minimum(inverse(scale * decode * lift) * lift, _FP32_MAX)


@triton.jit
def to_e2m1(x, multiplier):
    """The magnitude of x * multiplier in E2M1, clipped to 6: nearest, ties to even."""
    magnitude, power = _magnitude(x, multiplier)
    return _round(magnitude, power, _E2M1_SHIFT)


@triton.jit
def _magnitude(x, multiplier):
    """Of x * multiplier, clipped to 6; and twice the spacing of E2M1 there."""
    magnitude = tl.minimum(tl.abs(x * multiplier), _SIX)
    return magnitude, tl.maximum(power_of_two(magnitude), _E2M1_LEAST)


# Two magnitudes become BF16, take their signs and are multiplied by their scales. Triton's own operations on BF16 are
# on one number each. Nearest rounding makes 0.0 of -0.0, as the specification does; stochastic keeps it. Both
# keep the sign of a negative number whose product with the multiplier underflows; the specification then has 0.0.
_SIGN_AND_SCALE = (
    "mov.b32 zero, 0x80008000; lop3.b32 both, both, signs, zero, 0xf8; fma.rn.bf16x2 $0, both, scales, zero;"
)
_NEAREST = tl.constexpr(
    "{ .reg .b32 both, scales, signs, one, zero; mov.b32 one, 0x3f803f80; mov.b32 zero, 0;"
    "cvt.rn.bf16x2.f32 both, $2, $1; cvt.rn.bf16x2.f32 scales, $4, $3; fma.rn.bf16x2 signs, $5, one, zero;"
    f"{_SIGN_AND_SCALE} }}"
)
_STOCHASTIC = tl.constexpr(
    "{ .reg .b32 both, powers, scales, signs, raise, zero; mov.b32 raise, 0xc280c280; mov.b32 signs, $7;"
    "cvt.rz.bf16x2.f32 both, $2, $1; cvt.rn.bf16x2.f32 powers, $4, $3; fma.rn.bf16x2 both, powers, raise, both;"
    f"cvt.rn.bf16x2.f32 scales, $6, $5; {_SIGN_AND_SCALE} }}"
)


@triton.jit
def quantized(x, multiplier, scale, sign_of, raise_by, STOCHASTIC: tl.constexpr):
    """E2M1 of x * multiplier, times scale, with the sign of a BF16 number; exact in BF16.

    Nearest; or stochastic: ``random_raise`` adds up to a spacing, and what is then below it is cut off by the
    conversion to BF16. One on the grid stays there.
    """
    if STOCHASTIC:
        magnitude, power = _magnitude(x, multiplier)
        raised = magnitude + power * raise_by
        if not _INTERPRETED:
            return tl.inline_asm_elementwise(
                _STOCHASTIC, "=r,f,f,f,f,f,f,r", [raised, power, scale, sign_of], tl.bfloat16, is_pure=True, pack=2
            )
        rounded = (raised.to(tl.int32, bitcast=True) & -0x10000).to(tl.float32, bitcast=True) - power * _RAISE
    else:
        rounded = to_e2m1(x, multiplier)
        if not _INTERPRETED:
            return tl.inline_asm_elementwise(
                _NEAREST, "=r,f,f,f,f,r", [rounded, scale, sign_of], tl.bfloat16, is_pure=True, pack=2
            )
    signed = sign_of.to(tl.float32) + (-0.0 if STOCHASTIC else 0.0)
    sign = signed.to(tl.int32, bitcast=True) & _SIGN
    return ((rounded * scale).to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def random_raise(words, i: tl.constexpr):
    """For row i of 16, from 4 words of random bits: 64 and a uniform odd number of 512ths of E2M1's spacing at 1."""
    word, at = words[i >> 2], i % 4
    if _INTERPRETED:
        return ((((word >> (at * 8)) & 0xFF) << 8) | _RAISE_BITS).to(tl.float32, bitcast=True)
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, $3;", "=f,r,r,r", [word, _RAISE_BITS, 0x7604 + 16 * at], tl.float32, is_pure=True, pack=1
    )


@triton.jit
def random_words(seed, stream, columns, group):
    """Four 32-bit words for each column: a byte for each of 16 rows."""
    zero = columns * 0
    return tl.philox(tl.load(seed), columns, zero + group, zero + stream, zero, n_rounds=_ROUNDS)
