"""The probe of native kernels, with the specification in their place, whole and tampered with in each way."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from stand_ins import Layers, NVFP4Quantizer, ProbeEngine, held, to_zero

from pretraining.numerics import nvfp4
from pretraining.numerics.cpu_layers import NVFP4
from pretraining.request.recipe.nvfp4_recipe import TENSORS, Nvfp4Recipe, Rounding
from pretraining.selfcheck import formats, probe, step

pytestmark = pytest.mark.usefixtures("one_thread")


class CpuEngine(ProbeEngine):
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
    Nvfp4Recipe(rht=False, activations="rows"),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: " ".join(recipe.changed().values()) or "whole")
def test_the_specification_passes_in_the_native_kernels_place(recipe):
    state = torch.random.get_rng_state()
    found = held(ProbeEngine(recipe))
    assert found.problem == ""
    assert len(found.found) == 2 * len(TENSORS) + len(probe.RESULTS)
    exact = {name for name, said in found.found.items() if said == "equal to the specification"}
    drawn = {name for name, said in found.found.items() if said == f"without bias in {probe.DRAWS} draws"}
    assert len(exact) == 6 - 2 * recipe.stochastic and {each.split(",")[0] for each in drawn} <= {"grad_output"}
    assert torch.equal(state, torch.random.get_rng_state()), "a run is the same with and without a probe"


def test_the_cpu_runtimes_layer_passes():
    assert held(CpuEngine()).problem == ""


def side(which, **fields):
    """What changes fields of one side's `Stored`, or of both."""

    def change(of, kept):
        return kept._replace(**{name: make(kept) for name, make in fields.items()}) if which in (of, "both") else kept

    return change


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
    found = held(ProbeEngine(**{tensor: tampered}))
    assert re.search(said, found.problem), found.problem
    assert all(name.startswith(tensor) for name, each in found.found.items() if each in found.problem)


def test_the_transform_is_missing_where_it_is_left_out_of_one_operand():
    engine = ProbeEngine()
    engine.quantizers["input"].how = dataclasses.replace(engine.quantizers["input"].how, rht=False)
    assert "input, columns" in held(engine).problem


CHANGES = {
    "zero output": (lambda y, dx, dw: (0 * y, dx, dw), "output"),
    "zero weight gradient": (lambda y, dx, dw: (y, dx, 0 * dw), "weight gradient"),
    "twice the input gradient": (lambda y, dx, dw: (y, 2 * dx, dw), "input gradient"),
    "turned rows": (lambda y, dx, dw: (y, dx, dw.roll(1, 0)), "weight gradient"),
    "not a number": (lambda y, dx, dw: (y / 0 * 0, dx, dw), "output"),
}


@pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES)
def test_a_product_that_is_tampered_with_is_found(change, name):
    assert held(ProbeEngine(change=change)).problem.startswith(f"layer, {name}: ")


@pytest.mark.parametrize("without", ["rht", "two_d"])
def test_a_layer_that_leaves_an_ingredient_out_is_found(without):
    engine = ProbeEngine(Nvfp4Recipe(stochastic=False))
    engine.multiplies = engine.recipe.without(without)
    assert held(engine).problem.startswith("layer, ")


def test_another_order_of_a_block_scale_is_no_fault():
    found = held(ProbeEngine(input={"folded": True}))
    assert found.problem == ""


def test_a_quantizer_that_is_not_known_is_recorded_and_stops_nothing():
    engine = ProbeEngine()
    engine.quantizers["input"] = SimpleNamespace(dtype=SimpleNamespace(name="kFloat8E4M3"))
    engine.quantizers["weight"].row_scaled_nvfp4 = True
    found = held(engine)
    assert found.problem == ""
    assert [said for said in found.found.values() if said.startswith("not held")] == [
        "not held: SimpleNamespace has no specification here",
        "not held: tiles with a scale for each row have no specification here",
    ]


class Failing(NVFP4Quantizer):
    def __init__(self, error):
        super().__init__(Nvfp4Recipe().rounding("input"))
        self.error = error

    def __call__(self, x):
        raise self.error


Failing.__name__ = "NVFP4Quantizer"


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (RuntimeError("CUDA error: no kernel image is available\nmore"), True),
        (AssertionError("Device compute capability 10.0 or higher required"), True),
        (TypeError("unexpected keyword"), False),
        (AttributeError("no such field"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_kernel_that_fails_is_wrong_and_one_that_cannot_be_called_is_not_held(error, wrong):
    engine = ProbeEngine()
    engine.quantizers["input"] = Failing(error)
    found = held(engine)
    said = f"it fails: {str(error).splitlines()[0]}" if wrong else f"not held: {error}"
    assert found.found["input"] == said and found.problem == (f"input: {said}" if wrong else "")
    assert len(found.found) > 5, "the others are held all the same"
    assert held(engine, required=True).problem == f"input: {said}"


def test_an_engine_of_other_names_stops_only_where_a_probe_is_all_there_is_to_trust():
    def make():
        raise ImportError("cannot import name 'RecipeState'")

    assert probe.probe(make, "cpu").problem == ""
    assert probe.probe(make, "cpu", required=True).problem.startswith("quantizers: not held: cannot import name")


def test_memory_that_is_short_is_no_fault_of_the_kernels():
    engine = ProbeEngine()
    engine.quantizers["input"] = Failing(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        held(engine)


def test_tensors_and_their_roundings_are_the_recipes():
    for recipe in RECIPES:
        for tensor in TENSORS:
            how = recipe.rounding(tensor)
            assert formats.of_quantizer(NVFP4Quantizer(how)) == formats.Nvfp4(how)
    assert isinstance(Nvfp4Recipe().rounding("weight"), Rounding)
