"""The table of precisions against Megatron-Bridge's own presets."""

import pytest

from pretraining.errors import UsageError
from pretraining.request.precisions import PRECISIONS, default_tail, find_precision

FP8 = ("fp8", "fp8_delayed")  # by the scale of a whole tensor


@pytest.fixture
def presets(megatron) -> dict:
    """Each preset of the table as Megatron-Bridge has it: its formats, its head and tail layers."""
    return megatron("presets")


def test_every_preset_exists_and_is_what_its_name_says(presets) -> None:
    assert all(preset["bf16"] for preset in presets.values())
    assert not presets["bf16"]["fp8"] and not presets["bf16"]["fp4"]
    assert presets["nvfp4"]["fp4"] and not presets["nvfp4"]["fp8"]
    recipes = {"fp8": "tensorwise", "fp8_delayed": "delayed", "fp8_blockwise": "blockwise", "mxfp8": "mxfp8"}
    assert {name for name, preset in presets.items() if preset["fp8"]} == set(recipes)
    assert {name: presets[name]["recipe"] for name in recipes} == recipes


@pytest.mark.parametrize("name", [name for name in PRECISIONS if name != "nvfp4"])
def test_head_and_tail_are_the_presets_own(presets, name: str) -> None:
    row = PRECISIONS[name]
    assert (row.bf16_head, row.bf16_tail) == (presets[name]["head"], presets[name]["tail"])


def test_nvfp4_keeps_an_eighth_of_the_layers_in_bf16() -> None:
    nvfp4 = find_precision("nvfp4")
    assert {layers: default_tail(nvfp4, layers) for layers in (1, 4, 8, 16, 28, 32, 80, 126)} == {
        1: 1, 4: 1, 8: 1, 16: 2, 28: 3, 32: 4, 80: 10, 126: 15,
    }  # fmt: skip
    assert default_tail(find_precision("fp8"), 32) == 1
    assert default_tail(find_precision("bf16"), 32) == 0


def test_capabilities() -> None:
    assert {row.name for row in PRECISIONS.values() if row.on_cpu} == {"bf16", "nvfp4"}
    assert find_precision("bf16").capabilities is None
    assert set(find_precision("nvfp4").capabilities) == {(10, 0), (10, 3)}
    assert (9, 0) in find_precision("fp8").capabilities and (9, 0) in find_precision("fp8_blockwise").capabilities
    assert (9, 0) not in find_precision("mxfp8").capabilities


@pytest.mark.parametrize(
    ("capability", "trains", "probed"),
    [
        ((9, 0), {"bf16", *FP8, "fp8_blockwise"}, set()),
        ((10, 3), {"bf16", *FP8, "mxfp8", "nvfp4"}, set()),
        ((10, 7), {"bf16", *FP8, "mxfp8", "nvfp4"}, {*FP8, "mxfp8", "nvfp4"}),
        ((12, 0), {"bf16", *FP8, "nvfp4"}, {"nvfp4"}),
        ((12, 1), {"bf16", *FP8, "nvfp4"}, {"nvfp4"}),
    ],
)
def test_what_is_only_let_in_by_a_probe(capability, trains, probed) -> None:
    rows = PRECISIONS.values()
    assert {row.name for row in rows if row.trains_on(capability)} == trains
    assert {row.name for row in rows if row.is_probed(capability)} == probed
    assert not any(row.is_probed(capability, emulate=True) for row in rows if row.fp4)


def test_an_unknown_precision_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown precision 'nvpf4': did you mean nvfp4\? There are bf16, fp8"):
        find_precision("nvpf4")
