"""Megatron-Core's own linear layers, told to stay in BF16 inside Transformer Engine's FP4 and FP8 contexts.

Run by `make test-gpu`; skipped where there is no GPU, no Transformer Engine or no Megatron-Core.
"""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)
te = pytest.importorskip("transformer_engine.pytorch", reason="no Transformer Engine")
pytest.importorskip("megatron.core", reason="no Megatron-Core")
# ruff: noqa: E402  (nothing below exists without a GPU)

from megatron.core.extensions.transformer_engine import TELayerNormColumnParallelLinear, TERowParallelLinear
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_config import TransformerConfig
from transformer_engine.common.recipe import CustomRecipe, Float8CurrentScaling

from pretraining.megatron import linear_layers
from pretraining.numerics import te_quantizer

INPUTS, OUTPUTS = 256, 384
RECIPES = {"emulated NVFP4": lambda: CustomRecipe(qfactory=te_quantizer.quantizer_factory), "FP8": Float8CurrentScaling}

pytestmark = pytest.mark.usefixtures("one_process")


def build(kind):
    config = TransformerConfig(
        num_layers=1, hidden_size=INPUTS, num_attention_heads=4, normalization="RMSNorm", add_bias_linear=False,
        params_dtype=torch.bfloat16, bf16=True, gradient_accumulation_fusion=False,
    )  # fmt: skip
    special = {"gather_output": False} if kind is TELayerNormColumnParallelLinear else {"input_is_parallel": True}
    model_parallel_cuda_manual_seed(3)
    return kind(
        INPUTS, OUTPUTS, config=config, init_method=config.init_method, bias=False, skip_bias_add=False,
        is_expert=False, **special,
    ).cuda()  # fmt: skip


def passes(module, recipe=None, *, recompute=False):
    """Output, and gradients of the input and the weight."""
    torch.manual_seed(4)
    x = torch.randn(128, 2, INPUTS, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(128, 2, OUTPUTS, device="cuda", dtype=torch.bfloat16)
    module.zero_grad()
    with te.fp8_autocast(enabled=recipe is not None, fp8_recipe=recipe):
        y, _ = te.checkpoint(module, x) if recompute else module(x)
    y.backward(gradient)
    return y, x.grad, module.weight.grad


@pytest.mark.parametrize("kind", [TELayerNormColumnParallelLinear, TERowParallelLinear])
@pytest.mark.parametrize("context", RECIPES)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_layer_that_is_kept_computes_in_bf16(kind, context, recompute):
    module = build(kind)
    bf16, quantized = passes(module), passes(module, RECIPES[context]())
    assert not any(map(torch.equal, quantized, bf16))
    linear_layers._set_bf16(module)
    assert all(map(torch.equal, passes(module, RECIPES[context](), recompute=recompute), bf16))
