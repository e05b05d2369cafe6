"""Where two quantizations of one matrix differ, and whether a known cause explains all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pretraining.numerics import nvfp4
from pretraining.numerics.nvfp4 import E2M1_MAX, E4M3_MAX, QuantizedMatrix
from pretraining.request.recipe.nvfp4_recipe import Rounding

# The orders in which a block's scale is computed. They are equal but for roundings of float32, which now and then
# carry over to E4M3. Read in Transformer Engine's sources.
ORDERS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "amax / 6 * encode": (
        "Transformer Engine before 2.14, but for one kernel",
        lambda amax, encode: amax / torch.tensor(E2M1_MAX) * encode,
    ),
    "amax * (1 / 6) * encode": (
        "Transformer Engine's kernel without a transpose before 2.14",
        lambda amax, encode: amax * (1 / E2M1_MAX) * encode,
    ),
    "amax * (encode * (1 / 6))": (
        "Transformer Engine from 2.14",
        lambda amax, encode: amax * (encode * (1 / E2M1_MAX)),
    ),
}
BITS = {1: torch.uint8, 4: torch.int32}


@dataclass(frozen=True)
class Difference:
    """What differs of one part of a quantized matrix."""

    part: str  # "amax", "block scales", "codes" or "kernel values"
    count: int  # elements that differ
    of: int  # all of them
    index: tuple[int, ...]  # row and column of the first, in the side's own matrix
    native: str  # its value there, with its bits
    ours: str

    def __str__(self) -> str:
        where = "" if self.of == 1 else f" at {list(self.index)}, {self.count} of {self.of}"
        return f"{self.part}{where}: {self.native} instead of {self.ours}"


def differences(native: QuantizedMatrix, ours: QuantizedMatrix) -> list[Difference]:
    """Every part whose bits differ, in the order in which one leads to the next; the sign of a zero is none."""
    codes = nvfp4.unpack(native.codes), nvfp4.unpack(ours.codes)
    unequal = (codes[0] != codes[1]) & ~_both_zero(*codes)
    parts = (
        ("amax", native.amax, ours.amax, _bits(native.amax) != _bits(ours.amax)),
        ("block scales", native.scales, ours.scales, _bits(native.scales) != _bits(ours.scales)),
        ("codes", *codes, unequal),
    )
    return [found for part in parts if (found := first_difference(*part))]


def first_difference(part: str, native: Tensor, ours: Tensor, unequal: Tensor) -> Difference | None:
    """The first of the places that are `unequal`, None where there is none."""
    if not unequal.any():
        return None
    index = tuple(unequal.nonzero()[0].tolist())
    found, expected = (_shown(part, each[index]) for each in (native, ours))
    return Difference(part, int(unequal.sum()), unequal.numel(), index, found, expected)


def zero_signs(native: QuantizedMatrix, ours: QuantizedMatrix) -> int:
    """Zeros that have another sign. No product can tell them apart."""
    codes = nvfp4.unpack(native.codes), nvfp4.unpack(ours.codes)
    return int(((codes[0] != codes[1]) & _both_zero(*codes)).sum())


def cause_of(native: QuantizedMatrix, matrix: Tensor, mode: Rounding) -> str:
    """A known cause that explains every difference, "" where there is none.

    Args:
        native: what was found.
        matrix: that this side quantizes, before the Hadamard transform.
        mode: its own; `rht` is False for rows.
    """
    for order, (whose, _) in ORDERS.items():
        if not differences(native, _in_order(matrix, mode, order)):
            return f"block scale computed as {order}: {whose}"
        if mode.rht and not differences(native, _in_order(matrix.float(), mode, order)):
            return "the Hadamard transform's sums are not rounded to BF16"
    return ""


def _in_order(matrix: Tensor, mode: Rounding, order: str) -> QuantizedMatrix:
    """The specification with block scales computed in another order."""
    x = (nvfp4.random_hadamard_transform(matrix) if mode.rht else matrix).float()
    amax = x.abs().amax().reshape(1)
    encode = nvfp4.encode_scale(amax)
    raw = ORDERS[order][1](nvfp4.block_amax(x, mode.tile[0]), encode)
    scales = raw.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
    return QuantizedMatrix(nvfp4.pack(nvfp4.nearest_codes(nvfp4.scale_elements(x, scales, encode))), scales, amax)


def _both_zero(a: Tensor, b: Tensor) -> Tensor:
    return ((a & 7) == 0) & ((b & 7) == 0)


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(BITS[x.element_size()])


def _shown(part: str, value: Tensor) -> str:
    if part == "codes":
        return f"{nvfp4.decode(value.reshape(1)).item():g} (code {int(value)})"
    width = 2 * value.element_size()
    bits = int(_bits(value.reshape(1))) & (16**width - 1) if value.element_size() in BITS else None
    number = f"{value.float().item():.9g}"
    return number if bits is None else f"{number} (0x{bits:0{width}x})"
