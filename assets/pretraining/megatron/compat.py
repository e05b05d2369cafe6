"""All that may change from one Megatron-Bridge, Megatron-Core or Transformer Engine to the next.

Where the supported releases differ in what this playbook touches, and what it replaces in them by a name that they do
not promise to keep. A new release is mended here, and pinned by a file in requirements/versions. Apart from that,
`numerics/cpu_layers.py` and `megatron/switching.py` take the place of what is Megatron-Core's, and
`numerics/te_quantizer.py`, `numerics/forward_in_bf16.py` and `selfcheck/engines.py` use what is Transformer Engine's.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pretraining import nemo_images, packages
from pretraining.errors import UsageError
from pretraining.megatron import dataset_helper

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer
    from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
    from megatron.bridge.training.state import GlobalState
    from torch import Tensor
    from torch.nn import Module

SUPPORTED = "a supported one (0.3 to 0.6)"


def fuse_gradient_accumulation() -> bool:
    """Have weight gradients added to their FP32 sums within the product that makes them; False where it cannot be.

    Transformer Engine's layers do it unaided. Megatron-Core's own, the vocabulary projection, calls APEX's
    `fused_weight_gradient_mlp_cuda` and refuses to be built without. The NeMo container has it and bare metal seldom:
    there PyTorch's product takes its place.
    """
    if find_spec("fused_weight_gradient_mlp_cuda"):
        return True
    from pretraining.numerics import product

    if not product.adds_weight_gradients():
        return False
    from megatron.core.tensor_parallel import layers

    kernels = dict.fromkeys(("wgrad_gemm_accum_fp32", "wgrad_gemm_accum_fp16"), product.add_weight_gradient)
    layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(**kernels)
    layers._grad_accum_fusion_available = True
    return True


# Transformer Engine's reference quantizer of NVFP4: module below `transformer_engine.pytorch.custom_recipes`, factory.
_REFERENCES = (
    ("reference_nvfp4", "nvfp4_ref_rht_2d_factory"),  # from 2.19
    ("quantization_ref_nvfp4", "nvfp4_ref_rht_2d_quantizer_factory"),  # 2.16 to 2.18
    ("quantization_nvfp4", "nvfp4_ref_rht_2d_quantizer_factory"),  # 2.10 to 2.15
)
# What `numerics/te_quantizer.py` needs of it.
_CUSTOM = (
    ("transformer_engine.common.recipe", "CustomRecipe"),
    ("transformer_engine.pytorch.cpp_extensions.gemm", "custom_gemm"),
    ("transformer_engine.pytorch.quantized_tensor", "Quantizer"),
)


def quantizer_factory(emulator: str) -> str:
    """The factory of NVFP4 quantizers of one of `precisions.EMULATORS`, by its dotted name.

    Raises:
        UsageError: Transformer Engine lacks what the emulator is made with, or Triton is missing.
    """
    if emulator == "reference":
        known = [(f"transformer_engine.pytorch.custom_recipes.{module}", name) for module, name in _REFERENCES]
        found = [each for each in known if _has(*each)]
        if not found:
            raise _lacks_custom_recipes(" or ".join(".".join(each) for each in known))
        return ".".join(found[0])
    if missing := [f"{module}.{name}" for module, name in _CUSTOM if not _has(module, name)]:
        raise _lacks_custom_recipes(" and ".join(missing))
    if find_spec("triton") is None:
        raise UsageError(
            "--emulate needs Triton, which comes with PyTorch's CUDA build: pip install triton, or "
            "--emulate reference (EMULATE=reference), some hundred times slower"
        )
    return "pretraining.numerics.te_quantizer.quantizer_factory"


def _has(module: str, name: str) -> bool:
    """Whether a module of Transformer Engine is there and has the name. What fails inside it is not hidden."""
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        return False


def _lacks_custom_recipes(looked_for: str) -> UsageError:
    found = packages.installed().get("transformer-engine")
    if found is None:
        why = "Transformer Engine, and none is installed: leave RUNTIME out, and it trains in NVIDIA's NeMo image"
    elif packages.engine_release() < (least := packages.CUSTOM_RECIPES):
        came = f"which came with {packages.dotted(least)}, and this is {found}"
        why = f"Transformer Engine's custom recipes, {came}: {nemo_images.with_engine(least)}"
    else:
        why = (
            f"{looked_for}, which Transformer Engine {found} does not have: it was renamed there, and is known by its "
            "names from 2.10 to 2.20"
        )
    return UsageError(f"--emulate needs {why}")


def engine_recipe(model: Any) -> Any:
    """Transformer Engine's recipe that Megatron-Core trains a built config's model by."""
    from megatron.core import fp4_utils, fp8_utils

    return fp4_utils.get_fp4_recipe(model) if model.fp4 else fp8_utils.get_fp8_recipe(model)


def set_cuda_graphs(config: ConfigContainer) -> None:
    """Replay each iteration as one CUDA graph: an implementation of its own in 0.6, a scope of "local" before."""
    model = config.model
    if "cuda_graph_modules" in type(model).__dataclass_fields__:
        model.cuda_graph_impl = "full_iteration"
    else:
        model.cuda_graph_impl, model.cuda_graph_scope = "local", "full_iteration"


def cuda_graphs(config: ConfigContainer) -> str | None:
    """The field that turns CUDA graphs on, as an override; None where they are off."""
    off = (None, False, "none")
    names = ("cuda_graph_impl", "enable_cuda_graph", "external_cuda_graph")
    on = (name for name in names if getattr(config.model, name, None) not in off)
    return next((f"model.{name}={getattr(config.model, name)}" for name in on), None)


_GATHERING = ("fp8_param_gather", "fp4_param_gather", "reuse_grad_buf_for_mxfp8_param_ag")  # of `mixed_precision`


def keep_bf16_weights(preset: MixedPrecisionConfig) -> None:
    """No parameter gather in FP8 or (on from 0.4.2) FP4: the linear layers' own weights would be quantized.

    A custom quantizer would make them, and products in another precision would read them.
    """
    for name in _GATHERING:
        if hasattr(preset, name):
            setattr(preset, name, False)


def gathering_fields(config: ConfigContainer) -> list[str]:
    """Those fields of `mixed_precision` that are on and that `keep_bf16_weights` turns off."""
    return [name for name in _GATHERING if getattr(config.mixed_precision, name, False)]


def gathered_in(config: ConfigContainer) -> str | None:
    """The 8- or 4-bit format in which parameters are gathered, None where in their own. FP4 is there from 0.4.2."""
    kept = (name for name in ("fp8", "fp4") if getattr(config.mixed_precision, f"{name}_param_gather", False))
    return next(kept, None)


def save_packed_weights(config: ConfigContainer) -> None:
    """The optimizer format whose checkpoints can be written where weights are packed NVFP4 (from 0.4.2).

    The default one, `dp_reshardable`, counts its shards in unpacked elements and fails to save: Megatron-LM issue 5174,
    in `DistributedOptimizer.sharded_param_state_dp_reshardable`.
    """
    config.checkpoint.dist_ckpt_optim_fully_reshardable = True


def set_vocabulary(config: ConfigContainer, words: int, padded: int) -> None:
    """The data's vocabulary, and the model's, which may be padded.

    0.6 has `use_tokenizer_vocab_size`, on in its recipes, which would override it.
    """
    config.tokenizer.vocab_size = words
    config.model.vocab_size = padded
    for section in (config.model, config.tokenizer):
        if hasattr(section, "use_tokenizer_vocab_size"):
            section.use_tokenizer_vocab_size = False


def evaluation_section() -> str:
    """Where the evaluation's fields live: in `train` in 0.3, from 0.4 in `validation`."""
    from megatron.bridge.training.config import ConfigContainer

    return "validation" if "validation" in ConfigContainer.__dataclass_fields__ else "train"


def set_evaluation(config: ConfigContainer, iters: int, interval: int) -> None:
    """Evaluate `iters` batches every `interval` iterations and at the end (0 for never)."""
    section = getattr(config, evaluation_section())
    section.eval_iters = iters
    section.eval_interval = interval


def give_nvrx_a_version() -> None:
    """Have `nvidia_resiliency_ext.__version__`, which its 0.4 lacks and Megatron-Core from 0.17.1 reads as it loads."""
    name = "nvidia_resiliency_ext"
    if find_spec(name) and not hasattr(nvrx := importlib.import_module(name), "__version__"):
        nvrx.__version__ = metadata.version(name)


def save_without_nvrx() -> None:
    """Write checkpoints by Megatron-Core's own code where nvidia-resiliency-ext is older than it needs.

    0.17.0 takes that package for usable when half of what it imports from there is found (0.4.1 is such a one), and
    every save fails. Where it is whole, or missing, Megatron-Core knows itself.
    """
    from megatron.core.dist_checkpointing.strategies import torch as strategies

    if getattr(strategies, "HAVE_NVRX", False):
        try:
            strategies.get_async_strategy("nvrx")
        except ModuleNotFoundError:
            strategies.HAVE_NVRX = False


def keep_checkpoints_out_of_mlflow(config: ConfigContainer) -> None:
    """No copy of every checkpoint as an MLflow artifact: 105 GB each for an 8B model. 0.5 has a switch for it."""
    if hasattr(config.logger, "mlflow_log_artifacts"):
        config.logger.mlflow_log_artifacts = False
        return
    from megatron.bridge.training.utils import mlflow_utils

    mlflow_utils.on_save_checkpoint_success = lambda *args, **kwargs: None


def set_sequence_length(config: ConfigContainer, tokens: int) -> None:
    """`dataset.sequence_length` in 0.3; from 0.4 `seq_length`, which in 0.6 overwrites the other."""
    config.model.seq_length = tokens
    config.dataset.seq_length = tokens  # 0.3.1 has it as an alias
    config.dataset.sequence_length = tokens


def skip_compile_helpers() -> None:
    """Have Megatron-Core's dataset helper ready, and turn the call that makes it into nothing.

    The wheel ships the helper built, and no Makefile: there the call would exit. The NeMo image has the source in a
    tree of root's: there an ordinary user builds a copy, once. Where the tree can be written to, the call stays. Both
    modules that hold its name are changed, because Megatron-Bridge imports it. Raises UsageError where the copy fails.
    """
    import megatron.core.datasets

    source = Path(megatron.core.datasets.__path__[0])
    if find_spec("megatron.core.datasets.helpers_cpp") is None:
        if os.access(source, os.W_OK):
            return
        built = dataset_helper.built_copy(source, packages.installed().get("megatron-core", ""))
        megatron.core.datasets.__path__.append(str(built))
        importlib.invalidate_caches()
    import megatron.bridge.training.initialize
    import megatron.core.datasets.utils

    for module in (megatron.core.datasets.utils, megatron.bridge.training.initialize):
        module.compile_helpers = lambda: None


@contextlib.contextmanager
def local_hf_config(folder: Path) -> Iterator[None]:
    """Within: a recipe that asks for its Hugging Face repository gets `folder` instead of a gated download."""
    from megatron.bridge import AutoBridge

    original = AutoBridge.__dict__["from_hf_pretrained"]
    from_hub = AutoBridge.from_hf_pretrained
    AutoBridge.from_hf_pretrained = classmethod(lambda cls, name, **kwargs: from_hub(str(folder), **kwargs))
    try:
        yield
    finally:
        AutoBridge.from_hf_pretrained = original


def add_adapters_alone(config: ConfigContainer, folder: Path) -> None:
    """Add adapters to the weights that a model has, and load none.

    Megatron-Bridge loads the base from a Megatron checkpoint in the same hook that adds the adapters, and wants one
    that exists when it validates the config: `folder` does, and nothing is read there.
    """
    from megatron.bridge.training import setup

    config.checkpoint.pretrained_checkpoint = str(folder)
    add = setup._apply_peft_transformation
    setup._create_peft_pre_wrap_hook = lambda config, state: functools.partial(add, config.peft)


def add_adapters_to_local_layers() -> None:
    """LoRA asks for Transformer Engine's layers, some of which are None where a stand-in for it can be imported."""
    from megatron.bridge.peft import utils

    utils.HAVE_TE = False


def is_emulated(layer: Module) -> bool:
    """Whether `numerics/cpu_layers.py` has replaced its method of Megatron-Core's."""
    return "_forward_impl" in vars(layer)


def emulated_layers(model: Module) -> list[Module]:
    return [each for each in model.modules() if is_emulated(each)]


@contextlib.contextmanager
def in_float32(model: Module) -> Iterator[None]:
    """Within: the emulated layers compute Megatron's own float32 products, and nothing drops out."""
    arithmetics = [(each, vars(each).pop("_forward_impl")) for each in emulated_layers(model)]
    training = model.training
    model.eval()
    try:
        yield
    finally:
        for module, arithmetic in arithmetics:
            module._forward_impl = arithmetic
        model.train(training)


def use_random_state(get: Callable[..., Tensor], put: Callable[..., None]) -> None:
    """Have Megatron-Core save and restore the state of random numbers by these, where there is no CUDA."""
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state, random._set_cuda_rng_state = get, put


def loss_mask(loss: functools.partial[Any]) -> Tensor | None:
    """The mask (batch, sequence) of a forward step's own loss: a partial of which it is the first argument."""
    return loss.args[0] if loss.args else None


def end_on_sigterm(state: GlobalState) -> None:
    """Have the training loop save and end after SIGTERM: a flag, gathered from all processes in each iteration."""
    state.cfg.train.exit_signal_handler = True
    state.signal_handler.__enter__()


# What Megatron-Bridge imports at module level and a dense Llama never calls, see `cpu/absent.py`.
ABSENT = (
    # These need CUDA or a CUDA build, next to which Triton is found for real, and then used.
    *("transformer_engine", "transformer_engine_torch", "triton", "mamba_ssm", "causal_conv1d", "flashinfer", "fla"),
    "nvidia_resiliency_ext",
    # Other model families, other tasks, other trackers.
    *("modelopt", "diffusers", "peft", "datasets", "megatron.energon", "webdataset"),
    *("qwen_vl_utils", "open_clip", "timm", "imageio", "PIL"),
    *("wandb", "mlflow", "comet_ml"),
)

# What `is_te_min_version()` is told: the Transformer Engine of nemo:26.02, which Megatron-Core 0.16 and 0.17 accept.
ENGINE_STOOD_FOR = "2.12.0"

# The few functions that training does call, and whose answer it uses.
ANSWERS: dict[str, Callable[..., Any]] = {
    # train_step and evaluate: nothing to adjust, because no teacher is distilled
    "modelopt.torch.distill.plugins.megatron.get_tensor_shapes_adjust_fn_for_distillation": lambda *_, **__: None,
}
