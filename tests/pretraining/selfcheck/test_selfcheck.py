"""`make selfcheck` with the specification in the native kernels' place: equality, and every kind of tampering."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this machine")

from stand_ins import Reference, Specified, matrix

from pretraining.numerics import nvfp4
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe as Recipe
from pretraining.request.recipe.nvfp4_recipe import Rounding
from pretraining.selfcheck import check, engines, report, rounding

VECTORS = Path(__file__).parents[2] / "vectors" / "nvfp4_reference.pt"
DRAWS = 16
RHT = Rounding(rht=True)


def exact(native, mode, x=None):
    """Native results by side; our kernels must be right, whatever the native ones are."""
    found = list(check.exact("x", matrix() if x is None else x, mode, native, Specified(), "cpu"))
    ours = [each for each in found if each.side.startswith("our kernels")]
    assert len(ours) == 2 and all(each.equal for each in ours)
    return {each.side: each for each in found if each not in ours}


def first(result):
    return {each["part"]: each for each in result.details["differences"]}


def tampered(side, change):
    """A native side whose `side` is what `change(Stored)` makes of it."""
    return Reference(lambda of, kept: change(kept) if of == side else kept)


def changed(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


def test_equality_is_reported_as_equality():
    sizes = {"shapes": ((48, 80),), "drawn": (32, 64), "draws": DRAWS}
    found = list(check.everything(Reference(), Specified(), VECTORS, "cpu", **sizes))
    assert report.equal(found), [each for each in found if not each.equal]
    assert report.verdict(found).startswith("equal: ")
    sides = {(each.mode, each.side) for each in found}
    assert len(found) > 150 and len(sides) == 3 * 4 + 2 * 8 + 1
    assert {name for each in found if (name := each.name).startswith("vector")} == {
        f"vector {case['name']}" for case in torch.load(VECTORS)
    }


@pytest.mark.parametrize("mode", check.EXACT, ids=lambda mode: mode.name)
@pytest.mark.parametrize("side", engines.SIDES)
def test_one_code(mode, side):
    def change(kept):
        return kept._replace(codes=changed(kept.codes, (3, 5), kept.codes[3, 5] ^ 0x20))

    found = exact(tampered(side, change), mode)
    (other,) = set(engines.SIDES) - {side}
    assert found[other].equal and not found[side].equal and not found[side].cause
    (code,) = found[side].details["differences"]
    assert code["part"] == "codes" and code["count"] == 1 and code["index"] == (3, 11)
    assert f"at [3, 11], 1 of {48 * 80}" in found[side].problem


@pytest.mark.parametrize("mode", check.EXACT, ids=lambda mode: mode.name)
@pytest.mark.parametrize("side", engines.SIDES)
def test_one_block_scale(mode, side):
    def change(kept):
        return kept._replace(scales=changed(kept.scales, (7, 2), kept.scales[7, 2] + 1))

    found = exact(tampered(side, change), mode)[side]
    (scale,) = found.details["differences"]
    assert scale["part"] == "block scales" and scale["count"] == 1 and scale["index"] == (7, 2) and not found.cause


@pytest.mark.parametrize("side", engines.SIDES)
def test_the_amax(side):
    def change(kept):
        return kept._replace(amax=torch.nextafter(kept.amax, torch.tensor(torch.inf)))

    found = exact(tampered(side, change), RHT)[side]
    assert list(first(found)) == ["amax"] and not found.cause
    assert first(found)["amax"]["native"] != first(found)["amax"]["ours"]


@pytest.mark.parametrize("number", [0, 7, 15])
def test_a_sign_of_the_hadamard_transform_is_a_difference_without_a_known_cause(number):
    signs = torch.ones(16, dtype=torch.bfloat16)
    signs[number] = -1
    found = exact(Reference(before=lambda x: x * signs.repeat(x.shape[1] // 16)), RHT)
    assert found["rows"].equal and not found["columns"].equal
    assert not found["columns"].cause


def test_no_rounding_of_the_hadamard_transform():
    found = exact(Reference(before=lambda x: x.float()), RHT)
    assert found["columns"].cause == "the Hadamard transform's sums are not rounded to BF16"


def test_no_hadamard_transform():
    class Without(Reference):
        def quantize(self, x, mode):
            return super().quantize(x, Rounding(tile=mode.tile))

    found = exact(Without(), RHT)
    assert found["rows"].equal and not found["columns"].equal and not found["columns"].cause
    assert exact(Without(), Rounding())["columns"].equal


def test_another_order_of_the_block_scale_is_named_with_its_version():
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(20)).bfloat16()  # one in 15 of such matrices
    found = exact(Reference(folded=True), Rounding(), x)["rows"]
    assert not found.equal and 0 < first(found)["block scales"]["count"] < 30
    assert found.cause == "block scale computed as amax * (encode * (1 / 6)): Transformer Engine from 2.14"
    assert "Not explained" not in report.verdict([found]) and found.cause in report.verdict([found])


@pytest.mark.parametrize("side", engines.SIDES)
def test_wrong_layouts(side):
    for change, said in (
        (lambda kept: kept._replace(codes=kept.codes.T), "layout: codes of shape"),
        (lambda kept: kept._replace(scales=kept.scales[:48]), "layout: block scales of shape"),
        (lambda kept: kept._replace(amax=kept.amax.repeat(48)), "layout: amax of shape (48,), expected (1,)"),
        (lambda kept: kept._replace(swizzled=True), "layout: block scales in the order of cuBLAS's tiles"),
    ):
        assert said in exact(tampered(side, change), Rounding())[side].problem


def test_the_sign_of_a_zero_is_told_and_does_not_count():
    def change(kept):
        return kept._replace(codes=torch.where(kept.codes == 0, 0x80, kept.codes).to(torch.uint8))

    x = matrix() * (torch.arange(80) % 3 > 0)
    found = exact(tampered("rows", change), Rounding(), x)["rows"]
    assert found.equal and found.details["zeros_of_other_sign"] > 0
    assert "but for the sign of" in report.verdict([found])


def test_rows_that_are_no_multiple_of_the_tile():
    x = matrix(40)
    assert all(each.equal for mode in check.EXACT for each in exact(Reference(), mode, x).values())

    def change(kept):
        return kept._replace(codes=changed(kept.codes, (39, 39), kept.codes[39, 39] ^ 0x20))

    assert first(exact(tampered("rows", change), Rounding(), x)["rows"])["codes"]["index"] == (39, 79)


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:overflow", "ignore:invalid value", "ignore:underflow")
@pytest.mark.parametrize("mode", check.EXACT, ids=lambda mode: mode.name)
def test_our_kernels_are_held_against_the_specification(mode):
    x = matrix(20, 64)
    found = list(check.exact("x", x, mode, Reference(), engines.Ours(), "cpu"))
    assert len(found) == 4 and all(each.equal for each in found), found

    class Wrong(Specified):
        def kernels(self, x, mode, seed=0):
            made = super().kernels(x, mode)
            made["rows"].values[3, 5] *= 2
            return made | {"columns": made["columns"]._replace(scale=made["columns"].scale * 2)}

    found = {each.side: each for each in check.exact("x", x, mode, Reference(), Wrong(), "cpu")}
    assert found["rows"].equal and found["columns"].equal
    assert "kernel values at [3, 5], 1 of 1280" in found["our kernels, rows"].problem
    assert "tensor scale" in found["our kernels, columns"].problem
    assert "our own kernels are not what the specification says" in report.verdict(list(found.values()))


def drawn(native, mode=RHT):
    mode = Rounding(rht=mode.rht, stochastic=True)
    found = list(check.stochastic(matrix(32, 64), mode, native, Specified(), "cpu", DRAWS))
    assert all(each.equal for each in found if each.side.startswith("our kernels"))
    return {each.side: each for each in found}


def away_from_zero(scaled, uniform):
    below, distance = nvfp4.neighbours(scaled)
    return below + (distance > 0).int() + 8 * (scaled < 0)


def to_nearest(scaled, uniform):
    return nvfp4.nearest_codes(scaled)


def a_tenth_more(scaled, uniform):
    below, distance = nvfp4.neighbours(scaled)
    return below + ((uniform < 1.1 * distance) & (distance > 0)).int() + 8 * (scaled < 0)


def two_steps(scaled, uniform):
    codes = a_tenth_more(scaled, uniform)
    codes[5, 17] = (int(codes[5, 17]) & 8) | ((int(codes[5, 17]) + 4) & 7)
    return codes


def same_numbers(scaled, uniform):
    below, distance = nvfp4.neighbours(scaled)
    uniform = torch.rand(scaled.shape, generator=torch.Generator().manual_seed(1))
    return below + (uniform < distance).int() + 8 * (scaled < 0)


@pytest.mark.parametrize(
    ("rounded", "said"),
    [
        (away_from_zero, "all of 16 draws are the same"),
        (to_nearest, "all of 16 draws are the same"),
        (same_numbers, "all of 16 draws are the same"),
        (a_tenth_more, "biased by +0.0"),
        (two_steps, "16 roundings to no neighbour, the first at [5, 17]"),
    ],
)
def test_wrong_stochastic_rounding(rounded, said):
    found = drawn(Reference(rounded=rounded))
    assert all(said in found[side].problem for side in engines.SIDES)
    assert all(found[f"{side}: scales"].equal for side in engines.SIDES)


def test_rounding_to_nearest_is_biased_although_right_on_average():
    scaled = torch.rand(64, 128, generator=torch.Generator().manual_seed(1)) * 12 - 6
    nearest = nvfp4.decode(nvfp4.nearest_codes(scaled))
    judged = rounding.judge([nearest, nearest], scaled)
    assert abs(sum(judged.biases)) / rounding.GROUPS < judged.limits[0] < abs(judged.biases[judged.worst])


def test_a_block_scale_that_changes_with_stochastic_rounding():
    def change(kept):
        return kept._replace(scales=changed(kept.scales, (7, 1), kept.scales[7, 1] + 1))

    found = drawn(tampered("columns", change))
    assert found["rows: scales"].equal and found["columns"].equal
    assert "block scales at [7, 1], 1 of 128" in found["columns: scales"].problem


@pytest.mark.parametrize("without", ["rht", "two_d"])
def test_a_training_step_in_another_recipe(without):
    native = Reference(recipe=Recipe(stochastic=False, **{without: False}))
    found = {each.name: each for each in check.training_step(native, Specified(), "cpu")}
    wrong = {name.removeprefix("training step, ") for name, each in found.items() if not each.equal}
    one_layer = {"rht": {"1 layer: weight gradient"}, "two_d": {"1 layer: output", "1 layer: input gradient"}}[without]
    assert {name for name in wrong if name.startswith("1 layer")} == one_layer
    assert {f"2 layers: weight gradient {n}" for n in (1, 2)} <= wrong
