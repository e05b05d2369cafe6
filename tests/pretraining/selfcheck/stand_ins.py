"""The specification in Transformer Engine's storage layout, in the native kernels' place, whole or tampered with."""

import dataclasses
from types import SimpleNamespace

import torch

from pretraining.numerics import nvfp4
from pretraining.numerics.cpu_layers import NVFP4, PreparedWeight, linear
from pretraining.numerics.nvfp4 import Operand
from pretraining.request.recipe.nvfp4_recipe import TENSORS
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe as Recipe
from pretraining.selfcheck import engines, probe
from pretraining.selfcheck.engines import Stored


def matrix(rows=48, columns=80):
    """The same numbers each time."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)).bfloat16()


def stored(q):
    """A quantized matrix as Transformer Engine keeps it; what it leaves unwritten is not zero."""
    rows, blocks = q.scales.shape
    scales = torch.full((rows + -rows % 128, blocks + -blocks % 4), 0xAA, dtype=torch.uint8)
    scales[:rows, :blocks] = q.scales.view(torch.uint8)
    return Stored(q.codes.clone(), scales, q.amax.flatten())


def as_returned(made):
    """Both sides in the fields of the tensor that Transformer Engine's quantizer returns."""
    fields = {}
    for side, usage in (("rows", "rowwise"), ("columns", "columnwise")):
        names = (f"_{usage}_data", f"_{usage}_scale_inv", f"_amax_{usage}")
        fields |= dict(zip(names, made[side], strict=False))
    return SimpleNamespace(**fields)


class Layers(torch.nn.Module):
    """Linear layers in the CPU runtime's arithmetic, SiLU between them."""

    def __init__(self, weights, arithmetic):
        super().__init__()
        self.arithmetic = arithmetic
        self.weights = torch.nn.ParameterList(weight.float() for weight in weights)

    def forward(self, x):
        x = x.float()
        for number, weight in enumerate(self.weights):
            x = torch.nn.functional.silu(x).bfloat16().float() if number else x
            x = linear(x, weight, None, False, False, False, arithmetic=self.arithmetic, memory=PreparedWeight())
        return x


class Reference:
    """The specification, where the native kernels belong.

    `tamper(side, Stored)` may change what is stored, `before(matrix)` what the columns quantize, `folded` the order in
    which a block's scale is computed.
    """

    def __init__(self, tamper=None, before=None, folded=False, recipe=None, rounded=None):
        self.tamper = tamper or (lambda side, kept: kept)
        self.before, self.folded, self.rounded = before, folded, rounded
        self.recipe = recipe or Recipe(stochastic=False)
        self.generator = torch.Generator().manual_seed(5)

    def quantize(self, x, mode):
        assert x.dtype == torch.bfloat16 and x.shape[0] % 16 == 0
        made = {}
        for side, matrix in zip(engines.SIDES, (x, x.T.contiguous()), strict=True):
            rht = mode.rht and side == "columns"
            matrix = self.before(matrix) if self.before and rht else matrix
            how = dataclasses.replace(mode, rht=rht, stochastic=mode.stochastic and self.rounded is None)
            q = nvfp4.quantize(matrix, how, generator=self.generator, folded=self.folded)
            if mode.stochastic and self.rounded:
                rotated = nvfp4.random_hadamard_transform(matrix) if rht else matrix
                scaled = nvfp4.scale_elements(rotated.float(), q.scales, nvfp4.encode_scale(q.amax))
                codes = self.rounded(scaled, torch.rand(scaled.shape, generator=self.generator))
                q = nvfp4.QuantizedMatrix(nvfp4.pack(codes), q.scales, q.amax)
            made[side] = self.tamper(side, stored(q))
        return made

    def model(self, weights):
        return Layers(weights, NVFP4(self.recipe))


class Specified:
    """Our side, with the specification where the GPU's kernels belong."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(9)

    def kernels(self, x, mode, seed=0):
        made = {}
        for side, matrix in engines.matrices(x).items():
            rht = mode.rht and side == "columns"
            q = nvfp4.quantize(matrix, dataclasses.replace(mode, rht=rht), generator=self.generator)
            made[side] = Operand(q.values.bfloat16(), q.tensor_scale)
        return made

    def model(self, weights):
        return Layers(weights, NVFP4(Recipe(stochastic=False)))


def held(engine, **more):
    """What the probe finds of an engine on the CPU."""
    return probe.probe(lambda: engine, "cpu", **more)


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
        self.row_scaled_nvfp4 = how.by_row
        self.how, self.reference = how, Reference(**reference)

    def __call__(self, x):
        return as_returned(self.reference.quantize(x, self.how))


class ProbeEngine:
    """The recipe's quantizers by the specification; `tampered` are arguments of `Reference` for single ones."""

    def __init__(self, recipe=None, change=None, **tampered):
        self.recipe = self.multiplies = recipe or Recipe()
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


def to_zero(scaled, uniform):
    """A stochastic rounding that leaves nothing."""
    return torch.zeros_like(scaled, dtype=torch.uint8)
