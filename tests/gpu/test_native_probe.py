"""The probe of Transformer Engine's own kernels: those for this GPU pass, and what is tampered with is found.

Run by `make test-gpu`; skipped where there is no GPU or no Transformer Engine.
"""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)
pytest.importorskip("transformer_engine.pytorch", reason="no Transformer Engine")


from transformer_engine.common import recipe as recipes
from transformer_engine.pytorch import quantization

from pretraining import packages
from pretraining.request.precisions import PRECISIONS
from pretraining.selfcheck import probe

# By precision; and delayed scaling, which is none of the table's.
RECIPES = {
    "fp8": lambda: recipes.Float8CurrentScaling(fp8_format=recipes.Format.HYBRID),
    "fp8_blockwise": lambda: recipes.Float8BlockScaling(fp8_format=recipes.Format.E4M3),
    "mxfp8": lambda: recipes.MXFP8BlockScaling(fp8_format=recipes.Format.E4M3),
    "nvfp4": lambda: recipes.NVFP4BlockScaling(),
    "delayed": lambda: recipes.DelayedScaling(),
}


def engine(name):
    row, capability = PRECISIONS.get(name, PRECISIONS["fp8"]), torch.cuda.get_device_capability()
    if not row.trains_on(capability) or (row.is_probed(capability) and not packages.engine_has(packages.PROBED)):
        pytest.skip(f"this GPU has no {name}")
    if name == "fp8_blockwise" and not (found := quantization.check_fp8_block_scaling_support())[0]:
        pytest.skip(found[1])
    return probe.TransformerEngine(RECIPES[name]())


@pytest.mark.parametrize("name", RECIPES)
def test_the_kernels_of_this_gpu_pass(name):
    native = engine(name)
    torch.cuda.manual_seed(7)
    before = torch.cuda.get_rng_state()
    found = probe.probe(lambda: native)
    print(f"{name}: {found.seconds, found.found}")
    assert found.problem == "" and not any(said.startswith("not held") for said in found.found.values())
    assert len(found.found) == 6 + len(probe.RESULTS) * (name != "delayed")
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert probe.probe(lambda: native).seconds < 2


class Tampered:
    """A quantizer, one of whose result's tensors is changed in place."""

    def __init__(self, quantizer, field, change):
        self._of, self._field, self._change = quantizer, field, change
        self.__class__ = type(type(quantizer).__name__, (Tampered,), {})

    def __getattr__(self, name):
        return getattr(self._of, name)

    def __call__(self, x):
        made = self._of(x)
        self._change(getattr(made, self._field))
        return made


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("tensor", ["input", "grad_output"])
def test_kernels_that_are_tampered_with_are_found(name, tensor):
    whole = "fp8", "delayed"
    data, scale = ("_data", "_scale_inv") if name in whole else ("_rowwise_data", "_rowwise_scale_inv")
    ways = {
        "elements are zero": (data, lambda codes: codes.zero_()),
        "scales are not the specification's": (scale, lambda scales: _double(scales, 8 if name == "nvfp4" else 1)),
    }
    if not (name == "nvfp4" and tensor == "grad_output"):  # rounded by chance
        ways["not rounded to the nearest"] = (data, lambda codes: codes.bitwise_and_(0xEE))
    for said, (field, change) in ways.items():
        native = engine(name)
        native.quantizers[tensor] = Tampered(native.quantizers[tensor], field, change)
        found = probe.probe(lambda native=native: native)
        assert found.problem.startswith(f"{tensor}, rows: ") and said in found.problem, found.problem


def _double(scales, step):
    """`step`: what a factor of two adds to the bits of a scale of 8 bits."""
    if scales.dtype == torch.float32:
        scales.mul_(2)
    else:
        scales.view(torch.uint8).add_(step)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "delayed"])
@pytest.mark.parametrize("number", range(len(probe.RESULTS)), ids=probe.RESULTS)
def test_a_product_that_is_wrong_is_found(name, number):
    native = engine(name)
    right = native.layer

    def layer(*given):
        results = list(right(*given))
        results[number] = results[number].roll(1, 0)
        return tuple(results)

    native.layer = layer
    assert probe.probe(lambda: native).problem.startswith(f"layer, {probe.RESULTS[number]}: ")
