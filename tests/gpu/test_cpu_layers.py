"""The GPU's emulation against the CPU runtime's layers, on the same two-layer model.

Run by `make test-gpu`; skipped where there is no GPU or no Transformer Engine.
"""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)
te = pytest.importorskip("transformer_engine.pytorch", reason="no Transformer Engine")
# ruff: noqa: E402  (nothing below exists without a GPU)

from transformer_engine.common.recipe import CustomRecipe

from pretraining.numerics import te_quantizer
from pretraining.numerics.cpu_layers import NVFP4, PreparedWeight, linear
from pretraining.request.recipe import nvfp4_recipe

TOKENS, HIDDEN, STEPS = 256, 192, 20


class OnGpu(torch.nn.Module):
    """Two of Transformer Engine's layers in emulated NVFP4."""

    def __init__(self, weights):
        super().__init__()
        shape = {"in_features": HIDDEN, "out_features": HIDDEN, "bias": False}
        self.layers = torch.nn.ModuleList(te.Linear(**shape, params_dtype=torch.bfloat16) for _ in weights)
        self.assign(weights)

    def assign(self, weights):
        for layer, weight in zip(self.layers, weights, strict=True):
            layer.weight.data.copy_(weight)

    def forward(self, x):
        with te.fp8_autocast(enabled=True, fp8_recipe=CustomRecipe(qfactory=te_quantizer.quantizer_factory)):
            return self.layers[1](torch.nn.functional.silu(self.layers[0](x)))


def on_cpu(x, weights, arithmetic):
    """The same with the functions of the CPU runtime's local spec; activations are rounded to BF16 as on a GPU."""
    hidden = linear(x, weights[0], None, False, False, False, arithmetic=arithmetic, memory=PreparedWeight())
    hidden = torch.nn.functional.silu(hidden).bfloat16().float()
    return linear(hidden, weights[1], None, False, False, False, arithmetic=arithmetic, memory=PreparedWeight())


def test_a_training_of_two_layers_has_the_same_losses(monkeypatch):
    monkeypatch.setattr(nvfp4_recipe, "_in_use", nvfp4_recipe.Nvfp4Recipe(stochastic=False))
    torch.manual_seed(0)
    masters = [torch.randn(HIDDEN, HIDDEN) / HIDDEN**0.5 for _ in range(2)]
    x, target = torch.randn(TOKENS, HIDDEN).bfloat16().float(), torch.randn(TOKENS, HIDDEN)
    sides = {"cpu": [m.clone() for m in masters], "gpu": [m.clone() for m in masters]}
    arithmetic, model = NVFP4(nvfp4_recipe.in_use()), OnGpu(masters)
    losses = {"cpu": [], "gpu": []}
    for _ in range(STEPS):
        weights = [m.bfloat16().float().requires_grad_() for m in sides["cpu"]]
        loss = (on_cpu(x, weights, arithmetic) - target).square().mean()
        loss.backward()
        losses["cpu"].append(loss.item())
        for master, weight in zip(sides["cpu"], weights, strict=True):
            master -= 5.0 * weight.grad
        model.assign(sides["gpu"])
        model.zero_grad()
        loss = (model(x.bfloat16().cuda()).float() - target.cuda()).square().mean()
        loss.backward()
        losses["gpu"].append(loss.item())
        for master, layer in zip(sides["gpu"], model.layers, strict=True):
            master -= 5.0 * layer.weight.grad.float().cpu()
    assert losses["cpu"][-1] < 0.9 * losses["cpu"][0], "it must have trained"
    print("largest relative difference", max(abs(a / b - 1) for a, b in zip(losses["gpu"], losses["cpu"], strict=True)))
    assert losses["gpu"] == pytest.approx(losses["cpu"], rel=1e-3)
