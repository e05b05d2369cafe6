"""The late switch within Megatron-Core, whose contexts stand-ins give: which one each layer gets, when."""

import functools
import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest

from pretraining.errors import UsageError
from pretraining.numerics import forward_in_bf16, late_switch
from pretraining.request import flags as training_flags
from pretraining.request import settings


def stand_in(monkeypatch, name: str, **contents) -> ModuleType:
    """A module, and a package above it."""
    module = ModuleType(name)
    module.__path__ = []
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    return module


PRESETS = {
    "bf16_with_fp8_current_scaling_mixed": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
    "bf16_with_fp8_subchannel_scaling_mixed": {"fp8": "hybrid", "fp8_recipe": "blockwise"},
    "bf16_with_mxfp8_mixed": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
}


@pytest.fixture
def switching(monkeypatch):
    """The module under test, on Megatron-Bridge's presets and its base of callbacks."""
    presets = {name: functools.partial(SimpleNamespace, **fields) for name, fields in PRESETS.items()}
    mixed_precision = stand_in(monkeypatch, "megatron.bridge.training.mixed_precision", **presets)
    stand_in(monkeypatch, "megatron.bridge")
    stand_in(monkeypatch, "megatron.bridge.training", mixed_precision=mixed_precision)
    stand_in(monkeypatch, "megatron.bridge.training.callbacks", Callback=object)
    monkeypatch.delitem(sys.modules, "pretraining.megatron.switching", raising=False)
    yield importlib.import_module("pretraining.megatron.switching")
    monkeypatch.delitem(sys.modules, "pretraining.megatron.switching")
    late_switch.use(None, None)


def chosen(*flags: str) -> settings.Settings:
    args = training_flags.parser("x").parse_args([*flags, "--train-iters", "20"])
    return settings.resolve(args, on_gpu=True, processes=1)


def get_fp8_recipe(config):
    return ("FP8", config.fp8, config.fp8_recipe)


def get_fp4_recipe(config):
    return ("FP4", config.fp4_recipe)


def get_fp8_context(config, layer_no=-1, is_init=False):
    factory = getattr(config, "fp8_quantizer_factory", None)
    return ("FP8", config.fp8, config.fp8_recipe, config.fp4, factory, config.num_layers, layer_no, is_init)


def get_fp4_context(config, layer_no=-1, is_init=False):
    return ("FP4", config.fp4, config.fp4_recipe, getattr(config, "fp4_quantizer_factory", None), layer_no, is_init)


@pytest.fixture
def core(monkeypatch):
    """Megatron's module of layers, which has imported both contexts as Megatron-Core 0.16 to 0.20 do."""
    modules = {
        "megatron.core.fp8_utils": (get_fp8_context, get_fp8_recipe),
        "megatron.core.fp4_utils": (get_fp4_context, get_fp4_recipe),
        "megatron.core.transformer.transformer_block": (get_fp8_context, get_fp4_context),
        "megatron.core.recompute": (get_fp8_context, get_fp4_context),
    }
    return {
        name: stand_in(monkeypatch, name, **{each.__name__: each for each in names}) for name, names in modules.items()
    }


FP8 = SimpleNamespace(fp8="hybrid", fp8_recipe="tensorwise", fp4=None, num_layers=4)
FP4 = SimpleNamespace(fp8=None, fp8_recipe="tensorwise", fp4="e2m1", fp4_recipe="nvfp4", num_layers=4)
EMULATED = SimpleNamespace(**vars(FP4) | {"fp4_recipe": "custom", "fp4_quantizer_factory": "ours"})
FORWARD = "pretraining.numerics.forward_in_bf16.quantizer_factory"


def contexts(switching, core, monkeypatch, flags, model, done: int):
    """What both modules that build layers get for layer 2 after so many iterations; None for BF16's."""
    run = chosen(*flags)
    late_switch.use(run.late_switch, run.switches_at, done=done)
    switching.provide(SimpleNamespace(mixed_precision=model), run)
    name = "get_fp4_context" if model.fp4 else "get_fp8_context"
    users = [core[f"megatron.core.{each}"] for each in ("transformer.transformer_block", "recompute")]
    found = [getattr(user, name)(model, 2) for user in users]
    assert str(found[0]) == str(found[1]) or all(type(each).__name__ == "nullcontext" for each in found)
    init = getattr(users[0], name)(model, 2, is_init=True)  # weights are made as ever
    assert init == {"get_fp4_context": get_fp4_context, "get_fp8_context": get_fp8_context}[name](model, 2, True)
    return None if type(found[0]).__name__ == "nullcontext" else found[0]


@pytest.mark.parametrize(
    ("flags", "model", "after"),
    [
        (("--precision", "fp8", "--switch", "6"), FP8, None),
        (("--precision", "nvfp4", "--switch", "6"), FP4, None),
        (("--emulate", "--switch", "6"), EMULATED, None),
        (("--emulate", "reference", "--switch", "6"), EMULATED, None),
        (("--emulate", "--switch", "6:fp8"), EMULATED, ("FP8", "hybrid", "tensorwise", None, None, 4, 2, False)),
        (("--switch", "6:fp8_blockwise"), FP4, ("FP8", "hybrid", "blockwise", None, None, 4, 2, False)),
        (("--precision", "fp8", "--switch", "6:mxfp8"), FP8, ("FP8", "e4m3", "mxfp8", None, None, 4, 2, False)),
        (("--emulate", "--switch", "6:forward"), EMULATED, ("FP4", "e2m1", "custom", "ours", 2, False)),
        (("--switch", "6:forward"), FP4, ("FP4", "e2m1", "custom", FORWARD, 2, False)),
        (
            ("--precision", "fp8", "--switch", "6:forward"),
            FP8,
            ("FP8", "hybrid", "custom", None, FORWARD, 4, 2, False),
        ),
    ],
)
@pytest.mark.parametrize("done", [5, 6, 7])
def test_the_context_of_each_iteration(switching, core, monkeypatch, flags, model, after, done: int) -> None:
    before = get_fp4_context(model, 2) if model.fp4 else get_fp8_context(model, 2)
    assert contexts(switching, core, monkeypatch, flags, model, done) == (after if done >= 6 else before)
    if "6:forward" in flags and "--emulate" not in flags:
        usual = get_fp4_recipe(model) if model.fp4 else get_fp8_recipe(model)
        assert forward_in_bf16._usual == usual


def test_each_iteration_says_where_training_is_and_old_copies_of_weights_go(switching, monkeypatch, capsys) -> None:
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    run = chosen("--precision", "fp8", "--switch", "6")
    late_switch.use(run.late_switch, run.switches_at)
    layer, callback, seen = SimpleNamespace(_fp8_workspaces={"weight": "copy"}), switching.Switching(run), []
    model = [SimpleNamespace(modules=lambda: [layer, SimpleNamespace()])]
    for step in (4, 5, 6, 7):
        callback.on_train_step_start(
            SimpleNamespace(state=SimpleNamespace(train_state=SimpleNamespace(step=step)), model=model)
        )
        seen.append((late_switch.switched_to(), len(layer._fp8_workspaces)))
        layer._fp8_workspaces["weight"] = "copy"
    assert seen == [("", 1), ("", 1), ("bf16", 0), ("bf16", 1)]
    assert capsys.readouterr().out == "pretrain_llama.py: iteration 7 and later ones train by --switch 6:bf16\n"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, None),
        ({"cuda_graph_impl": "none", "enable_cuda_graph": False}, None),
        ({"cuda_graph_impl": "local"}, r"model\.cuda_graph_impl=local replays each iteration .* --switch 6:bf16: drop"),
        ({"external_cuda_graph": True}, r"model\.external_cuda_graph=True replays"),
    ],
)
def test_what_a_switch_rests_on(switching, fields: dict, said: str | None) -> None:
    config = SimpleNamespace(model=SimpleNamespace(**fields))
    run = chosen("--precision", "fp8", "--switch", "6")
    if said is None:
        return switching.check(config, run)
    with pytest.raises(UsageError, match=said):
        switching.check(config, run)


@pytest.mark.parametrize(
    ("flags", "needs"),
    [
        (("--precision", "fp8", "--switch", "6"), "--switch 6:bf16"),
        (("--nvfp4", "switch=6:fp8"), "--switch 6:fp8"),
        (("--nvfp4", "bf16=qkv"), "bf16=qkv"),
        (("--nvfp4", "primary=bf16"), "primary=bf16"),
        (("--emulate",), "--emulate"),
        (("--precision", "fp8"), ""),
        (("--nvfp4", "rht=off"), ""),
    ],
)
@pytest.mark.parametrize("kept", ["fp8", "fp4"])
def test_what_rests_on_bf16_weights(switching, flags: tuple[str, ...], needs: str, kept: str) -> None:
    check = switching.bridge_config.check_weights
    preset = SimpleNamespace(fp8_param_gather=False, fp4_param_gather=False)
    check(SimpleNamespace(mixed_precision=preset), chosen(*flags))
    setattr(preset, f"{kept}_param_gather", True)
    if not needs:
        return check(SimpleNamespace(mixed_precision=preset), chosen(*flags))
    with pytest.raises(UsageError, match=rf"{kept}_param_gather=true leaves no BF16 weights for {needs}: drop one"):
        check(SimpleNamespace(mixed_precision=preset), chosen(*flags))


def test_forward_in_bf16_leaves_gradients_to_the_recipe(monkeypatch) -> None:
    """Rows are what the forward pass multiplies; by Transformer Engine's names of roles and its order of quantizers."""
    pytorch = "transformer_engine.pytorch"
    for name in ("transformer_engine", pytorch, f"{pytorch}.tensor"):
        stand_in(monkeypatch, name)

    def create(recipe, *, mode: str, num_quantizers: int):
        names = {"forward": ["input", "weight", "output"], "backward": ["grad_output", "grad_input"]}[mode]
        assert num_quantizers == len(names)
        return SimpleNamespace(make_quantizers=lambda: [(recipe, name) for name in names])

    def hybrid(*, rowwise_quantizer, columnwise_quantizer):
        return rowwise_quantizer, columnwise_quantizer

    stand_in(monkeypatch, f"{pytorch}.quantization", RecipeState=SimpleNamespace(create=create))
    stand_in(monkeypatch, f"{pytorch}.tensor.hybrid_tensor", HybridQuantizer=hybrid)
    stand_in(monkeypatch, f"{pytorch}.tensor.identity_tensor", IdentityQuantizer=lambda: "as it is")
    monkeypatch.setattr(forward_in_bf16, "_usual", "recipe")

    def made(tensor_type: str):
        return forward_in_bf16.quantizer_factory(SimpleNamespace(tensor_type=tensor_type, module_type="linear"))

    assert made("grad_output") == made("grad_input") == ("recipe", "grad_output")
    assert made("weight") == ("as it is", ("recipe", "weight"))
    assert made("input") == forward_in_bf16.quantizer_factory(None) == ("as it is", ("recipe", "input"))
