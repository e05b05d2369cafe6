"""Sizes in words."""

import pytest

from pretraining import units


@pytest.mark.parametrize(
    ("size", "digits", "words"), [(80e9, 0, "80 GB"), (1.08025e12, 2, "1,080.25 GB"), (2**30, 1, "1.1 GB")]
)
def test_gigabytes(size: float, digits: int, words: str) -> None:
    assert units.gigabytes(size, digits) == words


@pytest.mark.parametrize(
    ("number", "words"), [(8_030_261_248, "8.03B"), (853_376, "853k"), (15.6e12, "15.6T"), (512, "512"), (0, "0")]
)
def test_amount(number: float, words: str) -> None:
    assert units.amount(number) == words
