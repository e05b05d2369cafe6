"""The two sides as they call Transformer Engine, whose names are stood in for: it needs a GPU."""

import contextlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this machine")

import stand_ins

from pretraining.request.recipe.nvfp4_recipe import Rounding
from pretraining.selfcheck import check, engines, step


@pytest.fixture
def engine(monkeypatch):
    """Transformer Engine's names as 2.8 to 2.18 have them; its quantizer makes what the specification says."""
    modules = {}
    for name in ("", ".pytorch", ".pytorch.tensor", ".pytorch.tensor.nvfp4_tensor", ".common", ".common.recipe"):
        modules[name] = ModuleType(f"transformer_engine{name}")
        monkeypatch.setitem(sys.modules, modules[name].__name__, modules[name])
        if name:
            setattr(modules[name.rpartition(".")[0]], name.rpartition(".")[2], modules[name])
    seen = SimpleNamespace(recipes=[])

    class NVFP4Quantizer:
        def __init__(
            self, fp4_dtype=None, rowwise=True, columnwise=True, with_amax_reduction=False, amax_reduction_group=None,
            with_rht=False, with_post_rht_amax=False, with_2d_quantization=False, stochastic_rounding=False,
            with_random_sign_mask=True,
        ):  # fmt: skip
            assert rowwise and columnwise and with_post_rht_amax == with_rht and with_random_sign_mask
            self.mode = Rounding((16, 16) if with_2d_quantization else (1, 16), with_rht, stochastic_rounding)

        def __call__(self, x):
            return stand_ins.as_returned(stand_ins.Reference().quantize(x, self.mode))

    class Linear(torch.nn.Linear):
        def __init__(self, inputs, outputs, bias, params_dtype, device):
            super().__init__(inputs, outputs, bias=bias, dtype=params_dtype, device=device)

    @contextlib.contextmanager
    def fp8_autocast(enabled, fp8_recipe):
        seen.recipes.append(fp8_recipe)
        yield

    modules[".pytorch.tensor.nvfp4_tensor"].NVFP4Quantizer = NVFP4Quantizer
    modules[".pytorch"].Linear, modules[".pytorch"].fp8_autocast = Linear, fp8_autocast
    modules[".common.recipe"].NVFP4BlockScaling = lambda **switches: switches
    modules[".common.recipe"].CustomRecipe = lambda qfactory: qfactory
    return seen


@pytest.mark.parametrize("mode", check.EXACT, ids=lambda mode: mode.name)
def test_transformer_engine_is_called_as_it_is_and_read_as_it_stores(engine, mode):
    x = torch.randn(48, 80, generator=torch.Generator().manual_seed(2)).bfloat16()
    found = list(check.exact("x", x, mode, engines.TransformerEngine("cpu"), stand_ins.Specified(), "cpu"))
    assert len(found) == 4 and all(each.equal for each in found)


def test_transformer_engines_layers_on_both_sides(engine):
    native, ours = engines.TransformerEngine("cpu"), engines.Ours("cpu")
    measured = step.measure(native.model, ours.model, "cpu")
    assert len(measured) == 8 and all(each.difference == 0 for each in measured)
    native_recipe = {"disable_rht": False, "disable_stochastic_rounding": True, "disable_2d_quantization": False}
    assert native_recipe in engine.recipes and engines._nearest_quantizer in engine.recipes
