"""The probe of FP8: an own, slow quantizer for each of Transformer Engine's, whole and tampered with."""

import re
from types import SimpleNamespace

import pytest
import torch
from stand_ins import held

from pretraining.request.recipe.nvfp4_recipe import TENSORS
from pretraining.selfcheck import engines, formats, step

pytestmark = pytest.mark.usefixtures("one_thread")


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
    found = held(Fp8Engine(kinds))
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

        found = held(Fp8Engine(FP8[name], tamper))
        assert re.search(f"input, rows: .*{said}", found.problem), (said, found.problem)


@pytest.mark.parametrize("name", ["current", "blockwise", "mxfp8"])
def test_what_fp8_comes_to_is_near_what_went_in(name):
    x = torch.randn(128, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    for kind, attributes in FP8[name]:
        known = formats.of_quantizer(quantizer(kind, **attributes))
        for side_name, matrix in engines.matrices(x).items():
            apart = step.relative(known.specified(matrix, side_name), matrix)
            assert 0.01 < apart < (0.09 if known.dtype == torch.float8_e5m2 else 0.04)
    assert tuple(engines.matrices(x)) == engines.SIDES
