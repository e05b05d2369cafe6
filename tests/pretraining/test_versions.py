"""What is chosen by the versions that are installed."""

import pytest
import torch

from pretraining import versions
from pretraining.errors import UsageError

OURS = "pretraining.numerics.te_recipe.quantizer_factory"


@pytest.fixture
def with_packages(monkeypatch):
    """`with_packages("triton", ...)`: these modules can be found, and no others."""

    def found(*names):
        monkeypatch.setattr(versions, "find_spec", lambda name: name.rsplit(".", 1)[-1] in names or None)

    return found


@pytest.mark.parametrize("module", ["quantization_nvfp4", "quantization_ref_nvfp4"])  # to 2.15, and from 2.16
def test_quantizer_factories(with_packages, module) -> None:
    with_packages(module, "triton")
    assert versions.quantizer_factory("triton") == OURS
    theirs = f"transformer_engine.pytorch.custom_recipes.{module}.nvfp4_ref_rht_2d_quantizer_factory"
    assert versions.quantizer_factory("reference") == theirs


def test_emulation_without_what_it_needs(with_packages) -> None:
    with_packages("triton")
    with pytest.raises(UsageError, match=r"custom recipes \(2.10 or newer\), and none is installed"):
        versions.quantizer_factory("triton")
    with_packages("quantization_nvfp4")
    with pytest.raises(UsageError, match=r"needs Triton.*pip install triton, or --emulate reference"):
        versions.quantizer_factory("triton")
    assert versions.quantizer_factory("reference")


@pytest.mark.parametrize(
    ("installed", "folds"), [("2.12.0", False), ("2.13.1", False), ("2.14.0+abc", True), ("3.0", True), (None, False)]
)
def test_the_order_of_a_block_scale_follows_transformer_engine(monkeypatch, installed, folds) -> None:
    monkeypatch.setattr(versions, "installed", lambda: {"transformer-engine": installed} if installed else {})
    versions.folds_block_scale.cache_clear()
    assert versions.folds_block_scale() is folds
    versions.folds_block_scale.cache_clear()


@pytest.fixture
def fusion(monkeypatch):
    """Megatron-Core's linear layers, and what of them the fusion changes put back."""
    from megatron.core.tensor_parallel import layers

    monkeypatch.setattr(layers, "_grad_accum_fusion_available", False)
    monkeypatch.setattr(layers, "fused_weight_gradient_mlp_cuda", None, raising=False)
    return layers


def test_apexs_kernel_is_left_where_it_is(with_packages, fusion) -> None:
    with_packages("fused_weight_gradient_mlp_cuda")
    assert versions.fuse_gradient_accumulation()
    assert fusion.fused_weight_gradient_mlp_cuda is None


def test_pytorchs_product_takes_the_place_of_apexs(with_packages, fusion, monkeypatch) -> None:
    with_packages()
    assert versions.fuse_gradient_accumulation()
    assert fusion._grad_accum_fusion_available
    asked = {}
    monkeypatch.setattr(torch, "addmm", lambda *given, **options: asked.update(given=given, **options))
    inputs, grad_output, main_grad = torch.ones(3, 4), torch.ones(3, 2), torch.zeros(2, 4)
    fusion.fused_weight_gradient_mlp_cuda.wgrad_gemm_accum_fp32(inputs, grad_output, main_grad)
    shapes = [tuple(each.shape) for each in asked["given"]]
    assert shapes == [(2, 4), (2, 3), (3, 4)]
    assert asked["out"] is main_grad  # in place
    assert asked["out_dtype"] == torch.float32


def test_an_older_pytorch_fuses_nothing(with_packages, fusion, monkeypatch) -> None:
    with_packages()
    monkeypatch.setattr(torch.ops.aten.addmm, "overloads", lambda: ["default", "out"])
    assert not versions.fuse_gradient_accumulation()
    assert not fusion._grad_accum_fusion_available


@pytest.mark.parametrize(("whole", "kept"), [(True, True), (False, False)])
def test_half_an_nvrx_is_not_saved_with(monkeypatch, whole: bool, kept: bool) -> None:
    from megatron.core.dist_checkpointing.strategies import torch as strategies

    def get_async_strategy(name: str) -> tuple:
        if not whole:
            raise ModuleNotFoundError("nvidia-resiliency-ext package is not installed.")
        return name, {}

    monkeypatch.setattr(strategies, "HAVE_NVRX", True, raising=False)
    monkeypatch.setattr(strategies, "get_async_strategy", get_async_strategy, raising=False)
    versions.save_without_nvrx()
    assert strategies.HAVE_NVRX is kept
