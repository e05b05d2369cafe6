"""The quantizer factory inside Transformer Engine's layers, against its reference quantizer.

Run by `make test-gpu`; skipped where there is no GPU or no Transformer Engine.
"""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)
te = pytest.importorskip("transformer_engine.pytorch", reason="no Transformer Engine")
# ruff: noqa: E402  (nothing below exists without a GPU)

from transformer_engine.common.recipe import CustomRecipe

from pretraining.megatron import compat
from pretraining.numerics import quantization_error, te_quantizer
from pretraining.numerics.product import product
from pretraining.numerics.quantization_error import Layer, Measurement, findings
from pretraining.request.recipe import nvfp4_recipe

TOKENS, INPUTS, OUTPUTS = 512, 256, 384


def reference_factory(role):
    module, name = compat.quantizer_factory("reference").rsplit(".", 1)
    return getattr(__import__(module, fromlist=[name]), name)(role)


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def layer(kind, **options):
    torch.manual_seed(0)
    return kind(INPUTS, OUTPUTS, bias=False, params_dtype=torch.bfloat16, device="cuda", **options)


def passes(module, factory, inputs, first=(None,)):
    """Outputs and input gradients of one micro batch for each of `inputs`."""
    results = []
    for number, x in enumerate(inputs):
        x = x.detach().requires_grad_()
        with te.fp8_autocast(enabled=True, fp8_recipe=CustomRecipe(qfactory=factory)):
            y = module(x, is_first_microbatch=first[number % len(first)])
        torch.manual_seed(10 + number)
        y.backward(torch.randn_like(y))
        results.append((y.detach(), x.grad))
    return results


def micro_batches(count=2):
    torch.manual_seed(5)
    return [torch.randn(TOKENS, INPUTS, device="cuda", dtype=torch.bfloat16) for _ in range(count)]


@pytest.mark.parametrize("kind", [te.Linear, te.LayerNormLinear])
@pytest.mark.parametrize("leading", [(TOKENS,), (8, TOKENS // 8)])
def test_equals_the_reference_quantizer_without_stochastic_rounding(kind, leading, monkeypatch):
    monkeypatch.setattr(nvfp4_recipe, "_in_use", nvfp4_recipe.Nvfp4Recipe(stochastic=False))
    options = {"normalization": "RMSNorm"} if kind is te.LayerNormLinear else {}
    x = [micro_batches(1)[0].view(*leading, INPUTS)]
    ours, theirs = layer(kind, **options), layer(kind, **options)
    ((y, dx),) = passes(ours, te_quantizer.quantizer_factory, x)
    ((y_ref, dx_ref),) = passes(theirs, reference_factory, x)
    assert y.shape == y_ref.shape == (*leading, OUTPUTS)
    # The same exact products, summed in another order and rounded to BF16 once.
    for found, expected in ((y, y_ref), (dx, dx_ref), (ours.weight.grad, theirs.weight.grad)):
        assert relative(found, expected) < 1e-3


@pytest.mark.parametrize("ingredient", nvfp4_recipe.INGREDIENTS)
def test_each_ingredient_changes_only_what_it_should(ingredient, monkeypatch):
    x = micro_batches(1)
    whole = layer(te.Linear)
    torch.manual_seed(3)
    ((y, dx),) = passes(whole, te_quantizer.quantizer_factory, x)
    monkeypatch.setattr(nvfp4_recipe, "_in_use", nvfp4_recipe.Nvfp4Recipe().without(ingredient))
    without = layer(te.Linear)
    ((y_off, dx_off),) = passes(without, te_quantizer.quantizer_factory, x)
    changed = {
        "y": not torch.equal(y, y_off),
        "dx": not torch.equal(dx, dx_off),
        "dw": not torch.equal(whole.weight.grad, without.weight.grad),
    }
    expected = {
        "rht": {"y": False, "dx": False, "dw": True},
        "stochastic": {"y": False, "dx": True, "dw": True},
        "two_d": {"y": True, "dx": True, "dw": False},
    }
    assert changed == expected[ingredient]


@pytest.mark.parametrize("kind", [te.Linear, te.LayerNormLinear])
def test_every_weight_gradient_of_two_micro_batches_is_in_main_grad(kind, monkeypatch):
    monkeypatch.setattr(nvfp4_recipe, "_in_use", nvfp4_recipe.Nvfp4Recipe(stochastic=False))
    fused, plain = layer(kind, fuse_wgrad_accumulation=True), layer(kind)
    fused.weight.main_grad = torch.full((OUTPUTS, INPUTS), 0.5, device="cuda")
    passes(fused, te_quantizer.quantizer_factory, micro_batches())
    passes(plain, te_quantizer.quantizer_factory, micro_batches())
    assert relative(fused.weight.main_grad - 0.5, plain.weight.grad) < 5e-3  # plain.grad is rounded to BF16 each time
    assert relative(fused.weight.main_grad - 0.5, 0.5 * plain.weight.grad.float()) > 0.3


def test_a_cached_weight_is_rounded_once_a_step_and_anew_after_it(monkeypatch):
    monkeypatch.setattr(nvfp4_recipe, "_in_use", nvfp4_recipe.Nvfp4Recipe(stochastic=False))
    calls = []
    quantize = te_quantizer.quantize

    def counted(x, how, **options):
        calls.extend([1] * how.is_own_transpose)
        return quantize(x, how, **options)

    monkeypatch.setattr(te_quantizer, "quantize", counted)
    module, fresh = layer(te.Linear), layer(te.Linear)
    x = micro_batches(1)
    for _ in range(2):
        cached = passes(module, te_quantizer.quantizer_factory, x * 3, first=(True, False, False))
        with torch.no_grad():
            module.weight.mul_(1.5)
    assert len(calls) == 2
    with torch.no_grad():
        fresh.weight.mul_(1.5)
    anew = passes(fresh, te_quantizer.quantizer_factory, x * 3)  # rounds it for each micro batch
    assert len(calls) == 5
    for once, again in zip(cached, anew, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


def test_recomputed_activations_give_the_same_gradients(monkeypatch):
    monkeypatch.setattr(nvfp4_recipe, "_in_use", nvfp4_recipe.Nvfp4Recipe(stochastic=False))
    gradients = []
    for run in (lambda module, x: module(x), te.checkpoint):
        module, x = layer(te.LayerNormLinear, normalization="RMSNorm"), micro_batches(1)[0].requires_grad_()
        with te.fp8_autocast(enabled=True, fp8_recipe=CustomRecipe(qfactory=te_quantizer.quantizer_factory)):
            y = run(module, x)
        torch.manual_seed(10)
        y.backward(torch.randn_like(y))
        gradients.append((x.grad, module.weight.grad))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("run", [lambda module, x: module(x), te.checkpoint], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(te.Linear, {}), (te.Linear, {"save_original_input": True}), (te.LayerNormLinear, {"normalization": "RMSNorm"})],
    ids=["Linear", "Linear that quantizes its input again", "LayerNormLinear"],
)
def test_a_measurement_is_of_the_products(kind, options, run, monkeypatch):
    monkeypatch.setattr(quantization_error, "SAMPLE", 1024)
    quantization_error._chosen.cache_clear()
    module, x, measurement = layer(kind, **options), micro_batches(1)[0].requires_grad_(), Measurement()
    of = Layer(0, "fc1", INPUTS * OUTPUTS)
    module.register_forward_pre_hook(lambda *_: setattr(measurement, "layer", of if torch.is_grad_enabled() else None))
    module.register_forward_hook(lambda *_: setattr(measurement, "layer", None))
    te_quantizer.measure(measurement)
    with te.fp8_autocast(enabled=True, fp8_recipe=CustomRecipe(qfactory=te_quantizer.quantizer_factory)):
        y = run(module, x)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    te_quantizer.measure(None)
    measurement.end_step()
    quantization_error._chosen.cache_clear()
    normed = kind is te.LayerNormLinear
    inputs = torch.nn.functional.rms_norm(x.float(), (INPUTS,), eps=1e-5).bfloat16().float() if normed else x.float()
    weight, products = module.weight.float(), findings([({of}, measurement.sums())])["layers"][0]["products"]
    counts = {key[1:]: sums[-1] for key, sums in measurement.sums().items() if key[2]}
    assert counts["fprop", "input"] == counts["wgrad", "input"] == TOKENS * INPUTS
    assert products["fprop"]["error"] == pytest.approx(relative(y, inputs @ weight.T), rel=0.02)
    assert products["wgrad"]["error"] == pytest.approx(
        relative(module.weight.grad, gradient.float().T @ inputs), rel=0.02
    )
    if not normed:
        assert products["dgrad"]["error"] == pytest.approx(relative(x.grad, gradient.float() @ weight), rel=0.02)


def test_a_seed_repeats_a_training_step():
    x = micro_batches(1)
    upstream = torch.randn(INPUTS, OUTPUTS, device="cuda", dtype=torch.bfloat16)
    gradients = []
    for seed in (1, 1, 2):
        module = layer(te.Linear)
        torch.manual_seed(seed)
        with te.fp8_autocast(enabled=True, fp8_recipe=CustomRecipe(qfactory=te_quantizer.quantizer_factory)):
            y = module(x[0])
        y.backward(x[0] @ upstream)
        gradients.append(module.weight.grad)
    assert torch.equal(gradients[0], gradients[1]) and not torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("transposed", [(False, True), (False, False), (True, False)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_product_is_scaled_before_it_is_rounded(transposed, dtype):
    torch.manual_seed(0)
    shapes = [(320, 512), (512, 192)]
    # Small whole numbers: every sum is exact in FP32, so the result must be the exactly scaled one, rounded once.
    a, b = (torch.randint(-8, 9, shape, device="cuda").bfloat16() for shape in shapes)
    alpha = torch.tensor([0.1234567], device="cuda")
    given = [m.T.contiguous().T if flip else m for m, flip in zip((a, b), transposed, strict=True)]
    exact = (a.double() @ b.double()).float() * alpha
    out = torch.full((320, 192), 3.0, device="cuda", dtype=dtype)
    assert torch.equal(product(*given, alpha, out=out.clone()), exact.to(dtype))
    added = product(*given, alpha, out=out.clone(), accumulate=True)
    assert relative(added, exact + 3.0) < (1e-6 if dtype is torch.float32 else 3e-3)


@pytest.mark.parametrize("skipped", [0, 1, 4, 8, 64])
def test_a_product_of_any_address_is_exact_and_its_parts_are_added_in_fp32(skipped):
    torch.manual_seed(0)
    depth, size = 32768, 64  # a long sum of few elements: its parts are computed apart, beyond what BF16 holds
    stored = torch.randint(-8, 9, (2, size * depth + skipped), device="cuda").bfloat16()
    a, b = (each[skipped:].view(size, depth) for each in stored)
    alpha = torch.tensor([0.1234567], device="cuda")
    exact = (a.double() @ b.double().T).float() * alpha
    out = torch.zeros(size * size + skipped, device="cuda", dtype=torch.bfloat16)[skipped:].view(size, size)
    assert torch.equal(product(a, b.T, alpha, out=out), exact.bfloat16())


@pytest.mark.parametrize("summed_in", [torch.float32, torch.bfloat16])
def test_megatrons_own_layer_adds_weight_gradients_without_apex(summed_in):
    assert compat.fuse_gradient_accumulation()
    from megatron.core.tensor_parallel import layers

    kernels = layers.fused_weight_gradient_mlp_cuda
    add = kernels.wgrad_gemm_accum_fp32 if summed_in is torch.float32 else kernels.wgrad_gemm_accum_fp16
    inputs, grad = micro_batches(1)[0], torch.randn(TOKENS, OUTPUTS, device="cuda", dtype=torch.bfloat16)
    main_grad = torch.full((OUTPUTS, INPUTS), 0.5, device="cuda", dtype=summed_in)
    address = main_grad.data_ptr()
    add(inputs, grad, main_grad.clone())  # cuBLAS takes its workspace
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        add(inputs, grad, main_grad)
    taken = torch.cuda.max_memory_allocated() - before
    expected = 0.5 + 2 * grad.double().T @ inputs.double()
    assert main_grad.data_ptr() == address
    assert relative(main_grad, expected) < (1e-5 if summed_in is torch.float32 else 4e-3)
    assert taken < main_grad.nbytes, "no second gradient is made"


def test_a_replayed_graph_is_the_eager_step_and_draws_new_seeds():
    x = torch.randn(TOKENS, INPUTS, device="cuda", dtype=torch.bfloat16)
    upstream = torch.randn(TOKENS, OUTPUTS, device="cuda", dtype=torch.bfloat16)
    module = layer(te.Linear, fuse_wgrad_accumulation=True)
    module.weight.main_grad = torch.zeros(OUTPUTS, INPUTS, device="cuda")
    static = x.clone().requires_grad_()

    def step():
        static.grad = None
        module.weight.main_grad.zero_()
        with te.fp8_autocast(enabled=True, fp8_recipe=CustomRecipe(qfactory=te_quantizer.quantizer_factory)):
            for first in (True, False):  # two micro batches, the second with the first one's weight
                module(static, is_first_microbatch=first).backward(upstream)
        return static.grad.clone(), module.weight.main_grad.clone()

    def seeded(run):
        torch.manual_seed(7)
        for _ in range(3):
            with torch.no_grad():
                module.weight.copy_(weights[len(results) % 3])
            results.append(run())

    weights = [module.weight.detach() * factor for factor in (1.0, 1.5, 0.7)]
    results = []
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        seeded(step)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        recorded = step()

    def replay():
        graph.replay()
        return tuple(each.clone() for each in recorded)

    seeded(replay)
    for eager, replayed in zip(results[:3], results[3:], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(eager, replayed, strict=True))
    with torch.no_grad():
        module.weight.copy_(weights[2])
    assert not torch.equal(replay()[0], results[-1][0]), "each replay rounds with a seed of its own"
