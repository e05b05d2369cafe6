"""Sizes as a person reads them, the same everywhere: GB are 1e9 bytes. Standard library only."""

from __future__ import annotations

_COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def gigabytes(size: float, digits: int = 0) -> str:
    """So many bytes as "80 GB", or "1,080.25 GB"."""
    return f"{size / 1e9:,.{digits}f} GB"


def amount(number: float) -> str:
    """A count of parameters or tokens in three digits: "8.03B", "492k"."""
    return next((f"{number / size:.3g}{letter}" for size, letter in _COUNTS if number >= size), f"{number:g}")
