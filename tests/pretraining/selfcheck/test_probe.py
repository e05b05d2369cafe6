"""The probe of native kernels, with the specification in their place, whole and tampered with in each way."""

import dataclasses
import functools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stand_ins import Layers, Reference, as_returned

import pretrain_llama
from pretraining.errors import WrongKernels
from pretraining.megatron import bridge_config, compat
from pretraining.numerics import nvfp4
from pretraining.numerics.cpu_layers import NVFP4
from pretraining.record import schema
from pretraining.record.run_folder import Verdict
from pretraining.request.nvfp4_recipe import TENSORS, Nvfp4Recipe, Rounding
from pretraining.request.precisions import LateSwitch, find_precision
from pretraining.run import ending
from pretraining.selfcheck import engines, formats, probe, step


@pytest.fixture(autouse=True)
def one_thread():
    """Of many small operations several threads make no fewer seconds, and each waits by spinning."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class NVFP4Quantizer:
    """Named and with attributes as Transformer Engine's."""

    def __init__(self, how, **reference):
        self.with_2d_quantization, self.with_rht, self.stochastic_rounding = (
            how.is_own_transpose,
            how.rht,
            how.stochastic,
        )
        self.nvfp4_use_4over6, self.nvfp4_e4m3_max = bool(how.four_over_six), 256 if how.four_over_six else 448
        self.nvfp4_4over6_err_mode = how.four_over_six.upper()
        self.how, self.reference = how, Reference(**reference)

    def __call__(self, x):
        return as_returned(self.reference.quantize(x, self.how))


class Engine:
    """The recipe's quantizers by the specification; `tampered` are arguments of `Reference` for single ones."""

    def __init__(self, recipe=None, change=None, **tampered):
        self.recipe = self.multiplies = recipe or Nvfp4Recipe()
        self.change = change or (lambda *results: results)
        self.quantizers = {
            each: NVFP4Quantizer(self.recipe.rounding(each), **tampered.get(each, {})) for each in TENSORS
        }

    def layer(self, *given):
        """The products of what the specification quantizes by `multiplies`."""
        made = []
        for name, x in zip(TENSORS, given, strict=True):
            how = self.multiplies.rounding(name)
            rows, columns = nvfp4.quantize(x, how.of_rows), nvfp4.quantize(x.T.contiguous(), how)
            made.append((rows.dequantize(), columns.dequantize()))
        (x, xt), (weight, weight_t), (gradient, gradient_t) = made
        return self.change(x @ weight.T, gradient @ weight_t.T, gradient_t @ xt.T)


class CpuEngine(Engine):
    """With the CPU runtime's layer."""

    def layer(self, x, weight, gradient):
        def make(weights):
            return Layers(weights, NVFP4(self.recipe))

        return tuple(step.one_layer(make, weight, x, gradient).values())


RECIPES = [
    Nvfp4Recipe(),
    *(Nvfp4Recipe().without(each) for each in ("rht", "stochastic", "two_d")),
    Nvfp4Recipe(four_over_six="weights"),
    Nvfp4Recipe(rht=False, four_over_six="all", chosen_by="mse"),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: " ".join(recipe.changed().values()) or "whole")
def test_the_specification_passes_in_the_native_kernels_place(recipe):
    state = torch.random.get_rng_state()
    found = probe.probe(Engine(recipe), "cpu")
    assert found.problem == ""
    assert len(found.found) == 2 * len(TENSORS) + len(probe.RESULTS)
    exact = {name for name, said in found.found.items() if said == "equal to the specification"}
    drawn = {name for name, said in found.found.items() if said == f"without bias in {probe.DRAWS} draws"}
    assert len(exact) == 6 - 2 * recipe.stochastic and {each.split(",")[0] for each in drawn} <= {"grad_output"}
    assert torch.equal(state, torch.random.get_rng_state()), "a run is the same with and without a probe"


def test_the_cpu_runtimes_layer_passes():
    assert probe.probe(CpuEngine(), "cpu").problem == ""


def side(which, **fields):
    """What changes fields of one side's `Stored`, or of both."""

    def change(of, kept):
        return kept._replace(**{name: make(kept) for name, make in fields.items()}) if which in (of, "both") else kept

    return change


def to_zero(scaled, uniform):
    return torch.zeros_like(scaled, dtype=torch.uint8)


def toward_zero(scaled, uniform):
    return (nvfp4.neighbours(scaled)[0] + 8 * (scaled < 0)).to(torch.uint8)


def with_chance(more):
    def rounded(scaled, uniform):
        below, distance = nvfp4.neighbours(scaled)
        return (below + (uniform < distance + more * (distance > 0)).int() + 8 * (scaled < 0)).to(torch.uint8)

    return rounded


def nearest(scaled, uniform):
    return nvfp4.nearest_codes(scaled).to(torch.uint8)


def unturned(of, kept):
    """The columns of a matrix that nobody transposed."""
    return kept._replace(codes=kept.codes.reshape(-1, 2 * kept.codes.shape[1])) if of == "columns" else kept


ZERO = {"codes": lambda kept: torch.zeros_like(kept.codes)}
TAMPERED = {
    "zero rows": ("input", {"tamper": side("rows", **ZERO)}, "input, rows: all .* elements are zero"),
    "zero gradients": ("grad_output", {"tamper": side("both", **ZERO)}, "grad_output, rows: all .* are zero"),
    "zero by stochastic rounding": ("grad_output", {"rounded": to_zero}, "grad_output, rows: all .* are zero"),
    "scales twice as large": (
        "weight", {"tamper": side("columns", scales=lambda kept: kept.scales + 8)}, "weight, columns: .* scales"),
    "another tensor's amax": (
        "input", {"tamper": side("rows", amax=lambda kept: 2 * kept.amax)}, "input, rows: .* scales"),
    "scales of another order": (
        "input", {"tamper": side("rows", scales=lambda kept: kept.scales.flip(1))}, "input, rows: .* scales"),
    "nibbles exchanged": (
        "input", {"tamper": side("rows", codes=lambda kept: kept.codes << 4 | kept.codes >> 4)}, "rows: .* rounded"),
    "toward zero": (
        "weight", {"tamper": side("both", codes=lambda kept: kept.codes & 0xEE)}, "weight, rows: .* not rounded to"),
    "not stochastic": ("grad_output", {"rounded": nearest}, "grad_output, rows: .* draws are the same"),
    "biased to zero": ("grad_output", {"rounded": toward_zero}, "grad_output, rows: .* draws are the same"),
    "biased by a tenth of a step": ("grad_output", {"rounded": with_chance(0.1)}, "grad_output, rows: .* biased by"),
    "transposed": ("input", {"tamper": unturned}, "input, columns: it cannot be read: codes of shape"),
    "no Hadamard transform": (
        "input", {"before": nvfp4.random_hadamard_transform}, "input, columns: .* "),
}  # fmt: skip


@pytest.mark.parametrize(("tensor", "tampered", "said"), TAMPERED.values(), ids=TAMPERED)
def test_a_quantizer_that_is_tampered_with_is_found(tensor, tampered, said):
    found = probe.probe(Engine(**{tensor: tampered}), "cpu")
    assert re.search(said, found.problem), found.problem
    assert all(name.startswith(tensor) for name, each in found.found.items() if each in found.problem)


def test_the_transform_is_missing_where_it_is_left_out_of_one_operand():
    engine = Engine()
    engine.quantizers["input"].how = dataclasses.replace(engine.quantizers["input"].how, rht=False)
    assert "input, columns" in probe.probe(engine, "cpu").problem


CHANGES = {
    "zero output": (lambda y, dx, dw: (0 * y, dx, dw), "output"),
    "zero weight gradient": (lambda y, dx, dw: (y, dx, 0 * dw), "weight gradient"),
    "twice the input gradient": (lambda y, dx, dw: (y, 2 * dx, dw), "input gradient"),
    "turned rows": (lambda y, dx, dw: (y, dx, dw.roll(1, 0)), "weight gradient"),
    "not a number": (lambda y, dx, dw: (y / 0 * 0, dx, dw), "output"),
}


@pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES)
def test_a_product_that_is_tampered_with_is_found(change, name):
    assert probe.probe(Engine(change=change), "cpu").problem.startswith(f"layer, {name}: ")


@pytest.mark.parametrize("without", ["rht", "two_d"])
def test_a_layer_that_leaves_an_ingredient_out_is_found(without):
    engine = Engine(Nvfp4Recipe(stochastic=False))
    engine.multiplies = engine.recipe.without(without)
    assert probe.probe(engine, "cpu").problem.startswith("layer, ")


def test_another_order_of_a_block_scale_is_no_fault():
    found = probe.probe(Engine(input={"folded": True}), "cpu")
    assert found.problem == ""


def test_a_quantizer_that_is_not_known_is_recorded_and_stops_nothing():
    engine = Engine()
    engine.quantizers["input"] = SimpleNamespace(dtype=SimpleNamespace(name="kFloat8E4M3"))
    engine.quantizers["weight"].row_scaled_nvfp4 = True
    found = probe.probe(engine, "cpu")
    assert found.problem == ""
    assert [said for said in found.found.values() if said.startswith("not held")] == [
        "not held: SimpleNamespace has no specification here",
        "not held: NVFP4 with a scale for each row has no specification here",
    ]


# FP8: an own, slow quantizer for each of Transformer Engine's.


def quantizer(name, **attributes):
    return type(name, (Fp8Quantizer,), {})(**attributes)


class Fp8Quantizer:
    def __init__(self, dtype="kFloat8E4M3", tamper=None, **attributes):
        self.dtype, self.tamper = SimpleNamespace(name=dtype), tamper or (lambda made: made)
        self.torch_dtype = torch.float8_e5m2 if "E5M2" in dtype else torch.float8_e4m3fn
        for name, value in attributes.items():
            setattr(self, name, value)

    def tiles(self, x, rows, columns):
        """Codes, and a scale for each tile."""
        most = torch.finfo(self.torch_dtype).max
        codes = torch.zeros(x.shape, dtype=torch.uint8)
        scales = torch.zeros(x.shape[0] // rows, x.shape[1] // columns)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                part = x[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].float()
                scale = torch.tensor(getattr(self, "scale", None) or most / part.abs().max().item())
                if getattr(self, "force_pow_2_scales", False):
                    scale = 2 ** torch.floor(torch.log2(scale.double())).float()
                scales[i, j] = scale
                rounded = (part * scale).clamp(-most, most).to(self.torch_dtype)
                codes[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = rounded.view(torch.uint8)
        return codes, scales

    def __call__(self, x):
        return self.tamper(getattr(self, f"as_{type(self).__name__}")(x))

    def as_Float8CurrentScalingQuantizer(self, x):
        codes, scale = self.tiles(x, *x.shape)
        return SimpleNamespace(
            _data=codes, _transpose=codes.T.contiguous(), _transpose_invalid=False, _scale_inv=1 / scale
        )

    as_Float8Quantizer = as_Float8CurrentScalingQuantizer

    def as_Float8BlockQuantizer(self, x):
        made = {}
        rows = 128 if self.block_scaling_dim == 2 else 1
        for usage, matrix in (("rowwise", x), ("columnwise", x.T.contiguous())):
            codes, scales = self.tiles(matrix, rows, 128)
            scales = 1 / (scales if rows == 128 else scales.T)
            padded = torch.full((scales.shape[0], -(-scales.shape[1] // 4) * 4), torch.nan)
            padded[:, : scales.shape[1]] = scales
            made |= {f"_{usage}_data": codes, f"_{usage}_scale_inv": padded}
        return SimpleNamespace(**made)

    def as_MXFP8Quantizer(self, x):
        self.force_pow_2_scales, made = True, {}
        for usage, matrix in (("rowwise", x), ("columnwise", x.T.contiguous())):
            codes, scales = self.tiles(matrix, 1, 32)
            padded = torch.full((-(-scales.shape[0] // 128) * 128, -(-scales.shape[1] // 4) * 4), 77, dtype=torch.uint8)
            padded[: scales.shape[0], : scales.shape[1]] = (127 - torch.log2(scales)).to(torch.uint8)
            turned = usage == "columnwise"
            made |= {
                f"_{usage}_data": codes.T if turned else codes,
                f"_{usage}_scale_inv": padded.T if turned else padded,
            }
        return SimpleNamespace(**made, _with_gemm_swizzled_scales=False)


CURRENT = {"force_pow_2_scales": False, "amax_epsilon": 0.0}
BLOCKS = {"force_pow_2_scales": True, "amax_epsilon": 0.0, "block_len": 128}
FP8 = {
    "current": [("Float8CurrentScalingQuantizer", CURRENT)] * 2
    + [("Float8CurrentScalingQuantizer", {**CURRENT, "dtype": "kFloat8E5M2"})],
    "current, powers of two": [("Float8CurrentScalingQuantizer", {**CURRENT, "force_pow_2_scales": True})] * 3,
    "delayed": [("Float8Quantizer", {"scale": 3.7})] * 3,
    "blockwise": [("Float8BlockQuantizer", {**BLOCKS, "block_scaling_dim": dim}) for dim in (1, 2, 1)],
    "mxfp8": [("MXFP8Quantizer", {})] * 3,
}


class Fp8Engine:
    def __init__(self, kinds, tamper=None):
        made = [quantizer(name, **attributes) for name, attributes in kinds]
        self.quantizers = dict(zip(TENSORS, made, strict=True))
        if tamper:
            self.quantizers["input"].tamper = tamper

    def layer(self, x, weight, gradient):
        return None


@pytest.mark.parametrize("kinds", FP8.values(), ids=FP8)
def test_fp8_is_a_scale_and_a_rounding(kinds):
    found = probe.probe(Fp8Engine(kinds), "cpu")
    assert found.problem == ""
    assert list(found.found.values()) == ["equal to the specification"] * 6


def changes_of(name):
    """Fields that hold codes and scales, and how each format's scale is doubled."""
    if name == "mxfp8":
        return "_rowwise_data", "_rowwise_scale_inv", lambda scale: scale + 1
    fields = (
        ("_data", "_scale_inv") if name.startswith(("current", "delayed")) else ("_rowwise_data", "_rowwise_scale_inv")
    )
    return *fields, lambda scale: 2 * scale


@pytest.mark.parametrize("name", FP8)
def test_fp8_that_is_tampered_with_is_found(name):
    codes, scales, twice = changes_of(name)
    ways = {
        "all .* elements are zero": (codes, torch.zeros_like),
        "scales are not the specification's": (scales, twice),
        "not rounded to the nearest": (codes, lambda data: data & 0xFE),
        "cannot be read: codes of shape": (codes, lambda data: data.T),
    }
    for said, (attribute, change) in ways.items():

        def tamper(made, attribute=attribute, change=change):
            setattr(made, attribute, change(getattr(made, attribute)))
            return made

        found = probe.probe(Fp8Engine(FP8[name], tamper), "cpu")
        assert re.search(f"input, rows: .*{said}", found.problem), (said, found.problem)


@pytest.mark.parametrize("name", ["current", "blockwise", "mxfp8"])
def test_what_fp8_comes_to_is_near_what_went_in(name):
    x = torch.randn(128, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    for kind, attributes in FP8[name]:
        known = formats.of_quantizer(quantizer(kind, **attributes))
        for side_name, matrix in formats.matrices(x).items():
            apart = step.relative(known.specified(matrix, side_name), matrix)
            assert 0.01 < apart < (0.09 if known.dtype == torch.float8_e5m2 else 0.04)
    assert tuple(formats.matrices(x)) == engines.SIDES


def test_tensors_and_their_roundings_are_the_recipes():
    for recipe in RECIPES:
        for tensor in TENSORS:
            how = recipe.rounding(tensor)
            assert formats.of_quantizer(NVFP4Quantizer(how)) == formats.Nvfp4(how)
    assert isinstance(Nvfp4Recipe().rounding("weight"), Rounding)


class Record:
    """In place of the run's environment.json."""

    def __init__(self):
        self.facts = {}

    def add(self, **facts):
        self.facts |= facts


@pytest.fixture
def admit(monkeypatch):
    """`admit(engine, no_probe=False)`: what the training script does with it; gives the record's fact."""

    def run(engine, **chosen):
        on_cpu = functools.partial(probe.probe, device="cpu")
        monkeypatch.setattr(probe, "probe", on_cpu)
        monkeypatch.setattr(probe, "TransformerEngine", lambda recipe: engine)
        monkeypatch.setattr(compat, "engine_recipe", lambda model: model.fp8)
        monkeypatch.setattr(bridge_config, "mixed_precision", lambda *_: SimpleNamespace(fp8="hybrid", fp8_recipe=""))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GB10")
        record = Record()
        settings = SimpleNamespace(
            **{"precision": find_precision("nvfp4"), "no_probe": False, "emulate": None, "switches_at": None, **chosen}
        )
        try:
            pretrain_llama.admit_kernels(SimpleNamespace(model=SimpleNamespace(fp8=None)), settings, record)
        except WrongKernels as error:
            return record.facts["probe"], error
        return record.facts.get("probe"), None

    return run


def test_a_run_with_right_kernels_goes_on_and_records_it(admit):
    fact, error = admit(Engine())
    assert error is None and fact["passed"] and fact["seconds"] > 0
    schema.check({"probe": fact}, schema.ENVIRONMENT, Path("environment.json"))


def test_a_run_with_wrong_kernels_ends_with_the_cause_and_records_it(admit, tmp_path):
    fact, error = admit(Engine(grad_output={"rounded": to_zero}))
    assert fact["passed"] is False and "elements are zero" in fact["found"]["nvfp4: grad_output, rows"]
    verdict, cause, code = ending.classify(error, tmp_path)
    assert (verdict, code) == (Verdict.FAILED, 1)
    assert "NVIDIA GB10: grad_output, rows: all" in cause and "PROBE=0" in cause and "EMULATE=1" in cause


def test_a_probe_that_is_left_out_is_recorded(admit):
    assert admit(Engine(grad_output={"rounded": to_zero}), no_probe=True) == ({"skipped": True}, None)


def test_what_a_late_switch_goes_to_is_probed_too(admit):
    bf16 = {"late_switch": LateSwitch.read("0.5:bf16"), "switches_at": 5}
    fact, error = admit(Engine(), **bf16)
    assert error is None and {name.split(":")[0] for name in fact["found"]} == {"nvfp4"}
    fp8 = {"late_switch": LateSwitch.read("0.5:fp8"), "switches_at": 5}
    fact, error = admit(Engine(), **fp8)
    assert error is None and {name.split(":")[0] for name in fact["found"]} == {"nvfp4", "fp8"}
    fact, _ = admit(Engine(), **fp8, emulate="triton")
    assert {name.split(":")[0] for name in fact["found"]} == {"fp8"}


@pytest.mark.parametrize("chosen", [{"precision": find_precision("bf16")}, {"emulate": "triton"}])
@pytest.mark.parametrize("no_probe", [True, False])
def test_where_no_kernel_is_quantized_there_is_no_probe(admit, chosen, no_probe):
    assert admit(Engine(), no_probe=no_probe, **chosen) == (None, None)
