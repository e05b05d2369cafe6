"""Which module is what product of which layer in a model of Megatron's, on the CPU and with the engine's layers."""

import contextlib
import functools
from types import SimpleNamespace

import pytest
import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from pretraining.megatron import compat, linear_layers
from pretraining.numerics.cpu_layers import layer_spec
from pretraining.request.recipe import nvfp4_recipe
from pretraining.request.recipe.kept_in_bf16 import PROJECTIONS, KeptInBf16
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe

pytestmark = pytest.mark.usefixtures("one_process")

LAYERS = 3
INSIDE = {"qkv": "self_attention", "proj": "self_attention", "fc1": "mlp", "fc2": "mlp"}
KEPT = ["qkv,proj,fc1,fc2", "layers:0-2", "qkv", "layers:1,fc2:2", "proj:0,fc1:1,2"]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    tracker = SimpleNamespace(fork=contextlib.nullcontext)
    monkeypatch.setattr("megatron.core.tensor_parallel.get_cuda_rng_tracker", lambda: tracker)


def build(precision: str, first: int = 0) -> GPTModel:
    """A model of LAYERS layers; `first`: how many earlier pipeline stages have."""
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=LAYERS, hidden_size=32, num_attention_heads=2, ffn_hidden_size=64, use_cpu_initialization=True,
        add_bias_linear=False, hidden_dropout=0.0, attention_dropout=0.0, gradient_accumulation_fusion=False,
    )  # fmt: skip
    spec = layer_spec(get_gpt_layer_local_spec(), precision)
    model = GPTModel(config, spec, vocab_size=64, max_sequence_length=16)
    for layer in model.decoder.layers:
        layer.layer_number += first
    return model


def keep(model: GPTModel, text: str) -> None:
    built(model, linear_layers.keep, KeptInBf16.read(text))


def built(model: GPTModel, change, *how) -> None:
    """What training does with a change of its config between building the model and wrapping it."""
    hooks = []
    config = SimpleNamespace(model=SimpleNamespace(register_pre_wrap_hook=hooks.append))
    change(config, *how)
    assert hooks[0]([model]) == [model]


def gradients(model: GPTModel, *, recompute: bool = False) -> list[torch.Tensor]:
    tokens = torch.arange(32).view(2, 16) % 64
    places = torch.arange(16).expand_as(tokens)
    mask = torch.ones(16, 16, dtype=torch.bool).triu(1)[None, None]
    run = functools.partial(model, tokens, places, mask)
    torch.manual_seed(1)
    if recompute:
        layer = model.decoder.layers[1]
        usual = layer.forward
        layer.forward = lambda *args, **kwargs: torch.utils.checkpoint.checkpoint(
            usual, *args, use_reentrant=False, **kwargs
        )
    run().square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("text", KEPT)
@pytest.mark.parametrize("first", [0, 5])
def test_the_cpu_and_the_engines_layers_agree_on_which_module_is_what(text: str, first: int, monkeypatch) -> None:
    shifted = ",".join(
        f"{name}:{','.join(str(first + number) for number in sorted(numbers))}"
        for name, numbers in KeptInBf16.read(text).layers.items()
    )
    text = ",".join(filter(None, (*KeptInBf16.read(text).everywhere, shifted)))
    kept = KeptInBf16.read(text)
    expected = {
        f"decoder.layers.{number}.{INSIDE[projection]}.linear_{projection}"
        for number in range(LAYERS)
        for projection in PROJECTIONS
        if kept.holds(projection, first + number)
    }
    on_cpu, with_engine = build("nvfp4", first), build("nvfp4", first)
    keep(on_cpu, text)
    arithmetics = {name: each._forward_impl.keywords["arithmetic"] for name, each in modules(on_cpu).items()}
    assert {name for name, each in arithmetics.items() if type(each).__name__ == "BF16"} == expected
    told = {}
    for name, module in modules(with_engine).items():
        del module._forward_impl  # an engine's layer has none of it
        monkeypatch.setattr(module, "finish_init", functools.partial(told.__setitem__, name), raising=False)
    keep(with_engine, text)
    assert told.keys() == expected and len(modules(on_cpu)) == LAYERS * len(PROJECTIONS)


def modules(model: GPTModel) -> dict[str, torch.nn.Module]:
    return {name: each for name, each in model.named_modules() if compat.is_emulated(each)}


def test_what_the_engine_is_told_is_bf16_in_megatron_core(monkeypatch) -> None:
    from megatron.core.extensions import transformer_engine as engine

    told = []
    module = SimpleNamespace(finish_init=told.append)
    linear_layers._set_bf16(module)
    asked = engine.TEQuantizationParams.parse_from_config(told[0])
    for training in (True, False):
        for quantized in (True, False):
            assert not engine._get_should_context_be_quantized_params(asked, training, quantized)
    contexts = []
    monkeypatch.setattr(engine, "fp8_autocast", lambda **how: contexts.append(how), raising=False)
    enabled = SimpleNamespace(is_fp8_enabled=lambda: True)
    monkeypatch.setattr(engine, "FP8GlobalStateManager", enabled, raising=False)
    engine._get_fp8_autocast_for_quant_params(asked, training=True)
    assert contexts == [{"enabled": False}]


def test_the_tuned_preset_quantizes_the_output_projections_input_once() -> None:
    model = build("bf16")
    layers = [(projection, module) for _, projection, module in linear_layers.linear_layers([model])]
    for projection, module in layers:
        if projection != "qkv":
            module.save_original_input = projection != "fc2"  # "fc1": where a norm is computed again
    built(model, linear_layers.quantize_inputs_once)
    saved = {projection: getattr(module, "save_original_input", None) for projection, module in layers}
    assert saved == {"qkv": None, "proj": False, "fc1": True, "fc2": False}


@pytest.mark.parametrize("text", KEPT[:2])
def test_every_product_kept_is_bf16_to_the_last_digit(text: str) -> None:
    kept, bf16, nvfp4 = build("nvfp4"), build("bf16"), build("nvfp4")
    keep(kept, text)
    found, wanted, other = map(gradients, (kept, bf16, nvfp4))
    assert all(map(torch.equal, found, wanted)) and not all(map(torch.equal, found, other))


def test_recomputation_changes_nothing(monkeypatch) -> None:
    monkeypatch.setattr(nvfp4_recipe, "_in_use", Nvfp4Recipe(stochastic=False))
    once, again = build("nvfp4"), build("nvfp4")
    for model in (once, again):
        keep(model, "qkv,fc2:1")
    assert all(map(torch.equal, gradients(once), gradients(again, recompute=True)))
