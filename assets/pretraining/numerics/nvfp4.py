"""NVFP4 in plain PyTorch: the specification that every fast version must equal bit for bit.

An NVFP4 tensor is 4-bit E2M1 codes, one E4M3 block scale for 16 of them, and one FP32 amax for the whole tensor
(arXiv 2509.25149, section 2 and appendix B), or one for each row. The arithmetic below is that of Transformer Engine's
reference quantizer (``NVFP4QuantizerRef``), step by step in float32:

1. ``amax`` is the largest magnitude of the tensor; the tensor is first scaled by ``encode = 2688 / amax``
   (2688 = 448 * 6, the largest E4M3 times the largest E2M1), so that every block scale fits E4M3.
2. A block's scale is its own amax / 6 * encode, at most 448, rounded to E4M3.
3. An element is multiplied by ``1 / (block scale / encode)``, clipped to [-6, 6] and rounded to E2M1.

Both roundings are to nearest, ties to even. A code times its block scale has at most six significant bits, so it is
exact in BF16: a product of two NVFP4 tensors is one BF16 (or float32) matrix product of their ``values`` with float32
accumulation, times the two ``tensor_scale``.

Special values:

* An all-zero tensor or block has codes, scales and values of zero. -0.0 becomes code 0, a negative that rounds to zero
  becomes code 8 (-0).
* Where ``encode`` or a block's multiplier would overflow, the largest finite float32 takes its place. So magnitudes
  below about 1e-38 round too low, and subnormals to zero. A block whose scale rounds to zero has the value zero,
  whatever its codes.
* An infinity gives encode = 1 and an infinite ``tensor_scale``: no dequantized element is finite.
* A NaN anywhere makes every dequantized element NaN. So neither can vanish in a quantization unnoticed.

By rows, all of this is said of each row.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pretraining.request.recipe.nvfp4_recipe import Rounding

BLOCK = 16
E2M1_MAX = 6.0
E4M3_MAX = 448.0
FOUR_OVER_SIX_MAX = 256.0  # the largest block scale that four over six scales a tensor for: 1.5 times it is E4M3 too
ERRORS = ("mae", "mse")  # by which four over six chooses: the mean absolute error of a block, or the mean squared one
FP32_MAX = torch.finfo(torch.float32).max
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# The sign vector of Transformer Engine's random Hadamard transform. It is fixed, so that both operands of the
# weight-gradient product, quantized at different times, are rotated alike and the rotations cancel.
RHT_SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)

NEAREST = Rounding()


class Operand(NamedTuple):
    """A quantized matrix as a product wants it, from a fast version."""

    values: torch.Tensor  # as of ``QuantizedMatrix``, in the layout of the source; float32 on a CPU, bfloat16 on a GPU
    # Its ``tensor_scale``: a number on a CPU, float32 of shape (1,) on a GPU; by rows, what the values are multiplied
    # with in their layout: float32 of shape (rows, 1), or of columns (1, K).
    scale: torch.Tensor | float


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantized matrix of shape (rows, K), blocks of 16 along K."""

    codes: torch.Tensor  # uint8 of shape (rows, K / 2): two E2M1 codes a byte, the even column in the low nibble
    scales: torch.Tensor  # float8_e4m3fn of shape (rows, K / 16); the scale of a 16x16 tile is repeated over its rows
    amax: torch.Tensor  # float32, the largest magnitude before quantization: of shape (1,), or by rows (rows, 1)
    scale_max: float = E4M3_MAX  # the block scale that amax was scaled for

    @property
    def values(self) -> torch.Tensor:
        """Code value times block scale, float32 of shape (rows, K); every one is exact in BF16."""
        return decode(unpack(self.codes)) * self.scales.float().repeat_interleave(BLOCK, dim=1)

    @property
    def tensor_scale(self) -> torch.Tensor:
        """What ``values`` must be multiplied with, float32 of amax's shape."""
        return _divide(self.amax, self.scale_max * E2M1_MAX)

    def dequantize(self) -> torch.Tensor:
        """The represented matrix, float32 of shape (rows, K)."""
        return self.values * self.tensor_scale


def quantize(
    x: torch.Tensor, how: Rounding = NEAREST, *, generator: torch.Generator | None = None, folded: bool = False
) -> QuantizedMatrix:
    """Quantize a matrix to NVFP4.

    Args:
        x: float32 or bfloat16 of shape (rows, K), K divisible by 16. For blocks along the rows pass the transpose.
        how: ``rht`` is applied where it is set: leave it out for blocks along a row. Rows that do not fill the last
            16x16 tile are padded with zeros, which changes no scale; the result has the given rows. ``stochastic`` is
            of E2M1: block scales are rounded to nearest all the same, and elements that lie above 6 after scaling
            (their block scale was rounded down) clip: their mean is 6. By ``four_over_six`` a tensor is scaled to 256 *
            6 in place of 2688; a block's largest element becomes 6, or 4 with 1.5 times the scale, whichever gives the
            block the smaller error, 6 where they are alike. Sources: arXiv 2512.02010, section 3; Transformer Engine
            2.20, ``NVFP4QuantizerRef._quantize_blockwise_4over6_reference``, whose order of float32 sums this keeps.
            ``by_row`` is its ``row_scaled_nvfp4``.
        generator: source of uniform numbers where it is stochastic, on x's device; torch's default when None.
        folded: a block's scale is its amax * (encode / 6), as in Transformer Engine from 2.14, which now and then
            rounds otherwise than amax / 6 * encode. Four over six never folds.

    Raises:
        ValueError: x is no matrix, K is not divisible by 16, or there is no such rounding.
    """
    require_matrix(x)
    require_rounding(how)
    x = (random_hadamard_transform(x) if how.rht else x).float()
    if how.by_row:
        amax = x.abs().amax(dim=1, keepdim=True) if x.numel() else x.new_zeros(len(x), 1)
    else:
        amax = x.abs().amax().reshape(1) if x.numel() else x.new_zeros(1)
    scale_max = FOUR_OVER_SIX_MAX if how.four_over_six else E4M3_MAX
    encode = encode_scale(amax, scale_max)
    scales = block_scales(x, how, amax, folded=folded)
    scaled = scale_elements(x, scales, encode)
    codes = _stochastic_codes(scaled, generator) if how.stochastic else nearest_codes(scaled)
    return QuantizedMatrix(pack(codes), scales, amax, scale_max)


def random_hadamard_transform(x: torch.Tensor) -> torch.Tensor:
    """Rotate every 16 elements along the last axis: signs, then the orthonormal Hadamard matrix.

    The sums are float32, taken as a butterfly over strides 1, 2, 4, 8 (in any order they are exact for BF16 inputs
    that lie within a factor of about 2**12); the result has x's dtype. Source: arXiv 2509.25149, section 4.2;
    Transformer Engine's ``NVFP4QuantizerRef._apply_rht``.

    Raises:
        ValueError: the last axis is not divisible by 16.
    """
    _require_blocks(x)
    y = x.float().reshape(-1, BLOCK) * (_on_device(RHT_SIGNS, x.device) * 0.25)
    for stride in (1, 2, 4, 8):
        low, high = y.view(-1, BLOCK // (2 * stride), 2, stride).unbind(2)
        y = torch.stack((low + high, low - high), dim=2).view(-1, BLOCK)
    return y.to(x.dtype).view(x.shape)


def encode_scale(amax: torch.Tensor, scale_max: float = E4M3_MAX) -> torch.Tensor:
    """What a tensor is first scaled by, float32: 6 * scale_max / amax, finite; 1 where amax is infinite."""
    encode = _divide(scale_max * E2M1_MAX, amax).clamp(max=FP32_MAX)
    return torch.where(encode == 0, 1.0, encode)


def block_amax(x: torch.Tensor, tile_rows: int) -> torch.Tensor:
    """Largest magnitude of each tile of ``tile_rows`` x 16, repeated over its rows: shape (rows, K / 16)."""
    rows, columns = x.shape
    amax = x.abs().view(rows, columns // BLOCK, BLOCK).amax(dim=-1)
    if tile_rows == 1:
        return amax
    amax = torch.nn.functional.pad(amax, (0, 0, 0, -rows % tile_rows))
    amax = amax.view(-1, tile_rows, columns // BLOCK).amax(dim=1)
    return amax.repeat_interleave(tile_rows, dim=0)[:rows]


def block_scales(x: torch.Tensor, how: Rounding, amax: torch.Tensor, *, folded: bool = False) -> torch.Tensor:
    """The block scales of whole blocks of a tensor: float8_e4m3fn of shape (rows, K / 16).

    Args:
        x: float32 of shape (rows, K), rotated where ``how`` says so.
        amax: see ``QuantizedMatrix``.
        how, folded: see ``quantize``.
    """
    encode = encode_scale(amax, FOUR_OVER_SIX_MAX if how.four_over_six else E4M3_MAX)
    of_blocks = block_amax(x, how.tile[0])
    folded &= not how.four_over_six
    raw = of_blocks * (encode * (1 / E2M1_MAX)) if folded else _divide(of_blocks, E2M1_MAX) * encode
    scales = _e4m3(raw)
    if how.four_over_six:
        wider = _e4m3(raw * 1.5)
        errors = (_block_errors(x, each, amax, how) for each in (wider, scales))
        scales = torch.where(torch.lt(*errors), wider, scales)
    return scales


def scale_elements(x: torch.Tensor, scales: torch.Tensor, encode: torch.Tensor) -> torch.Tensor:
    """What is rounded to E2M1: each element over its block's scale, clipped to [-6, 6], float32 of x's shape."""
    return unclipped(x, scales, encode).clamp(-E2M1_MAX, E2M1_MAX)


def unclipped(x: torch.Tensor, scales: torch.Tensor, encode: torch.Tensor) -> torch.Tensor:
    """Each element over its block's scale, float32 of x's shape; what lies beyond 6 will be clipped."""
    multiplier = (1.0 / (scales.float() * (1.0 / encode))).clamp(max=FP32_MAX)
    return x * multiplier.repeat_interleave(BLOCK, dim=1)


def nearest_codes(scaled: torch.Tensor) -> torch.Tensor:
    """E2M1 codes 0 to 15 of elements in [-6, 6]; at a midpoint the even code."""
    magnitude = scaled.abs()
    up_from_even = sum((magnitude > midpoint).int() for midpoint in (0.25, 1.25, 2.5, 5.0))
    up_from_odd = sum((magnitude >= midpoint).int() for midpoint in (0.75, 1.75, 3.5))
    return up_from_even + up_from_odd + 8 * (scaled < 0)


def neighbours(scaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of elements in [-6, 6]: the code, without its sign, of the E2M1 value next to them towards zero (their own where
    they are one), and their distance from it, 0 to below 1, in steps to the next value."""
    magnitude = scaled.abs()
    below = sum((magnitude >= element).int() for element in E2M1[1:])
    grid = _on_device((*E2M1, 8.0), scaled.device)
    floor, ceiling = grid[below], grid[below + 1]
    return below, (magnitude - floor) / (ceiling - floor)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0 to 15 of shape (rows, K), two a byte, the even column in the low nibble: uint8 of shape (rows, K / 2)."""
    return (codes[:, ::2] + 16 * codes[:, 1::2]).to(torch.uint8)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of ``pack``: uint8 of shape (rows, K)."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(1)


def decode(codes: torch.Tensor) -> torch.Tensor:
    """The E2M1 values of codes 0 to 15, float32."""
    grid = _on_device(E2M1, codes.device)
    return torch.cat((grid, -grid))[codes.int()]


def require_matrix(x: torch.Tensor, *, of_blocks: bool = True) -> None:
    """Raise ValueError unless x is a matrix, and its last axis divisible by 16 where it is cut into blocks."""
    if x.ndim != 2:
        raise ValueError(f"NVFP4 quantizes a matrix, found shape {tuple(x.shape)}; flatten the leading dimensions")
    if of_blocks:
        _require_blocks(x)


def require_rounding(how: Rounding) -> None:
    """Raise ValueError for a tile that is neither 1x16 nor 16x16, or what it, or four over six, does not go with."""
    if how.tile not in ((1, BLOCK), (BLOCK, BLOCK)):
        raise ValueError(f"NVFP4 tiles are (1, 16) and (16, 16), found {how.tile}")
    if how.by_row and how.is_own_transpose:
        raise ValueError(f"a row has a scale of its own only where blocks are 1x16, found {how.name}")
    if how.four_over_six and (how.stochastic or how.four_over_six not in ERRORS):
        raise ValueError(f"four over six chooses by {' or '.join(ERRORS)} and rounds to nearest, found {how.name}")


def _require_blocks(x: torch.Tensor) -> None:
    if x.shape[-1] % BLOCK:
        raise ValueError(
            f"NVFP4 needs a last axis divisible by {BLOCK}, found {x.shape[-1]} in shape {tuple(x.shape)}; "
            "choose dimensions divisible by 16, or pad with zeros (a zero changes no product)"
        )


def _e4m3(scales: torch.Tensor) -> torch.Tensor:
    return scales.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)


def _block_errors(x: torch.Tensor, scales: torch.Tensor, amax: torch.Tensor, how: Rounding) -> torch.Tensor:
    """How far each block lies from x with these scales, repeated over its rows: float32 of shape (rows, K / 16).

    Sums run from a row's first element to its sixteenth, and those of a tile's rows in a tree.
    """
    rounded = decode(nearest_codes(scale_elements(x, scales, encode_scale(amax, FOUR_OVER_SIX_MAX))))
    values = rounded * scales.float().repeat_interleave(BLOCK, dim=1)
    apart = _divide(values * amax, FOUR_OVER_SIX_MAX * E2M1_MAX) - x
    errors = sum((apart.square() if how.four_over_six == "mse" else apart.abs()).view(*scales.shape, BLOCK).unbind(-1))
    tile_rows = how.tile[0]
    if tile_rows == 1:
        return errors
    tiles = torch.nn.functional.pad(errors, (0, 0, 0, -len(errors) % tile_rows)).view(-1, tile_rows, scales.shape[1])
    while tiles.shape[1] > 1:
        tiles = sum(tiles.chunk(2, dim=1))
    return tiles.expand(-1, tile_rows, -1).flatten(0, 1)[: len(x)]


@functools.cache
def _on_device(numbers: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Copied there once: each copy waits for the GPU."""
    return torch.tensor(numbers, device=device)


def _divide(a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
    """a / b rounded once. With a number on either side PyTorch may multiply by a reciprocal, which rounds twice.

    The number is made on the device: copying it there would wait for the GPU.
    """
    a = a if isinstance(a, torch.Tensor) else b.new_full((), a)
    return a / (b if isinstance(b, torch.Tensor) else a.new_full((), b))


def _stochastic_codes(scaled: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """E2M1 codes: the neighbour nearer to zero, or, with the probability of the distance to it, the other one."""
    below, distance = neighbours(scaled)
    uniform = torch.rand(scaled.shape, generator=generator, device=scaled.device)
    return below + (uniform < distance).int() + 8 * (scaled < 0)
