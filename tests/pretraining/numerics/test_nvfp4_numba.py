"""The numba kernels against the specification."""

import itertools
from pathlib import Path

import numba
import pytest
import torch

from pretraining.numerics import nvfp4
from pretraining.numerics.nvfp4_numba import quantize, round_bf16
from pretraining.request.recipe.nvfp4_recipe import Rounding

CASES = torch.load(Path(__file__).parents[2] / "vectors" / "nvfp4_reference.pt")


def quantize_rows(x, seed=None):
    return quantize(x, Rounding(stochastic=seed is not None), seed=seed or 0)


def quantize_columns(x, rht=False, seed=None):
    return quantize(x, Rounding(rht=rht, stochastic=seed is not None), columns=True, seed=seed or 0)


def quantize_tiles(x):
    return quantize(x, Rounding((16, 16)))


def padded(x):
    return torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % 16))


def assert_same(operand, reference, transposed=False):
    """Bit for bit, signs of zeros included; any NaN equals any other."""
    values = reference.values.T.contiguous() if transposed else reference.values
    assert torch.equal(operand.values.nan_to_num(7.5).view(torch.int32), values.nan_to_num(7.5).view(torch.int32))
    scale = reference.tensor_scale
    scale = scale.T if transposed and scale.ndim == 2 else scale
    torch.testing.assert_close(torch.as_tensor(operand.scale).view(scale.shape), scale, rtol=0, atol=0, equal_nan=True)


def check_everything(x):
    bf16 = x.bfloat16()
    for by in ("", *nvfp4.ERRORS):
        tiles = Rounding((16, 16), four_over_six=by)
        assert_same(quantize(x, tiles), nvfp4.quantize(bf16, tiles))
        for rht, by_row in itertools.product((False, True), repeat=2):
            how = Rounding(rht=rht, four_over_six=by, by_row=by_row)
            assert_same(quantize(x, how), nvfp4.quantize(bf16, how.of_rows))
            reference = nvfp4.quantize(padded(bf16).T.contiguous(), how)
            assert_same(quantize(x, how, columns=True), reference, transposed=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_equals_transformer_engine(case):
    x, (dequantized, columns) = case["x"], (case["row_dequantized"], case["col_dequantized"])
    rows = quantize_tiles(x) if case["tile"] == (16, 16) else quantize_rows(x)
    assert torch.equal(rows.values * rows.scale, dequantized)
    if case["tile"] == (1, 16):
        operand = quantize_columns(x, rht=case["rht"])
        assert torch.equal((operand.values * operand.scale).T, columns)
    check_everything(x.float())


def test_equals_the_specification_for_any_shape_and_range():
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        rows, blocks = (int(torch.randint(1, n, (), generator=generator)) for n in (70, 12))
        x = torch.randn(rows, 16 * blocks, generator=generator)
        x *= torch.exp(3 * torch.randn(x.shape, generator=generator))
        check_everything(x * 10.0 ** float(torch.randint(-42, 30, (), generator=generator)))


def test_equals_the_specification_at_every_bf16_between_zero_and_six():
    halves = torch.arange(0x40C1, dtype=torch.int16).view(torch.bfloat16).float()
    x = torch.zeros(len(halves), 16)
    x[:, 0], x[:, 1], x[:, 2], x[:, 3] = 6.0, halves, -halves, -0.0  # block scale 448: the others are E2M1 units
    check_everything(x)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), -float("nan")])
def test_equals_the_specification_for_infinities_and_nans(bad):
    x = torch.randn(19, 64, generator=torch.Generator().manual_seed(1))
    x[17, 30] = bad
    check_everything(x)


def test_zeros():
    check_everything(torch.zeros(17, 32))
    check_everything(torch.full((17, 32), -0.0))


def test_takes_views_and_bf16():
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(2))
    assert torch.equal(quantize_rows(x.T).values, quantize_rows(x.T.contiguous()).values)
    assert torch.equal(quantize_columns(x.bfloat16()).values, quantize_columns(x).values)


def test_refuses():
    with pytest.raises(ValueError, match="divisible by 16, found 24"):
        quantize_rows(torch.zeros(4, 24))
    with pytest.raises(ValueError, match="matrix"):
        quantize_columns(torch.zeros(4, 4, 16))


@pytest.mark.parametrize("made", [quantize_rows, quantize_columns])
def test_stochastic_rounding_is_unbiased(made):
    trials = 32_000
    magnitudes = torch.tensor([6.0, 0.1, 0.25, 0.5, 0.7, 1.0, 1.2, 1.75, 1.9, 2.3, 2.5, 3.0, 3.6, 4.2, 5.0, 5.9])
    row = magnitudes.bfloat16().float() * torch.tensor([1.0, -1.0]).repeat(8)
    x = row.expand(trials, 16)
    operand = made(x if made is quantize_rows else x.T, seed=1)
    units = (operand.values if made is quantize_rows else operand.values.T).double() / 448
    assert torch.isin(units.abs().float(), torch.tensor(nvfp4.E2M1)).all()
    error, deviation = units.mean(0) - row.double(), units.std(0) / trials**0.5
    assert (error.abs() <= 4 * deviation + 1e-7).all(), error / deviation


def test_stochastic_rounding_is_independent_between_elements_and_seeds():
    x = torch.full((1024, 256), 0.25)
    x[:, ::16] = 6.0
    up = [(quantize_rows(x, seed=seed).values[:, 1::2] > 0).double().flatten() for seed in (0, 1, 2**62)]
    for a, b in ((up[0], up[1]), (up[0], up[2]), (up[0], up[0].roll(1)), (up[0], up[0].roll(128))):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / a.numel() ** 0.5


def test_stochastic_rounding_clips_and_keeps_scales():
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    nearest, drawn = quantize_rows(x), quantize_rows(x, seed=4)
    assert nearest.scale == drawn.scale
    grid = nvfp4.quantize(x.bfloat16())
    units = drawn.values / grid.scales.float().repeat_interleave(16, dim=1)
    assert torch.isin(units.abs(), torch.tensor(nvfp4.E2M1)).all() and not torch.equal(nearest.values, drawn.values)


def test_results_do_not_depend_on_the_thread_count():
    x = torch.randn(333, 208, generator=torch.Generator().manual_seed(5))

    def everything():
        operands = [quantize_rows(x, seed=6), quantize_columns(x, rht=True, seed=7), quantize_tiles(x)]
        return [*(o.values for o in operands), round_bf16(x)]

    threads, several = numba.get_num_threads(), everything()
    numba.set_num_threads(1)
    try:
        alone = everything()
    finally:
        numba.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(several, alone, strict=True))


def test_round_bf16_equals_torch():
    generator = torch.Generator().manual_seed(8)
    x = torch.randint(-(2**31), 2**31 - 1, (1 << 20,), generator=generator).int().view(torch.float32)
    torch.testing.assert_close(round_bf16(x), x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)
    y = torch.randn(5, 7, 11)
    assert torch.equal(round_bf16(y.permute(2, 0, 1)), y.permute(2, 0, 1).bfloat16().float())
    assert torch.equal(round_bf16(y, 0.3), (y * 0.3).bfloat16().float())
    expected = y.bfloat16().float()
    assert round_bf16(y, inplace=True).data_ptr() == y.data_ptr() and torch.equal(y, expected)
