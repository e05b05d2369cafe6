"""The specification against Transformer Engine's reference quantizer, and what the vectors do not cover."""

from pathlib import Path

import pytest
import torch

from pretraining.numerics import nvfp4
from pretraining.numerics.nvfp4 import E2M1, RHT_SIGNS, random_hadamard_transform
from pretraining.request.recipe.nvfp4_recipe import Rounding

VECTORS = Path(__file__).parents[2] / "vectors"
CASES = torch.load(VECTORS / "nvfp4_reference.pt")
FOUR_OVER_SIX = torch.load(VECTORS / "nvfp4_four_over_six.pt")  # of Transformer Engine 2.20's reference, bound 256

BY_ROW = torch.load(VECTORS / "nvfp4_by_row.pt")  # of the same, with `row_scaled_nvfp4`


def quantize(x, generator=None, **how):
    return nvfp4.quantize(x, Rounding(**how), generator=generator)


def bits(x):
    return x.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("side", ["row", "col"])
def test_equals_transformer_engine(case, side):
    x, rht = (case["x"], False) if side == "row" else (case["x"].T.contiguous(), case["rht"])
    q = quantize(x, tile=case["tile"], rht=rht)
    assert q.scales.dtype == torch.float8_e4m3fn and q.amax.shape == (1,)
    assert torch.equal(q.codes, case[f"{side}_codes"])
    assert torch.equal(bits(q.scales), case[f"{side}_scales"])
    assert torch.equal(q.amax, case[f"{side}_amax"])
    assert torch.equal(bits(q.dequantize()), bits(case[f"{side}_dequantized"]))


@pytest.mark.parametrize("case", FOUR_OVER_SIX, ids=lambda case: f"{case['tile']}-{case['four_over_six']}")
def test_four_over_six_equals_transformer_engine(case):
    q = quantize(case["x"], tile=case["tile"], four_over_six=case["four_over_six"])
    assert torch.equal(q.codes, case["codes"]) and torch.equal(bits(q.scales), case["scales"])
    assert torch.equal(q.tensor_scale, case["amax"] / 1536)


@pytest.mark.parametrize("case", BY_ROW, ids=lambda case: f"rht={case['rht']}-{case['four_over_six']}")
@pytest.mark.parametrize("side", ["row", "col"])
def test_scales_by_row_equal_transformer_engine(case, side):
    x, rht = (case["x"], False) if side == "row" else (case["x"].T.contiguous(), case["rht"])
    q = nvfp4.quantize(x, Rounding(rht=rht, four_over_six=case["four_over_six"], by_row=True), folded=True)
    assert torch.equal(q.codes, case[f"{side}_codes"]) and torch.equal(bits(q.scales), case[f"{side}_scales"])
    assert torch.equal(q.amax[:, 0], case[f"{side}_amax"])


def test_each_row_is_scaled_as_if_it_were_alone():
    x = torch.randn(24, 64, generator=torch.Generator().manual_seed(9))
    x[2, 5], x[3], x[4] = float("inf"), 0.0, x[4] * 1e-6
    q, alone = quantize(x, by_row=True), [quantize(row[None]) for row in x]
    assert torch.equal(q.codes, torch.cat([each.codes for each in alone]))
    assert torch.equal(q.tensor_scale, torch.stack([each.tensor_scale for each in alone]))
    assert not q.dequantize()[2].isfinite().any() and q.dequantize()[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize(("by", "power"), [("mae", 1), ("mse", 2)])
def test_four_over_six_takes_the_better_of_two_scales_for_each_block(by, power):
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(6))
    x[0, 0] = 24.0  # so that no block scale is small, and its own rounding decides little
    error = (quantize(x, four_over_six=by).dequantize() - x).abs().pow(power).view(64, 16, 16).sum(-1)
    errors = []
    for most in (6, 4):
        scales = (x.abs().view(64, 16, 16).amax(-1) / most * (1536 / 24)).to(torch.float8_e4m3fn).float()[..., None]
        units = x.view(64, 16, 16) / (scales * 24 / 1536)
        rounded = torch.tensor(E2M1)[(units.abs()[..., None] - torch.tensor(E2M1)).abs().argmin(-1)] * units.sign()
        errors.append(((rounded - units) * scales * 24 / 1536).abs().pow(power).sum(-1))
    assert (error <= torch.minimum(*errors) * 1.0001).all()
    assert 0.2 < (errors[1] < errors[0]).float().mean() < 0.8


@pytest.mark.parametrize("tile", [(1, 16), (16, 16)])
@pytest.mark.parametrize("stochastic", [False, True])
def test_zeros_stay_zero(tile, stochastic):
    q = quantize(torch.tensor([[0.0, -0.0] * 16] * 3), tile=tile, stochastic=stochastic)
    assert not q.codes.any() and not bits(q.scales).any() and not q.amax
    assert not bits(q.dequantize()).any()


def test_zero_block_beside_a_full_one():
    x = torch.zeros(1, 32)
    x[0, 16:] = torch.linspace(-3, 3, 16)
    q = quantize(x)
    assert not q.dequantize()[0, :16].any() and q.scales[0, 0].float() == 0 and q.scales[0, 1].float() == 448


@pytest.mark.parametrize(("magnitude", "code"), [(2e-38, 7), (1e-38, 5), (1e-40, 0)])
def test_tiny_tensors_use_finite_multipliers(magnitude, code):
    # encode = 2688 / amax overflows; at 2e-38 its inverse times the block scale still has a finite inverse, below not.
    q = quantize(torch.full((1, 16), -magnitude))
    assert (q.codes & 0xF == code | 8).all() and (q.codes >> 4 == code | 8).all()
    assert q.dequantize().isfinite().all()
    assert torch.equal(quantize(torch.full((1, 16), 1e-45)).dequantize(), torch.zeros(1, 16))


def test_block_far_below_amax_vanishes():
    x = torch.ones(1, 32)
    x[0, 16:] = 1e-9
    assert not quantize(x).dequantize()[0, 16:].any()


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("rht", [False, True])
@pytest.mark.parametrize("tile", [(1, 16), (16, 16)])
def test_nothing_finite_survives_an_infinity_or_a_nan(bad, rht, tile):
    x = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    x[5, 7] = bad
    q = quantize(x, tile=tile, rht=rht)
    assert not q.dequantize().isfinite().any()
    if bad != bad:
        assert q.dequantize().isnan().all()


def test_infinity_saturates_its_codes():
    x = torch.ones(1, 16)
    x[0, 3] = float("-inf")
    q = quantize(x)
    assert q.codes[0, 1] >> 4 == 15 and q.scales[0, 0].float() == 448 and q.tensor_scale == float("inf")


def test_rows_that_do_not_fill_a_tile():
    x = torch.randn(21, 48, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([x, torch.zeros(11, 48)])
    q, whole = quantize(x, tile=(16, 16)), quantize(padded, tile=(16, 16))
    assert q.codes.shape == (21, 24) and q.scales.shape == (21, 3)
    assert torch.equal(q.codes, whole.codes[:21]) and torch.equal(bits(q.scales), bits(whole.scales[:21]))


def test_two_d_tiles_are_symmetric():
    w = torch.randn(48, 32, generator=torch.Generator().manual_seed(2))
    assert torch.equal(quantize(w, tile=(16, 16)).values.T, quantize(w.T.contiguous(), tile=(16, 16)).values)


@pytest.mark.parametrize(
    ("shape", "kwargs", "message"),
    [
        ((4, 24), {}, r"divisible by 16, found 24"),
        ((4, 4, 16), {}, "matrix"),
        ((4, 16), {"tile": (2, 16)}, "tiles"),
        ((4, 16), {"tile": (16, 16), "by_row": True}, "only where blocks are 1x16, found 16x16 by row"),
        ((4, 16), {"four_over_six": "max"}, "mae or mse .* 4over6 max"),
        ((4, 16), {"four_over_six": "mse", "stochastic": True}, "to nearest, found 1x16 stochastic 4over6 mse"),
    ],
)
def test_refuses(shape, kwargs, message):
    with pytest.raises(ValueError, match=message):
        quantize(torch.zeros(shape), **kwargs)


def test_values_are_exact_in_bf16():
    values = quantize(torch.randn(64, 256, generator=torch.Generator().manual_seed(3))).values
    assert torch.equal(values.bfloat16().float(), values)


def test_hadamard_transform_is_the_signed_orthonormal_matrix():
    h = torch.ones(1, 1)
    while len(h) < 16:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    matrix = torch.diag(torch.tensor(RHT_SIGNS, dtype=torch.float32)) @ h / 4
    assert torch.equal(random_hadamard_transform(torch.eye(16)), matrix)
    assert torch.equal(matrix @ matrix.T, torch.eye(16))
    x = torch.randn(8, 64, dtype=torch.bfloat16)
    assert random_hadamard_transform(x).dtype == torch.bfloat16


def test_hadamard_transform_cancels_in_a_product():
    a, b = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(4)).unbind()
    rotated = random_hadamard_transform(a) @ random_hadamard_transform(b).T
    torch.testing.assert_close(rotated, a @ b.T, rtol=1e-5, atol=1e-5)


def test_stochastic_rounding_is_unbiased_up_to_six_and_clips_above():
    trials = 20_000
    # The first element fixes the block scale at 448 and the multiplier at 1/encode: the others are in E2M1 units.
    magnitudes = torch.tensor([6.0, 0.1, 0.25, 0.5, 0.7, 1.0, 1.2, 1.75, 1.9, 2.3, 2.5, 3.0, 3.6, 4.2, 5.0, 5.9])
    row = magnitudes * torch.tensor([1.0, -1.0]).repeat(8)
    q = quantize(row.expand(trials, 16).contiguous(), stochastic=True, generator=torch.Generator().manual_seed(5))
    units = q.values.double() / 448
    neighbours = torch.tensor(E2M1)
    assert torch.isin(units.abs().float(), neighbours).all()
    error = units.mean(0) - row.double()
    deviation = units.std(0) / trials**0.5
    assert (error.abs() <= 4 * deviation + 1e-7).all(), error / deviation
    exact = torch.isin(magnitudes, neighbours)
    assert (units.std(0)[exact] == 0).all() and (units.std(0)[~exact] > 0).all()


def test_stochastic_rounding_clips_where_the_scale_was_rounded_down():
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 16] = 2688.0, 16.9 * 6  # encode is 1, and E4M3 has no number between 16 and 18
    q = quantize(x.expand(1000, 32).contiguous(), stochastic=True)
    assert (q.scales[:, 1].float() == 16).all() and (q.dequantize()[:, 16] == 96).all()


def test_seed_reproduces():
    x = torch.randn(32, 64)
    draw = [quantize(x, stochastic=True, generator=torch.Generator().manual_seed(s)).codes for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
