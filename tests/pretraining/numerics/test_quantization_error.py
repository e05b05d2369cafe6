"""What is measured of a product's rounding, against the specification and against the products themselves."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pretraining.numerics import nvfp4
from pretraining.numerics.cpu_layers import NVFP4, PreparedWeight, linear
from pretraining.numerics.measured_layers import Measured, measure
from pretraining.numerics.nvfp4_numba import quantize
from pretraining.numerics.quantization_error import SAMPLE, Layer, Measurement, findings, sampled
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe, Rounding

LAYER = Layer(2, "fc1", 96 * 64)
TOKENS, INPUTS, OUTPUTS = 112, 64, 96  # all of it is sampled


def matrix(rows: int = TOKENS, columns: int = INPUTS, seed: int = 0) -> torch.Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return (x * 2 ** (4 * torch.randn(rows, 1, generator=torch.Generator().manual_seed(seed + 1)))).bfloat16().float()


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        Rounding(),
        Rounding(rht=True),
        Rounding((16, 16)),
        Rounding(four_over_six="mse"),
        Rounding((16, 16), False, False, "mae"),
        Rounding(rht=True, by_row=True),
    ],
    ids=lambda how: how.name,
)
def test_an_operands_figures_are_the_specifications(how: Rounding, columns: bool) -> None:
    x = matrix()
    sample = sampled(x, quantize(x, how, columns=columns), how, columns=columns)
    how = how if columns else how.of_rows
    exact = x.T.contiguous() if columns else x
    exact = nvfp4.random_hadamard_transform(exact.bfloat16()).float() if how.rht else exact
    spec = nvfp4.quantize(exact, how.of_rows)
    encode = nvfp4.encode_scale(spec.amax, spec.scale_max)
    clipped = (nvfp4.unclipped(exact, spec.scales, encode).abs() > 6 * (1 + 1e-6)) & (spec.values != 0)
    zeroed = (spec.values == 0) & (exact != 0)
    error, norm, *counts = sample.sums.tolist()
    assert math.sqrt(error / norm) == pytest.approx(relative(spec.dequantize(), exact), rel=1e-4)
    assert counts == [int(clipped.sum()), int(zeroed.sum()), x.numel()]
    assert 0 < counts[0] < x.numel() / 10 and counts[1] > 0


def test_a_block_whose_scale_is_zero_is_zeroed_and_not_clipped() -> None:
    x = torch.ones(16, 32)
    x[:, 16:] = 1e-6
    assert sampled(x, quantize(x), Rounding()).sums.tolist()[2:] == [0, 256, 512]


def test_columns_are_padded_as_their_quantization_pads_them() -> None:
    x, how = matrix(rows=40), Rounding(rht=True)
    sample = sampled(x, quantize(x, how, columns=True), how, columns=True)
    assert sample.exact.shape == sample.rounded.shape == (INPUTS, 48)
    assert relative(sample.rounded, sample.exact) < 0.2


def test_a_large_matrix_is_measured_by_some_of_it() -> None:
    x = torch.randn(2048, 512, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    whole = nvfp4.quantize(x)
    sample = sampled(x, quantize(x), Rounding())
    assert sample.exact.shape == (SAMPLE, 512)
    error, norm, *_ = sample.sums.tolist()
    assert math.sqrt(error / norm) == pytest.approx(relative(whole.dequantize(), x), rel=0.02)


def trained(arithmetic: NVFP4, *seeds: int, recomputed: bool = False) -> list[torch.Tensor]:
    """Output, input gradient and weight gradient of some micro batches."""
    torch.manual_seed(5)
    weight, memory = matrix(OUTPUTS, INPUTS, 7).requires_grad_(), PreparedWeight()
    results = []
    for seed in seeds:
        x = matrix(seed=seed).requires_grad_()

        def forward(x: torch.Tensor) -> torch.Tensor:
            return linear(x, weight, None, False, False, False, arithmetic=arithmetic, memory=memory)

        y = checkpoint(forward, x, use_reentrant=True) if recomputed else forward(x)
        y.backward(matrix(TOKENS, OUTPUTS, seed + 50))
        results += [y.detach(), x.grad]
    return [*results, weight.grad]


@pytest.mark.parametrize("recipe", [Nvfp4Recipe(), Nvfp4Recipe(two_d=False, rht=False)], ids=["whole", "1x16"])
def test_products_errors_are_those_of_the_products(recipe: Nvfp4Recipe) -> None:
    measurement = Measurement()
    measurement.layers.add(LAYER)
    y, dx, dw = trained(Measured(recipe, measurement, LAYER), 0)
    measurement.end_step()
    x, w, g = matrix(), matrix(OUTPUTS, INPUTS, 7), matrix(TOKENS, OUTPUTS, 50)
    (layer,) = findings([(measurement.layers, measurement.sums())])["layers"]
    for name, found, exact in (("fprop", y, x @ w.T), ("dgrad", dx, g @ w), ("wgrad", dw, g.T @ x)):
        # BF16 rounds both results besides, by 0.2 %.
        assert layer["products"][name]["error"] == pytest.approx(relative(found, exact), rel=0.01)
    assert layer["gradient_over_noise"] == pytest.approx(1 / layer["products"]["wgrad"]["error"])


@pytest.mark.parametrize("recomputed", [False, True])
def test_training_is_the_same_and_each_product_counts_once(recomputed: bool) -> None:
    measurement = Measurement()
    plain = trained(NVFP4(Nvfp4Recipe()), 0, 1)
    measured = trained(Measured(Nvfp4Recipe(), measurement, LAYER), 0, 1, recomputed=recomputed)
    assert all(torch.equal(a, b) for a, b in zip(plain, measured, strict=True))
    measurement.end_step()
    counts = {key[1:]: values[-1] for key, values in measurement.sums().items() if key[2]}
    assert counts["fprop", "input"] == counts["wgrad", "input"] == 2 * TOKENS * INPUTS
    assert counts["dgrad", "grad_output"] == 2 * TOKENS * OUTPUTS and counts["fprop", "weight"] == 2 * OUTPUTS * INPUTS


def test_noise_that_averages_out_over_a_step_is_none() -> None:
    def ratio(micro_batches: int) -> float:
        measurement = Measurement()
        arithmetic = Measured(Nvfp4Recipe(), measurement, LAYER)
        gradient, x = matrix(TOKENS, OUTPUTS, 3), matrix()
        for _ in range(micro_batches):
            dgrad, wgrad = arithmetic.backward(gradient)
            dgrad(arithmetic.prepare(matrix(OUTPUTS, INPUTS, 7)))
            wgrad(x)
        measurement.end_step()
        return findings([({LAYER}, measurement.sums())])["gradient_over_noise"]

    assert ratio(16) > 1.2 * ratio(1)  # the gradient's rounding averages out; the input's, to nearest, does not


def test_processes_are_added_and_nothing_to_divide_by_is_none() -> None:
    sums = {(LAYER, "wgrad", ""): [1.0, 16.0], (LAYER, "wgrad", "grad_output"): [1.0, 4.0, 2, 3, 10]}
    sums |= {(LAYER, "wgrad", "input"): [0.0, 0.0, 0, 0, 10]}
    other = LAYER._replace(number=0)
    found = findings([({LAYER, other}, sums), ({LAYER}, {(LAYER, "wgrad", ""): [3.0, 20.0]})])
    assert [layer["layer"] for layer in found["layers"]] == [0, 2] and found["gradient_over_noise"] == 3
    assert found["layers"][0]["products"] == {} and found["layers"][0]["gradient_over_noise"] is None
    wgrad = found["layers"][1]["products"]["wgrad"]
    assert wgrad["error"] == pytest.approx(1 / 3)
    assert wgrad["operands"]["grad_output"] == {"error": 0.5, "clipped": 0.2, "zeroed": 0.3}
    assert wgrad["operands"]["input"]["error"] is None


def test_only_a_layer_in_nvfp4_is_measured() -> None:
    module = torch.nn.Linear(16, 16)
    assert measure(module, Measurement(), LAYER) is None
