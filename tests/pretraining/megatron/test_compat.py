"""What is chosen by the versions that are installed."""

import ast
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pretraining import packages
from pretraining.errors import UsageError
from pretraining.megatron import compat

OURS = "pretraining.numerics.te_quantizer.quantizer_factory"


@pytest.fixture
def with_packages(monkeypatch):
    """`with_packages("triton", ...)`: these modules can be found, and no others."""

    def found(*names):
        monkeypatch.setattr(compat, "find_spec", lambda name: name.rsplit(".", 1)[-1] in names or None)

    return found


CUSTOM = [
    "common.recipe.CustomRecipe",
    "pytorch.cpp_extensions.gemm.custom_gemm",
    "pytorch.quantized_tensor.Quantizer",
]
REFERENCES = {
    "2.10.0": "pytorch.custom_recipes.quantization_nvfp4.nvfp4_ref_rht_2d_quantizer_factory",
    "2.12.0": "pytorch.custom_recipes.quantization_nvfp4.nvfp4_ref_rht_2d_quantizer_factory",
    "2.15.0": "pytorch.custom_recipes.quantization_nvfp4.nvfp4_ref_rht_2d_quantizer_factory",
    "2.16.1": "pytorch.custom_recipes.quantization_ref_nvfp4.nvfp4_ref_rht_2d_quantizer_factory",
    "2.18.0+abc": "pytorch.custom_recipes.quantization_ref_nvfp4.nvfp4_ref_rht_2d_quantizer_factory",
    "2.19.0": "pytorch.custom_recipes.reference_nvfp4.nvfp4_ref_rht_2d_factory",
    "2.20.2": "pytorch.custom_recipes.reference_nvfp4.nvfp4_ref_rht_2d_factory",
}


@pytest.fixture
def engine(monkeypatch):
    """`engine("2.20.2", ["common.recipe.CustomRecipe"])`: a Transformer Engine of these names alone."""

    def install(release: str | None, names: list[str]) -> None:
        for module in [each for each in sys.modules if each.split(".")[0] == "transformer_engine"]:
            monkeypatch.delitem(sys.modules, module)
        known = {"megatron-bridge": "0.3.1"} | ({"transformer-engine": release} if release else {})
        monkeypatch.setattr(packages, "installed", lambda: known)
        if release is None:
            monkeypatch.setitem(sys.modules, "transformer_engine", None)
        for name in (*names, "pytorch.custom_recipes.gemm") if release else ():
            path = f"transformer_engine.{name}".split(".")
            for depth in range(1, len(path)):
                module = sys.modules.get(".".join(path[:depth])) or ModuleType(".".join(path[:depth]))
                module.__path__ = []
                monkeypatch.setitem(sys.modules, module.__name__, module)
            setattr(module, path[-1], object())

    return install


@pytest.mark.parametrize("release", REFERENCES)
def test_what_is_probed_of_transformer_engine_is_what_is_used(engine, with_packages, release: str) -> None:
    with_packages("triton")
    engine(release, [*CUSTOM, REFERENCES[release]])
    assert compat.quantizer_factory("reference") == f"transformer_engine.{REFERENCES[release]}"
    assert compat.quantizer_factory("triton") == OURS
    engine(release, CUSTOM)
    assert compat.quantizer_factory("triton") == OURS, "which has nothing to do with Transformer Engine's reference"
    engine(release, [REFERENCES[release]])
    assert compat.quantizer_factory("reference") == f"transformer_engine.{REFERENCES[release]}"


@pytest.mark.parametrize("emulator", ["triton", "reference"])
def test_what_an_emulator_lacks_is_said_as_it_is(engine, with_packages, emulator: str) -> None:
    with_packages("triton")
    engine(None, [])
    with pytest.raises(UsageError, match="needs Transformer Engine, and none is installed: leave RUNTIME out"):
        compat.quantizer_factory(emulator)
    engine("2.8.0", [])
    with pytest.raises(
        UsageError, match=r"custom recipes, which came with 2\.10, and this is 2\.8\.0: NeMo 26\.02 has"
    ):
        compat.quantizer_factory(emulator)
    engine("2.31.4", CUSTOM[:1])
    with pytest.raises(UsageError, match=r"which Transformer Engine 2\.31\.4 does not have: it was renamed") as caught:
        compat.quantizer_factory(emulator)
    assert {"triton": "gemm.custom_gemm and", "reference": "nvfp4_ref_rht_2d_factory or"}[emulator] in str(caught.value)
    assert "newer" not in str(caught.value)


def test_triton_is_needed_by_the_emulator_that_is_made_with_it(engine, with_packages) -> None:
    with_packages()
    engine("2.16.1", [*CUSTOM, REFERENCES["2.16.1"]])
    with pytest.raises(UsageError, match=r"needs Triton.*pip install triton, or --emulate reference"):
        compat.quantizer_factory("triton")
    assert compat.quantizer_factory("reference")


def test_what_fails_within_transformer_engine_is_not_called_its_absence(tmp_path, monkeypatch) -> None:
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text("import onnxscript_of_nobody")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "transformer_engine", raising=False)
    with pytest.raises(ModuleNotFoundError, match="onnxscript_of_nobody"):
        compat.quantizer_factory("reference")


@pytest.mark.parametrize(
    ("installed", "folds"), [("2.12.0", False), ("2.13.1", False), ("2.14.0+abc", True), ("3.0", True), (None, False)]
)
def test_the_order_of_a_block_scale_follows_transformer_engine(monkeypatch, installed, folds) -> None:
    monkeypatch.setattr(packages, "installed", lambda: {"transformer-engine": installed} if installed else {})
    packages.folds_block_scale.cache_clear()
    assert packages.folds_block_scale() is folds
    packages.folds_block_scale.cache_clear()


@pytest.fixture
def fusion(monkeypatch):
    """Megatron-Core's linear layers, and what of them the fusion changes put back."""
    from megatron.core.tensor_parallel import layers

    monkeypatch.setattr(layers, "_grad_accum_fusion_available", False)
    monkeypatch.setattr(layers, "fused_weight_gradient_mlp_cuda", None, raising=False)
    return layers


def test_apexs_kernel_is_left_where_it_is(with_packages, fusion) -> None:
    with_packages("fused_weight_gradient_mlp_cuda")
    assert compat.fuse_gradient_accumulation()
    assert fusion.fused_weight_gradient_mlp_cuda is None


def test_pytorchs_product_takes_the_place_of_apexs(with_packages, fusion, monkeypatch) -> None:
    with_packages()
    assert compat.fuse_gradient_accumulation()
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
    assert not compat.fuse_gradient_accumulation()
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
    compat.save_without_nvrx()
    assert strategies.HAVE_NVRX is kept


@pytest.mark.parametrize("its_own", [None, "0.6.0"])
def test_an_nvrx_without_a_version_gets_that_of_its_package(monkeypatch, tmp_path, its_own: str | None) -> None:
    package, info = tmp_path / "nvidia_resiliency_ext", tmp_path / "nvidia_resiliency_ext-0.4.1.dist-info"
    package.mkdir()
    if its_own:
        (package / "__init__.py").write_text(f"__version__ = {its_own!r}\n")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-resiliency-ext\nVersion: 0.4.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nvidia_resiliency_ext", raising=False)
    compat.give_nvrx_a_version()
    assert sys.modules.pop("nvidia_resiliency_ext").__version__ == (its_own or "0.4.1")


RELEASES = {"megatron/compat.py", "packages.py"}  # may tell one release from another
METHOD = {"numerics/cpu_layers.py", "numerics/measured_layers.py"}  # take the place of `_forward_impl`


def _of_megatron(tree: ast.Module) -> set[str]:
    """The names that a module imports from Megatron."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "megatron":
            found |= {each.asname or each.name for each in node.names}
        elif isinstance(node, ast.Import):
            found |= {each.asname or "megatron" for each in node.names if each.name.split(".")[0] == "megatron"}
    return found


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def knows_a_release(source: str) -> list[str]:
    """What of a module depends on the release: a version compared, a private name, a name put in place of another."""
    tree = ast.parse(source)
    names, found = _of_megatron(tree), []
    for node in ast.walk(tree):
        private = [node.attr] if isinstance(node, ast.Attribute) else []
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("megatron"):
            found += [each.name for each in node.names if each.name.startswith("_")]
        if isinstance(node, ast.Attribute) and _root(node) in names:
            replaced = isinstance(node.ctx, ast.Store)
            found += [ast.unparse(node)] if replaced or node.attr.startswith("_") else []
        if isinstance(node, ast.Constant) and node.value == "_forward_impl":
            private.append(node.value)
        found += [each for each in private if each in ("_forward_impl", "__dataclass_fields__")]
        called = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        if called in ("hasattr", "is_te_min_version", "is_torch_min_version", "Version"):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Compare) and "release()" in ast.unparse(node):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("source", [
    "from megatron.core.x import _Y",
    "import megatron.core.x as x\nx._y()",
    "from megatron.bridge import AutoBridge\nAutoBridge.load = None",
    "vars(layer).pop('_forward_impl')",
    "if hasattr(config, 'fp4_param_gather'): pass",
    "from pretraining import packages\nold = packages.engine_release() < (2, 10)",
])  # fmt: skip
def test_what_depends_on_a_release_is_seen(source: str) -> None:
    assert len(knows_a_release(source)) == 1


def test_releases_differ_in_one_module() -> None:
    """A Megatron-Bridge is added in `compat.py` and by a file of pins."""
    folder = Path(compat.__file__).parents[1]
    modules = {str(path.relative_to(folder)): path for path in folder.rglob("*.py")}
    found = {name: knows_a_release(path.read_text()) for name, path in modules.items() if name not in RELEASES}
    assert {name: set(what) for name, what in found.items() if what} == {name: {"_forward_impl"} for name in METHOD}
