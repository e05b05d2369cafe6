"""Megatron's linear layers in BF16 and NVFP4 arithmetic, on one process and on two (gloo)."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig

from pretraining.numerics import cpu_layers, late_switch, nvfp4
from pretraining.numerics.cpu_layers import BF16, NVFP4, set_arithmetic
from pretraining.request.recipe import nvfp4_recipe
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe as Recipe
from pretraining.request.recipe.nvfp4_recipe import Rounding

pytestmark = pytest.mark.usefixtures("one_process")

DETERMINISTIC = Recipe(stochastic=False)
CHOSEN = Recipe(stochastic=False, four_over_six="all", chosen_by="mse")
BY_ROW = Recipe(stochastic=False, activations="rows")


def config(**kwargs):
    kwargs = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "use_cpu_initialization": True} | kwargs
    return TransformerConfig(gradient_accumulation_fusion=False, **kwargs)


def build(cls=ColumnParallelLinear, arithmetic=None, inputs=64, outputs=96, **kwargs):
    special = {"gather_output": False} if issubclass(cls, ColumnParallelLinear) else {"input_is_parallel": True}
    module = cls(
        inputs, outputs, config=config(), init_method=torch.nn.init.xavier_normal_,
        **({"bias": False, "skip_bias_add": False} | special | kwargs),
    )  # fmt: skip
    if arithmetic is not None:
        set_arithmetic(module, arithmetic)
    return module


def forward_and_backward(module, x, gradient):
    x = x.clone().requires_grad_()
    y, _ = module(x)
    y.backward(gradient)
    return y.detach(), x.grad, module.weight.grad


def tensors(tokens=(12, 4), inputs=64, outputs=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*tokens, n, generator=generator) * scale for n, scale in ((inputs, 1.0), (outputs, 1e-4)))


def multiply(a, b):
    """The specification's product of two quantized operands, contracted along their last axes."""
    left, right = (each.tensor_scale.view(-1, 1) for each in (a, b))  # of each row, or one of all
    return ((a.values @ b.values.T) * (left * right.T)).bfloat16().float()


def expected_products(x, weight, gradient, recipe):
    x, weight, gradient = (t.flatten(0, -2).bfloat16() for t in (x, weight.detach(), gradient))
    pad = (0, -x.shape[0] % 16)
    x_t, gradient_t = (torch.nn.functional.pad(t.T, pad).contiguous() for t in (x, gradient))
    by = recipe.chosen_by if recipe.four_over_six else ""
    rows = recipe.rounding("input").of_rows
    tiles = Rounding((16, 16) if recipe.two_d else (1, 16), four_over_six=by)
    return (
        multiply(nvfp4.quantize(x, rows), nvfp4.quantize(weight, tiles)),
        multiply(nvfp4.quantize(gradient), nvfp4.quantize(weight.T.contiguous(), tiles)),
        multiply(
            nvfp4.quantize(gradient_t, Rounding(rht=recipe.rht)),
            nvfp4.quantize(x_t, dataclasses.replace(rows, rht=recipe.rht)),
        ),
    )


def assert_close_in_bf16(actual, expected):
    """Equal but for the order of float32 sums, which can turn a rounding to BF16: one unit, and seldom."""
    expected = expected.view(actual.shape)
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=expected.abs().max().item() * 1e-5)
    assert (actual != expected).double().mean() < 0.01
    assert torch.equal(actual, actual.bfloat16().float())


@pytest.mark.parametrize("cls", [ColumnParallelLinear, RowParallelLinear])
@pytest.mark.parametrize("tokens", [(12, 4), (5, 7)])
@pytest.mark.parametrize(
    "recipe", [DETERMINISTIC, Recipe(False, False, True), Recipe(True, False, False), CHOSEN, BY_ROW], ids=str
)
def test_nvfp4_products_are_the_specifications(cls, tokens, recipe):
    module = build(cls, NVFP4(recipe))
    x, gradient = tensors(tokens)
    actual = forward_and_backward(module, x, gradient)
    for a, e in zip(actual, expected_products(x, module.weight, gradient, recipe), strict=True):
        assert_close_in_bf16(a, e)


def test_each_ingredient_changes_only_its_products():
    module, (x, gradient) = build(), tensors()
    results = {}
    for recipe in (Recipe(False, False, True), Recipe(True, False, True), Recipe(False, True, True)):
        set_arithmetic(module, NVFP4(recipe))
        module.weight.grad = None
        results[recipe] = forward_and_backward(module, x, gradient)
    (y, dx, dw), rht, stochastic = results.values()
    assert torch.equal(rht[0], y) and torch.equal(rht[1], dx) and not torch.equal(rht[2], dw)
    assert torch.equal(stochastic[0], y) and not torch.equal(stochastic[1], dx) and not torch.equal(stochastic[2], dw)


def test_a_late_switch_computes_in_bf16_forward_or_all_of_it(monkeypatch):
    monkeypatch.setattr(nvfp4_recipe, "_in_use", Recipe(stochastic=False))
    (x, gradient), module, bf16 = tensors(), build(arithmetic=NVFP4()), build(arithmetic=BF16())
    with torch.no_grad():
        bf16.weight.copy_(module.weight)
    before, exact = forward_and_backward(module, x, gradient), forward_and_backward(bf16, x, gradient)
    for to, wanted in (("bf16", exact), ("forward", (exact[0], *before[1:]))):
        monkeypatch.setattr(late_switch, "_to", to)
        monkeypatch.setattr(late_switch, "_at", 9)
        for done, products in ((8, before), (9, wanted), (10, wanted)):
            monkeypatch.setattr(late_switch, "_done", done)
            module.weight.grad = None
            found = forward_and_backward(module, x, gradient)
            assert all(map(torch.equal, found, products)), (to, done)


def test_stochastic_gradients_are_unbiased():
    module, exact, (x, gradient) = build(arithmetic=NVFP4(Recipe())), build(arithmetic=BF16()), tensors((16, 1))
    with torch.no_grad():
        exact.weight.copy_(nvfp4.quantize(module.weight.bfloat16(), Rounding((16, 16))).dequantize())
    _, reference, _ = forward_and_backward(exact, x, gradient)
    draws = torch.stack([forward_and_backward(module, x, gradient)[1] for _ in range(200)])
    rms = reference.square().mean().sqrt()
    single, mean = ((d - reference).square().mean().sqrt() / rms for d in (draws[0], draws.mean(0)))
    assert single > 0.05 and mean < single / 5  # some elements clip: the mean does not vanish altogether


def test_seeds_come_from_the_default_generator():
    module, (x, gradient) = build(arithmetic=NVFP4(Recipe())), tensors()
    state = torch.get_rng_state()
    first = forward_and_backward(module, x, gradient)[1]
    second = forward_and_backward(module, x, gradient)[1]
    torch.set_rng_state(state)
    again = forward_and_backward(module, x, gradient)[1]
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_both_quantizations_of_a_gradient_round_independently(monkeypatch):
    seeds, original = [], cpu_layers.quantize

    def spy(x, how, *, seed=None, **kwargs):
        seeds.append(seed if how.stochastic else None)
        return original(x, how, **kwargs) if seed is None else original(x, how, seed=seed, **kwargs)

    monkeypatch.setattr(cpu_layers, "quantize", spy)
    module, (x, gradient) = build(arithmetic=NVFP4(Recipe())), tensors()
    for _ in range(2):
        forward_and_backward(module, x, gradient)
    drawn = [seed for seed in seeds if seed is not None]
    assert len(drawn) == len(set(drawn)) == 4 and seeds.count(None) == 5


def test_bf16_products_equal_torchs():
    module, (x, gradient) = build(arithmetic=BF16()), tensors()
    actual = forward_and_backward(module, x, gradient)
    a, w, g = (t.detach().flatten(0, -2).bfloat16() for t in (x, module.weight, gradient))
    for result, expected in zip(actual, (a @ w.T, g @ w, g.T @ a), strict=True):
        assert_close_in_bf16(result, expected.float())


def test_bias():
    module, (x, gradient) = build(arithmetic=BF16(), bias=True), tensors()
    without = forward_and_backward(module, x, gradient)[0]
    with torch.no_grad():
        module.bias.copy_(torch.linspace(-1, 1, 96))
    with_bias = forward_and_backward(module, x, gradient)[0]
    assert torch.equal(with_bias, (without + module.bias.detach().bfloat16().float()).bfloat16().float())
    column_sums = 2 * gradient.bfloat16().float().sum((0, 1))
    torch.testing.assert_close(module.bias.grad, column_sums, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("arithmetic", [BF16(), NVFP4(DETERMINISTIC)], ids=["bf16", "nvfp4"])
def test_micro_batches_accumulate(arithmetic):
    module = build(arithmetic=arithmetic)
    (x1, g1), (x2, g2) = tensors(seed=1), tensors(seed=2)
    first = forward_and_backward(module, x1, g1)[2].clone()
    total = forward_and_backward(module, x2, g2)[2].clone()
    module.weight.grad = None
    assert torch.equal(total, first + forward_and_backward(module, x2, g2)[2])


class Counting(NVFP4):
    calls = 0

    def prepare(self, weight):
        self.calls += 1
        return super().prepare(weight)


def through_the_parameter(module):
    with torch.no_grad():
        module.weight.mul_(2)


def through_data_in_an_optimizer(module):
    # What Megatron's distributed optimizer does: its step updates a copy, which is then written through .data.
    main = torch.nn.Parameter(2 * module.weight.detach())
    main.grad = torch.zeros_like(main)
    torch.optim.SGD([main], lr=1.0).step()
    module.weight.data.copy_(main.data)


def through_adam(module):
    module.weight.grad = -torch.ones_like(module.weight)
    torch.optim.AdamW([module.weight], lr=1.0).step()


def through_a_checkpoint(module):
    state = {"weight": 2 * module.weight.detach()}
    module.load_state_dict(state, strict=False)


@pytest.mark.parametrize(
    "update", [through_the_parameter, through_data_in_an_optimizer, through_adam, through_a_checkpoint]
)
def test_weight_is_quantized_once_a_step(update):
    module, (x, gradient) = build(arithmetic=(counting := Counting(DETERMINISTIC))), tensors()
    for _ in range(3):
        before = forward_and_backward(module, x, gradient)[0]
    assert counting.calls == 1
    update(module)
    after = forward_and_backward(module, x, gradient)[0]
    assert counting.calls == 2 and not torch.equal(before, after)
    assert_close_in_bf16(after, expected_products(x, module.weight, gradient, DETERMINISTIC)[0])


def test_frozen_weights_and_inference():
    module, (x, gradient) = build(arithmetic=NVFP4(DETERMINISTIC)), tensors()
    y, dx, _ = forward_and_backward(module, x, gradient)
    module.weight.grad = None
    module.weight.requires_grad_(False)
    frozen = forward_and_backward(module, x, gradient)
    assert torch.equal(frozen[0], y) and torch.equal(frozen[1], dx) and frozen[2] is None
    with torch.no_grad():
        assert torch.equal(module(x)[0], y)


def test_nan_in_the_input_reaches_the_output():
    module, (x, _) = build(arithmetic=NVFP4(DETERMINISTIC)), tensors()
    x[0, 0, 0] = float("nan")
    assert module(x)[0].isnan().all()


def test_refuses_what_it_does_not_do():
    module, (x, _) = build(arithmetic=BF16()), tensors()
    module.gradient_accumulation_fusion = True
    with pytest.raises(ValueError, match="gradient_accumulation_fusion=False"):
        module(x)


@pytest.mark.parametrize(("sequence_parallel", "others"), [(True, {}), (False, {"gtp_remat_size": 2})])
def test_refuses_what_newer_releases_ask_for(sequence_parallel, others):
    x, weight = torch.zeros(16, 16), torch.zeros(16, 16)
    off = {"arithmetic": BF16(), "memory": cpu_layers.PreparedWeight()}
    cpu_layers.linear(x, weight, None, False, False, False, gtp_remat_size=1, **off)
    with pytest.raises(ValueError, match="what emulated layers do not do"):
        cpu_layers.linear(x, weight, None, False, False, sequence_parallel, **others, **off)


def test_layer_spec_swaps_linear_layers_only():
    local = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec = cpu_layers.layer_spec(local, "nvfp4")
    attention, mlp = spec.submodules.self_attention.submodules, spec.submodules.mlp.submodules
    assert attention.linear_qkv is mlp.linear_fc1 is cpu_layers.LAYERS["nvfp4"][ColumnParallelLinear]
    assert attention.linear_proj is mlp.linear_fc2 is cpu_layers.LAYERS["nvfp4"][RowParallelLinear]
    assert local.submodules.mlp.submodules.linear_fc1 is ColumnParallelLinear
    assert attention.core_attention is local.submodules.self_attention.submodules.core_attention
    with pytest.raises(ValueError, match="names no ColumnParallelLinear"):
        cpu_layers.layer_spec(spec, "bf16")


def test_layers_take_the_recipe_of_their_process(monkeypatch):
    monkeypatch.setattr(nvfp4_recipe, "_in_use", DETERMINISTIC)
    module = build(cpu_layers.LAYERS["nvfp4"][ColumnParallelLinear])
    assert module._forward_impl.keywords["arithmetic"].recipe == DETERMINISTIC


def test_an_existing_layer_can_change_its_arithmetic():
    module, (x, gradient) = build(), tensors()
    plain = forward_and_backward(module, x, gradient)[0]
    set_arithmetic(module, BF16())
    rounded = forward_and_backward(module, x, gradient)[0]
    assert not torch.equal(plain, rounded) and torch.equal(rounded, rounded.bfloat16().float())


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from pretraining.numerics.cpu_layers import BF16
from pretraining.numerics.cpu_layers import linear
from pretraining.numerics.cpu_layers import PreparedWeight

rank, rendezvous = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
group = dist.group.WORLD
generator = torch.Generator().manual_seed(0)
x, w, g = (torch.randn(*s, generator=generator) for s in ((32, 2, 64), (96, 64), (32, 2, 96)))
mine = slice(48 * rank, 48 * rank + 48)                       # column parallel: half of the outputs
w_mine, g_mine = w[mine].clone().requires_grad_(), g[..., mine]
exact = [t.bfloat16().float() for t in (x, w, g)]
x_mine = x.clone().requires_grad_()
y = linear(x_mine, w_mine, None, False, True, False, group, arithmetic=BF16(), memory=PreparedWeight())
y.backward(g_mine)
close = dict(rtol=2**-6, atol=2e-2)
torch.testing.assert_close(y, (exact[0] @ exact[1].T)[..., mine], **close)
torch.testing.assert_close(x_mine.grad, exact[2] @ exact[1], rtol=2**-6, atol=0.1)
torch.testing.assert_close(w_mine.grad, exact[2][..., mine].flatten(0, 1).T @ exact[0].flatten(0, 1), **close)
dist.destroy_process_group()
"""


def test_tensor_parallel_on_two_ranks(tmp_path):
    assets = str(Path(cpu_layers.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": assets, "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", TWO_RANKS, str(rank), str(tmp_path / "rendezvous")],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors
