"""Run by the tests with the Python sources of one Transformer Engine: what the project asks of them.

    python engine_contract.py ANSWERS.json FOLDER

FOLDER holds the package; nothing of it is imported but its reference quantizer, in plain PyTorch, which takes the
native kernels' place in the probe. Names and keywords are read in its syntax trees.
"""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pretraining import packages
from pretraining.megatron import compat
from pretraining.request.recipe import nvfp4_recipe
from pretraining.request.recipe.nvfp4_recipe import TENSORS, Nvfp4Recipe, Rounding
from pretraining.selfcheck import engines, probe

SOURCES = Path(sys.argv[2]) / "transformer_engine"
# Of a class: keywords of its `__init__`, and the attributes that the probe reads.
QUANTIZERS = {
    ("pytorch/tensor/nvfp4_tensor.py", "NVFP4Quantizer"): (
        "rowwise columnwise with_rht with_post_rht_amax with_2d_quantization stochastic_rounding",
        "with_rht with_2d_quantization stochastic_rounding",
    ),
    ("pytorch/tensor/float8_tensor.py", "Float8Quantizer"): ("scale", "scale dtype"),
    ("pytorch/tensor/float8_tensor.py", "Float8CurrentScalingQuantizer"): (
        "", "force_pow_2_scales amax_epsilon dtype"),
    ("pytorch/tensor/float8_blockwise_tensor.py", "Float8BlockQuantizer"): (
        "", "force_pow_2_scales amax_epsilon dtype block_len block_scaling_dim"),
    ("pytorch/tensor/mxfp8_tensor.py", "MXFP8Quantizer"): ("", "dtype"),
}  # fmt: skip
CHOOSES = "nvfp4_use_4over6 nvfp4_e4m3_max nvfp4_4over6_err_mode row_scaled_nvfp4"  # since `packages.FOUR_OVER_SIX`
_SIDES = [f"_{side}_{what}" for side in ("rowwise", "columnwise") for what in ("data", "scale_inv")]
STORED = {
    "nvfp4_tensor_storage": [*_SIDES, "_amax_rowwise", "_amax_columnwise", "_with_gemm_swizzled_scales"],
    "float8_tensor_storage": ["_data", "_transpose", "_transpose_invalid", "_scale_inv"],
    "float8_blockwise_tensor_storage": _SIDES,
    "mxfp8_tensor_storage": [*_SIDES, "_with_gemm_swizzled_scales"],
}
CALLED = {
    ("pytorch/quantization.py", "RecipeState.create"): "recipe mode num_quantizers",
    ("pytorch/quantization.py", "fp8_autocast"): "enabled fp8_recipe",
    ("pytorch/module/linear.py", "Linear.__init__"): "in_features out_features bias params_dtype device",
}
HYBRID = {  # since `packages.HYBRID`
    ("pytorch/tensor/hybrid_tensor.py", "HybridQuantizer.__init__"): "rowwise_quantizer columnwise_quantizer",
    ("pytorch/tensor/identity_tensor.py", "IdentityQuantizer.__init__"): "",
}


def names_and_keywords() -> list[str]:
    """What the sources do not have of it."""
    missing = []
    for (file, name), (keywords, attributes) in QUANTIZERS.items():
        found, more = _definition(file, name), CHOOSES.split() if _may_choose() and name.startswith("NVFP4") else []
        has = _keywords(_definition(file, f"{name}.__init__"))
        missing += [f"{name}({each}=)" for each in (*keywords.split(), *more) if each not in has]
        missing += [f"{name}.{each}" for each in (*attributes.split(), *more) if each not in _attributes(found)]
    for file, fields in STORED.items():
        text = (SOURCES / f"pytorch/tensor/storage/{file}.py").read_text(encoding="utf-8")
        missing += [f"{file}: {each}" for each in fields if f"{each}:" not in text and f".{each} =" not in text]
    for (file, name), keywords in (CALLED | (HYBRID if packages.engine_has(packages.HYBRID) else {})).items():
        has = _keywords(_definition(file, name))
        missing += [f"{name}({each}=)" for each in keywords.split() if each not in has]
    base = _definition("pytorch/module/base.py", "TransformerEngineBaseModule")
    return missing + ["_fp8_workspaces"] * ("_fp8_workspaces" not in _attributes(base))


def variables() -> list[str]:
    """Those that the project sets and this release does not read."""
    text = (SOURCES / "common/recipe/__init__.py").read_text(encoding="utf-8")
    return [each for each in nvfp4_recipe.ENGINE_VARIABLES if f'"{each}"' not in text]


def _may_choose() -> bool:
    return packages.engine_has(packages.FOUR_OVER_SIX)


def _definition(file: str, name: str) -> Any:
    found: Any = ast.parse((SOURCES / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        found = next(each for each in found.body if getattr(each, "name", None) == part)
    return found


def _keywords(function: ast.FunctionDef) -> set[str]:
    return {each.arg for each in (*function.args.args, *function.args.kwonlyargs)}


def _attributes(found: ast.ClassDef) -> set[str]:
    return {
        each.attr
        for each in ast.walk(found)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self"
    }


class NVFP4Quantizer:
    """The release's reference quantizer, with the attributes and the tensors of its native one."""

    def __init__(self, reference: Any, how: Rounding) -> None:
        self.with_2d_quantization, self.with_rht, self.stochastic_rounding = how.is_own_transpose, how.rht, False
        self.nvfp4_use_4over6, self.nvfp4_e4m3_max = bool(how.four_over_six), 256
        self.nvfp4_4over6_err_mode, self.row_scaled_nvfp4 = how.four_over_six.upper(), how.by_row
        more = {"nvfp4_use_4over6": True, "nvfp4_e4m3_max": 256, "nvfp4_4over6_err_mode": self.nvfp4_4over6_err_mode}
        formats = importlib.import_module(reference.__module__)
        dtypes = getattr(formats, "reference_utils", None) or formats.utils
        asked = (more if how.four_over_six else {}) | ({"row_scaled_nvfp4": True} if how.by_row else {})
        self._of = reference(dtypes.Fp4Formats.E2M1, quant_tile_shape=how.tile, with_rht=how.rht, **asked)

    def __call__(self, x: Tensor) -> SimpleNamespace:
        made = self._of.quantize(x)
        fields = {}
        for side, data, scale, amax in (
            ("rowwise", made.data, made.scale, made.global_amax_row),
            ("columnwise", made.data_t, made.scale_t, made.global_amax_col),
        ):
            rows, blocks = scale.shape
            padded = torch.zeros(rows + -rows % engines.SCALE_ROWS, blocks + -blocks % engines.SCALE_COLUMNS)
            padded = padded.to(torch.float8_e4m3fn)
            padded[:rows, :blocks] = scale.view(torch.float8_e4m3fn)
            fields |= {f"_{side}_data": data, f"_{side}_scale_inv": padded, f"_amax_{side}": amax.flatten().float()}
        return SimpleNamespace(**fields)


class Engine:
    """The reference where the engine belongs."""

    def __init__(self, reference: Any, recipe: Nvfp4Recipe) -> None:
        self.quantizers = {each: NVFP4Quantizer(reference, recipe.rounding(each)) for each in TENSORS}

    def layer(self, x: Tensor, weight: Tensor, gradient: Tensor) -> None:
        """The reference has no layer without the engine."""


def reference_quantizer() -> Any:
    """`NVFP4QuantizerRef`, in packages whose own code, which loads CUDA's libraries, does not run."""
    for name in ("", ".pytorch", ".pytorch.custom_recipes", ".pytorch.tensor"):
        package = sys.modules[f"transformer_engine{name}"] = ModuleType(f"transformer_engine{name}")
        package.__path__ = [str(SOURCES.joinpath(*name.split(".")[1:]))]

    class Quantizer:
        def __init__(self, *, rowwise: bool, columnwise: bool) -> None:
            self.rowwise_usage, self.columnwise_usage = rowwise, columnwise

    bases = ModuleType("transformer_engine.pytorch.quantized_tensor")
    bases.QuantizedTensorStorage, bases.Quantizer = object, Quantizer
    helpers = ModuleType("transformer_engine.pytorch.tensor.utils")
    helpers.is_custom = lambda tensor: True
    sys.modules |= {module.__name__: module for module in (bases, helpers)}
    return importlib.import_module(compat.quantizer_factory("reference").rpartition(".")[0]).NVFP4QuantizerRef


def probed() -> dict[str, Any]:
    """By words of the recipe: what the probe says of the release's reference quantizer."""
    reference, answers = reference_quantizer(), {}
    chosen = ("", "weights", "all") if _may_choose() else ("",)
    recipes = [
        Nvfp4Recipe(rht=rht, stochastic=False, two_d=two_d, four_over_six=four_over_six)
        for rht, two_d, four_over_six in itertools.product((True, False), (True, False), chosen)
        if not (rht and four_over_six == "all")
    ]
    if packages.engine_has(packages.ROW_SCALED):
        recipes.append(Nvfp4Recipe(rht=False, stochastic=False, activations="rows"))
    for recipe in recipes:
        found = probe.probe(functools.partial(Engine, reference, recipe), "cpu")
        answers[" ".join(f"{word}={value}" for word, value in recipe.words().items())] = found.found
    return answers


def main() -> None:
    """Write the answers."""
    answers: dict[str, Any] = {"versions": packages.installed()}
    for question in (names_and_keywords, variables, probed):
        try:
            answers[question.__name__] = question()
        except Exception:
            answers[question.__name__] = {"error": traceback.format_exc()[-1500:]}
    Path(sys.argv[1]).write_text(json.dumps(answers, indent=1, default=str))


if __name__ == "__main__":
    main()
