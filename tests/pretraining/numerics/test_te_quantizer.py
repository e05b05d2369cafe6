"""The quantizer factory called as Transformer Engine's linear layers call it, beside the CPU runtime's arithmetic.

Transformer Engine itself needs a GPU (tests/gpu has it); here its two base classes and the name it multiplies by are
stood in for.
"""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this machine")

from pretraining.numerics import late_switch
from pretraining.numerics.cpu_layers import NVFP4  # before the stand-ins: Megatron looks for Transformer Engine
from pretraining.numerics.measured_layers import Measured
from pretraining.numerics.quantization_error import PRODUCTS, Layer, Measurement
from pretraining.request.recipe import nvfp4_recipe
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero")

TOKENS, INPUTS, OUTPUTS = 24, 48, 32
ROWS = {"activations": "rows"}


class Quantizer:
    def __init__(self, *, rowwise, columnwise):
        self.rowwise_usage, self.columnwise_usage = rowwise, columnwise

    def set_usage(self, *, rowwise=None, columnwise=None):
        self.rowwise_usage = self.rowwise_usage if rowwise is None else rowwise
        self.columnwise_usage = self.columnwise_usage if columnwise is None else columnwise

    def __call__(self, tensor):
        return self.quantize(tensor)


@pytest.fixture
def engine(monkeypatch):
    """The module under test and the stand-in for the module that holds Transformer Engine's `custom_gemm`."""
    names = ("", ".pytorch", ".pytorch.cpp_extensions", ".pytorch.cpp_extensions.gemm", ".pytorch.quantized_tensor")
    modules = {}
    for name in names:
        module = modules[name] = ModuleType(f"transformer_engine{name}")
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if name:
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, module)
    modules[".pytorch.quantized_tensor"].Quantizer = Quantizer
    modules[".pytorch.quantized_tensor"].QuantizedTensorStorage = type("QuantizedTensorStorage", (), {})
    gemm = modules[".pytorch.cpp_extensions.gemm"]
    gemm.custom_gemm = lambda *args: ("Transformer Engine's own", *args)
    monkeypatch.delitem(sys.modules, "pretraining.numerics.te_quantizer", raising=False)
    recipe = importlib.import_module("pretraining.numerics.te_quantizer")
    yield SimpleNamespace(recipe=recipe, gemm=gemm)
    monkeypatch.delitem(sys.modules, "pretraining.numerics.te_quantizer")


def tensors():
    torch.manual_seed(0)
    shapes = (TOKENS, INPUTS), (OUTPUTS, INPUTS), (TOKENS, OUTPUTS)
    return [torch.randn(shape).bfloat16() for shape in shapes]


def linear(engine, x, weight, gradient, main_grad=None, *, saves_original=False, forward_ends=lambda: None):
    """Output, input gradient and weight gradient, in the order and with the calls of `module/linear.py`.

    `saves_original`: as attention's output projection does, whose input is quantized again in the backward pass.
    """
    make = engine.recipe.quantizer_factory
    quantizers = [make(f"linear_{name}") for name in ("input", "weight", "grad_output")]
    quantizers[0].set_usage(columnwise=not saves_original)
    qx, qw = quantizers[0](x), quantizers[1](weight)
    y, *_ = engine.gemm.custom_gemm(qw, qx, None, torch.bfloat16)
    if not saves_original:
        qx.update_usage(rowwise_usage=False, columnwise_usage=True)
    saved, owners = zip(*(each.prepare_for_saving() for each in (qx, qw)), strict=True)
    assert qx.rows is qx.columns is None and qw.rows is not None
    for owner, parts in zip(owners, saved, strict=True):
        assert owner.restore_from_saved([*parts, "the next one's"]) == ["the next one's"]
    forward_ends()
    if saves_original:
        quantizers[0].set_usage(rowwise=False, columnwise=True)
        qx = quantizers[0](x)
    dy = quantizers[2](gradient)
    dx, *_ = engine.gemm.custom_gemm(
        qw, dy, None, torch.bfloat16, None, False, None, False, "NN", None, None, False, True
    )
    accumulate = main_grad is not None
    arguments = (torch.float32 if accumulate else torch.bfloat16, None, False, None, accumulate, "NT", main_grad)
    dw, *_ = engine.gemm.custom_gemm(qx, dy, None, *arguments, None, False, True)
    return y, dx, dw


@pytest.mark.parametrize("off", [{}, {"rht": False}, {"two_d": False}, {"four_over_six": "all"}, ROWS], ids=str)
def test_products_are_the_cpu_runtimes(engine, off, monkeypatch):
    monkeypatch.setattr(nvfp4_recipe, "_in_use", Nvfp4Recipe(**off, stochastic=False))
    x, weight, gradient = tensors()
    arithmetic = NVFP4()
    prepared = arithmetic.prepare(weight)
    dgrad, wgrad = arithmetic.backward(gradient)
    expected = arithmetic.fprop(x, prepared), dgrad(prepared), wgrad(x)
    for found, wanted in zip(linear(engine, x, weight, gradient), expected, strict=True):
        torch.testing.assert_close(found.float(), wanted, rtol=2**-7, atol=1e-5)  # sums in another order
        assert (found.float() == wanted).double().mean() > 0.99


def test_a_late_switch_of_the_forward_pass_is_the_cpu_runtimes(engine, monkeypatch):
    monkeypatch.setattr(nvfp4_recipe, "_in_use", Nvfp4Recipe(stochastic=False))
    x, weight, gradient = tensors()
    quantizer = engine.recipe.quantizer_factory("linear_weight")
    stored = quantizer(weight)
    tiles = stored.columns.values.clone()
    for name, value in (("_to", "forward"), ("_at", 3), ("_done", 3)):
        monkeypatch.setattr(late_switch, name, value)
    kept = weight.clone()
    quantizer.update_quantized(weight, stored)  # from the tiles of before, which are written into
    assert torch.equal(stored.rows.values, kept) and torch.equal(weight, kept)
    assert torch.equal(stored.columns.values, tiles)
    arithmetic = NVFP4().now()
    prepared = arithmetic.prepare(weight.float())
    dgrad, wgrad = arithmetic.backward(gradient.float())
    expected = arithmetic.fprop(x.float(), prepared), dgrad(prepared), wgrad(x.float())
    for found, wanted in zip(linear(engine, x, weight, gradient), expected, strict=True):
        torch.testing.assert_close(found.float(), wanted, rtol=2**-7, atol=1e-5)
        assert (found.float() == wanted).double().mean() > 0.99


@pytest.mark.parametrize("saves_original", [False, True])
@pytest.mark.parametrize("off", [{}, {"rht": False, "two_d": False}, {"four_over_six": "all"}, ROWS], ids=str)
def test_a_measurement_is_the_cpu_runtimes(engine, off, saves_original, monkeypatch):
    recipe = Nvfp4Recipe(**off, stochastic=False)
    monkeypatch.setattr(nvfp4_recipe, "_in_use", recipe)
    layer, ours, theirs = Layer(0, "fc1", OUTPUTS * INPUTS), Measurement(), Measurement()
    x, weight, gradient = tensors()
    engine.recipe.measure(theirs)
    for _ in range(2):  # of a recomputed layer the first forward pass, or an evaluation: without gradients no layer
        quantizer = engine.recipe.quantizer_factory("linear_input")
        quantizer.set_usage(columnwise=False)
        engine.gemm.custom_gemm(engine.recipe.quantizer_factory("linear_weight")(weight), quantizer(x), None)
    theirs.layer = layer
    how = {"saves_original": saves_original, "forward_ends": lambda: setattr(theirs, "layer", None)}
    linear(engine, x, weight, gradient, **how)
    engine.recipe.measure(None)
    linear(engine, x, weight, gradient)  # is not seen
    arithmetic = Measured(recipe, ours, layer)
    dgrad, wgrad = arithmetic.backward(gradient)
    dgrad(arithmetic.prepare(weight))
    wgrad(x)
    for measurement in (ours, theirs):
        measurement.end_step()
    expected, found = ours.sums(), theirs.sums()
    assert found.keys() == expected.keys() and {name for _, name, _ in found} == set(PRODUCTS)
    for key, sums in expected.items():
        assert found[key] == pytest.approx(sums, rel=1e-3), key


def test_weight_gradients_add_up_in_main_grad(engine, monkeypatch):
    monkeypatch.setattr(nvfp4_recipe, "_in_use", Nvfp4Recipe(stochastic=False))
    x, weight, gradient = tensors()
    main_grad = torch.full((OUTPUTS, INPUTS), 0.5)
    for _ in range(2):
        *_, dw = linear(engine, x, weight, gradient, main_grad)
        assert dw is main_grad
    *_, once = linear(engine, x, weight, gradient)
    torch.testing.assert_close(main_grad, 0.5 + 2 * once.float(), rtol=2**-7, atol=1e-2)


def test_an_input_of_three_axes_gives_an_output_of_three(engine):
    x, weight, _ = tensors()
    make = engine.recipe.quantizer_factory
    qx, qw = make("linear_input")(x.view(4, 6, INPUTS)), make("linear_weight")(weight)
    y, *_ = engine.gemm.custom_gemm(qw, qx, None)
    assert y.shape == (4, 6, OUTPUTS) and qx.size() == (4, 6, INPUTS) and qx.size(-1) == INPUTS


def test_roles_are_names_and_from_2_16_objects(engine):
    make = engine.recipe.quantizer_factory
    assert make("linear_output") is None and make("linear_grad_input") is None
    role = SimpleNamespace(module_type="linear", tensor_type="grad_output")
    assert make(role).tensor == make("linear_grad_output").tensor == "grad_output"
    assert make(None).tensor == "input", "a QuantizerRole's factory must not return None"


def test_gradients_are_rounded_anew_each_time_and_inputs_alike(engine):
    x, weight, gradient = tensors()
    torch.manual_seed(1)
    (y, dx, dw), (y_again, dx_again, dw_again) = (linear(engine, x, weight, gradient) for _ in range(2))
    assert torch.equal(y, y_again) and not torch.equal(dx, dx_again) and not torch.equal(dw, dw_again)


def test_a_weight_is_rounded_anew_in_its_place(engine):
    _, weight, _ = tensors()
    quantizer = engine.recipe.quantizer_factory("linear_weight")
    stored = quantizer(weight)
    place = stored.rows.values.data_ptr()
    quantizer.update_quantized(2 * weight, stored)
    assert stored.rows.values.data_ptr() == place and stored.rows is stored.columns
    fresh = quantizer(2 * weight)
    assert torch.equal(stored.rows.values, fresh.rows.values) and torch.equal(stored.rows.scale, fresh.rows.scale)
    quantizer.update_quantized(weight, stored, noop_flag=torch.ones(1))
    assert torch.equal(stored.rows.values, fresh.rows.values), "a graph's flag says that it was rounded already"
    quantizer.update_quantized(weight, stored, noop_flag=torch.zeros(1))
    assert torch.equal(stored.rows.values, quantizer(weight).rows.values)


def test_a_weight_that_no_flag_can_keep_is_refused(engine, monkeypatch):
    monkeypatch.setattr(nvfp4_recipe, "_in_use", Nvfp4Recipe(two_d=False))
    _, weight, _ = tensors()
    quantizer = engine.recipe.quantizer_factory("linear_weight")
    stored = quantizer(weight)
    with pytest.raises(ValueError, match=r"16x16 tiles: use a graph of the whole iteration \(--tuned\)"):
        quantizer.update_quantized(weight, stored, noop_flag=torch.zeros(1))


def test_what_cannot_be_done_is_said(engine):
    x, weight, _ = tensors()
    make = engine.recipe.quantizer_factory
    qx, qw = make("linear_input")(x), make("linear_weight")(weight)
    refused = {
        "no bias": {"bias": torch.ones(OUTPUTS)},
        "no fused GELU": {"gelu": True},
        "no quantized result": {"quantization_params": make("linear_input")},
        r"no result in torch\.float32": {"out_dtype": torch.float32},
        r"no result in torch\.bfloat16": {"out_dtype": torch.bfloat16, "out": torch.zeros(TOKENS, OUTPUTS)},
        "no bias and no fused GELU": {"bias": torch.ones(OUTPUTS), "gelu_in": torch.ones(1)},
    }
    for said, asked in refused.items():
        with pytest.raises(ValueError, match=said):
            engine.gemm.custom_gemm(qw, qx, None, **asked)
    qx.update_usage(columnwise_usage=False)
    with pytest.raises(RuntimeError, match="after the tensor they come from was gone"):
        qx.update_usage(columnwise_usage=True)
    with pytest.raises(ValueError, match="divisible by 16, found 40"):
        make("linear_input")(torch.ones(16, 40))
    assert engine.gemm.custom_gemm("other", "tensors", None)[:3] == ("Transformer Engine's own", "other", "tensors")
