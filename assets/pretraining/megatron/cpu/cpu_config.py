"""A recipe's config, changed to what a CPU can do."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from megatron.bridge.models.conversion.param_mapping import AutoMapping
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.parallel_state import get_tensor_model_parallel_rank
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from pretraining.megatron import compat
from pretraining.numerics.cpu_layers import BF16, LAYERS, layer_spec, set_arithmetic

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

# Fused kernels that exist only for CUDA. The arithmetic is the same without them.
_CUDA_FUSIONS = (
    "bias_activation_fusion",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
    "persist_layer_norm",
    "apply_rope_fusion",
    "gradient_accumulation_fusion",
    "cross_entropy_loss_fusion",
)


compat.add_adapters_to_local_layers()

# AutoBridge tells a layer's parallelism by the name of its class.
for arithmetic in LAYERS.values():
    for plain, emulated in arithmetic.items():
        AutoMapping.register_module_type(emulated.__name__, "column" if plain is ColumnParallelLinear else "row")


def adapt(config: ConfigContainer) -> None:
    """Change `config` in place for gloo, Megatron's local layers and float32 storage.

    A bf16 matrix product is many times slower than a float32 one on a CPU without AVX512-BF16 or AMX, so weights
    are stored in float32 and the linear layers do the rounding: operands and outputs to bf16, or operands to NVFP4.
    Which layers do which follows the mixed-precision preset that the GPU would be given.
    """
    preset = config.mixed_precision
    model = config.model
    model.transformer_impl = "local"
    model.use_cpu_initialization = True
    model.sequence_parallel = False  # WrappedTorchNorm refuses it; the sums are the same
    for fusion in _CUDA_FUSIONS:
        setattr(model, fusion, False)
    model.transformer_layer_spec = partial(
        layer_specs,
        nvfp4=preset.fp4 is not None,
        bf16_head=preset.num_layers_at_start_in_bf16 if preset.first_last_layers_bf16 else 0,
        bf16_tail=preset.num_layers_at_end_in_bf16 if preset.first_last_layers_bf16 else 0,
    )
    model.register_pre_wrap_hook(partial(round_output_layers, words=config.tokenizer.vocab_size))
    config.mixed_precision = MixedPrecisionConfig(
        fp32=True, params_dtype=torch.float32, pipeline_dtype=torch.float32, autocast_enabled=False
    )

    config.dist.distributed_backend = "gloo"
    config.ddp.use_distributed_optimizer = config.optimizer.use_distributed_optimizer = False
    config.ddp.overlap_grad_reduce = config.ddp.overlap_param_gather = False
    config.ddp.average_in_collective = False  # gloo has no averaging reduction
    config.dataset.num_workers = 0  # two cores: a loader process would compete with the arithmetic
    config.dataset.pin_memory = False  # there is no device to copy to, and DataLoader warns
    config.checkpoint.fully_parallel_save = False


def layer_specs(
    config: TransformerConfig, *, nvfp4: bool, bf16_head: int, bf16_tail: int, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this process's pipeline stage, each in BF16 or NVFP4.

    `bf16_head` and `bf16_tail` are the first and last layers of the whole model that stay in BF16.
    """
    local = get_gpt_layer_local_spec(normalization="RMSNorm")
    in_precision = {name: layer_spec(local, name) for name in ("bf16", "nvfp4")}
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    quantized = range(bf16_head, config.num_layers - bf16_tail) if nvfp4 else range(0)
    return TransformerBlockSubmodules(
        layer_specs=[
            in_precision["nvfp4" if number in quantized else "bf16"]
            for number in range(first, first + get_num_layers_to_build(config, vp_stage=vp_stage))
        ],
        layer_norm=WrappedTorchNorm,
    )


def round_output_layers(chunks: list[GPTModel], *, words: int) -> list[GPTModel]:
    """Give the vocabulary projection BF16 arithmetic, as every precision here has it; mask what pads `words`."""
    for chunk in chunks:
        if getattr(chunk, "post_process", False):
            set_arithmetic(chunk.output_layer, BF16())
            _mask_padding(chunk.output_layer, words)
    return chunks


def _mask_padding(layer: ColumnParallelLinear, words: int) -> None:
    """No probability for words past `words`: tensor parallelism pads 257 to 258, and the loss stays that of 257.

    Megatron leaves such words in the softmax, where they matter next to 257 and not next to 128,256.
    """
    share = layer.output_size_per_partition
    kept = words - get_tensor_model_parallel_rank() * share
    if kept < share:
        mask = torch.zeros(share)
        mask[max(kept, 0) :] = torch.finfo(torch.float32).min / 2
        layer.register_forward_hook(lambda _, inputs, outputs: (outputs[0] + mask, *outputs[1:]))
