"""What a model weighs and costs: parameters, FLOPs a token, and memory by precision. Arithmetic on its config alone.

Memory is that of one process, the most loaded one: what must fit. It is what PyTorch has allocated; fragments, the CUDA
context and NCCL's buffers come on top (CONTEXT_BYTES at least; keep a tenth of a GPU free). This project's records on
H200 lie within 3 % of it, NVIDIA's published peaks of Llama 3 8B on one GB300 (221.6 GB in BF16, 207.8 GB in NVFP4)
within 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretraining.request.models import Model
from pretraining.request.precisions import Precision, default_tail
from pretraining.request.recipe.kept_in_bf16 import PROJECTIONS

# Mixed precision as Megatron's presets have it: BF16 weights, FP32 gradients, FP32 main weights and two FP32 moments.
WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2, 4, 12
BF16, FP32 = 2, 4
CONTEXT_BYTES = 3e9  # of a process, beside what PyTorch reserves: 2.6 to 3.1 GB on H200 (assets/results)
# Of the logits in BF16, with what their gradient takes beside them, which partly overwrites them (measured on H200).
LOGITS = 1.5
OTHERS = "others"  # than PROJECTIONS


@dataclass(frozen=True)
class Shape:
    """A model's sizes, by the names of its Hugging Face config; the hybrid's own are 0 in a Llama."""

    hidden: int
    heads: int
    groups: int
    head_size: int
    words: int
    tied: bool
    attention_layers: int
    mlp_layers: int
    mlp_size: int
    mamba_layers: int = 0
    mamba_inner: int = 0
    mamba_heads: int = 0
    mamba_groups: int = 0
    mamba_state: int = 0
    mamba_kernel: int = 0
    moe_layers: int = 0
    experts: int = 0
    experts_a_token: int = 0
    expert_size: int = 0
    shared_size: int = 0

    @property
    def attention(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.groups * self.head_size

    @property
    def conv(self) -> int:
        """Width of a Mamba layer's convolution."""
        return self.mamba_inner + 2 * self.mamba_groups * self.mamba_state

    @property
    def active(self) -> int:
        """Units of all experts that a token meets."""
        return self.experts_a_token * self.expert_size + self.shared_size


def shape_of(config: dict[str, Any]) -> Shape:
    """The sizes in a Hugging Face config of a Llama or a Nemotron-H."""
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    pattern = config.get("hybrid_override_pattern", "")
    common = {
        "hidden": config["hidden_size"],
        "heads": heads,
        "groups": config["num_key_value_heads"],
        "head_size": config.get("head_dim") or config["hidden_size"] // heads,
        "words": config["vocab_size"],
        "tied": config["tie_word_embeddings"],
    }
    if not pattern:
        sizes = {"attention_layers": layers, "mlp_layers": layers, "mlp_size": config["intermediate_size"]}
        return Shape(**common, **sizes)
    return Shape(
        **common,
        attention_layers=pattern.count("*"),
        mlp_layers=0,
        mlp_size=0,
        mamba_layers=pattern.count("M"),
        mamba_inner=config["mamba_num_heads"] * config["mamba_head_dim"],
        mamba_heads=config["mamba_num_heads"],
        mamba_groups=config["n_groups"],
        mamba_state=config["ssm_state_size"],
        mamba_kernel=config["conv_kernel"],
        moe_layers=pattern.count("E"),
        experts=config["n_routed_experts"],
        experts_a_token=config["num_experts_per_tok"],
        expert_size=config["moe_intermediate_size"],
        shared_size=config["moe_shared_expert_intermediate_size"],
    )


def embedding(shape: Shape) -> int:
    """Parameters of one embedding; the output layer has as many again, unless they are tied."""
    return shape.words * shape.hidden


def expert_parameters(shape: Shape) -> int:
    """Parameters of all routed experts: two matrices each, without a gate."""
    return shape.moe_layers * shape.experts * 2 * shape.hidden * shape.expert_size


def products(shape: Shape) -> dict[str, tuple[int, int]]:
    """The widths of the input and of the output of each of a Llama layer's products, by the names of PROJECTIONS."""
    widths = (
        (shape.hidden, shape.attention + 2 * shape.keys),
        (shape.attention, shape.hidden),
        (shape.hidden, 2 * shape.mlp_size),
        (shape.mlp_size, shape.hidden),
    )
    return dict(zip(PROJECTIONS, widths, strict=True))


def matrices(shape: Shape) -> dict[str, int]:
    """Parameters of the layers' matrices, which the precision is about: of each product, and OTHERS.

    Those are the Mamba layers' and the shared experts'; the routed experts' are apart.
    """
    mamba = shape.hidden * (shape.mamba_inner + shape.conv + shape.mamba_heads) + shape.mamba_inner * shape.hidden
    layers = (shape.attention_layers, shape.attention_layers, shape.mlp_layers, shape.mlp_layers)
    widths = products(shape).items()
    found = {name: number * wide * out for number, (name, (wide, out)) in zip(layers, widths, strict=True)}
    return found | {OTHERS: shape.mamba_layers * mamba + shape.moe_layers * 2 * shape.hidden * shape.shared_size}


def linear_parameters(shape: Shape) -> int:
    return sum(matrices(shape).values())


def other_parameters(shape: Shape) -> int:
    """Norms, routers, and the Mamba layers' convolution and per-head values."""
    norms = (shape.attention_layers + shape.mlp_layers + shape.mamba_layers + shape.moe_layers + 1) * shape.hidden
    mamba = shape.conv * (shape.mamba_kernel + 1) + 3 * shape.mamba_heads + shape.mamba_inner
    router = shape.experts * shape.hidden
    return norms + shape.mamba_layers * mamba + shape.moe_layers * router


def parameters(shape: Shape) -> int:
    outer = embedding(shape) * (1 if shape.tied else 2)
    return outer + linear_parameters(shape) + expert_parameters(shape) + other_parameters(shape)


def flops_per_token(shape: Shape, sequence: int) -> float:
    """Model FLOPs of a token's forward and backward pass, as Megatron counts them.

    `flop_utils.num_floating_point_operations` of Megatron-Bridge: causal attention counts half its matrix, the
    embedding nothing, the backward pass twice the forward.
    """
    scores = shape.attention_layers * 2 * shape.attention * sequence
    mamba = shape.mamba_layers * 7 * 2 * shape.hidden * shape.mamba_state
    if shape.mamba_layers:  # Megatron takes a Mamba layer to be twice as wide as the model, whatever it is
        inner, groups = 2 * shape.hidden, 2 * shape.mamba_groups * shape.mamba_state
        mamba += shape.mamba_layers * 2 * shape.hidden * (2 * inner + groups + shape.mamba_heads + inner)
    attention = shape.attention_layers * 4 * shape.hidden * (shape.attention + shape.keys)
    mlp = shape.mlp_layers * 6 * shape.hidden * shape.mlp_size
    moe = shape.moe_layers * 4 * shape.hidden * shape.active
    return 3.0 * (attention + mlp + scores + mamba + moe + 2 * embedding(shape))


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, the most loaded one."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Split:
    """Over how many processes what is split."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1  # replicas, which share the optimizer's state with those that share a sequence
    expert: int = 1  # processes that share the routed experts
    virtual: int = 1  # pieces of the layers a pipeline stage holds
    context: int = 1  # processes that share a sequence


def split_of(model: Model, processes: int) -> Split:
    """A model's own split, on so many processes."""
    copies = processes // (model.tensor_parallel * model.pipeline_parallel)
    return Split(
        model.tensor_parallel, model.pipeline_parallel, max(1, copies), model.expert_parallel, model.virtual_pipeline
    )


def memory(
    model: Model, precision: Precision, split: Split, *, micro_batch: int, sequence: int, recomputed: float = 0.0
) -> Memory:
    """The memory of training `model` in `precision`, as its recipe does; see `process_memory`."""
    shape, tokens = shape_of(model.hf_config), micro_batch * sequence
    quantized = dict.fromkeys((*PROJECTIONS, OTHERS), 1 - kept_share(model, precision))
    return process_memory(shape, precision, split, tokens=tokens, quantized=quantized, recomputed=recomputed)


def process_memory(
    shape: Shape, precision: Precision, split: Split, *, tokens: int, quantized: Mapping[str, float],
    gradient_bytes: int = GRADIENT_BYTES, recomputed: float = 0.0,
) -> Memory:  # fmt: skip
    """The memory of training a model of that shape.

    Args:
        tokens: of a micro batch.
        quantized: in which share of the layers each of PROJECTIONS, and OTHERS, is in the precision; else in BF16.
        gradient_bytes: of a gradient, as it is accumulated and reduced.
        recomputed: the share of the layers that keep their input alone and compute the rest again.
    """
    dense, experts = loaded_parameters(shape, split)
    # Experts are split over the processes of several replicas, so fewer replicas hold the same ones.
    sharers = split.data * split.context
    optimizer = OPTIMIZER_BYTES * (dense / sharers + experts / max(1, sharers * split.tensor // split.expert))
    linear = sum(quantized[name] * number for name, number in matrices(shape).items()) / split.tensor
    linear += quantized[OTHERS] * expert_parameters(shape) / split.expert
    # A preset that gathers quantized weights has no others, from its first version on: older ones are counted here.
    gathers = precision.gather != "BF16" and not precision.gather_since
    copies = precision.copy_bytes - (WEIGHT_BYTES if gathers else 0)
    return Memory(
        weights=WEIGHT_BYTES * (dense + experts) + copies * linear / split.pipeline,
        gradients=gradient_bytes * (dense + experts),
        optimizer=optimizer,
        activations=activations(shape, precision, split, quantized, tokens, recomputed),
    )


def loaded_parameters(shape: Shape, split: Split) -> tuple[float, float]:
    """Parameters of the most loaded process, and of its routed experts: the first pipeline stage has the embedding."""
    layers = (linear_parameters(shape) + other_parameters(shape)) / split.pipeline
    outer = embedding(shape) * (2 if split.pipeline == 1 and not shape.tied else 1)
    return (layers + outer) / split.tensor, expert_parameters(shape) / split.expert / split.pipeline


def kept_share(model: Model, precision: Precision) -> float:
    """The share of the layers that stays in BF16 where the user does not say."""
    if precision.name == "bf16":
        return 1.0
    return (precision.bf16_head + default_tail(precision, model.num_layers)) / model.num_layers


def activations(
    shape: Shape, precision: Precision, split: Split, quantized: Mapping[str, float], tokens: int,
    recomputed: float = 0.0,
) -> float:  # fmt: skip
    """Bytes kept for the backward pass, with flash attention; see `process_memory` for the arguments."""
    layers = (1 - recomputed) * _layer_bytes(shape, precision, quantized)
    layers += recomputed * BF16 * shape.hidden * (shape.attention_layers or 1)
    if split.pipeline > 1:  # as many micro batches are under way as there are stages: that makes up for the split
        layers *= 1 + (split.pipeline - 1) / (split.pipeline * split.virtual) if split.virtual > 1 else 1
        outer = 0.0
    else:
        outer = LOGITS * BF16 * shape.words + 2 * BF16 * shape.hidden
    return tokens * (layers + outer) / split.tensor / split.context


def _layer_bytes(shape: Shape, precision: Precision, quantized: Mapping[str, float]) -> float:
    """Bytes a token over all layers; the input of a product in BF16 is kept once."""
    qkv, _, fc1, fc2, saved = (
        BF16 + quantized[name] * (precision.saved_bytes - BF16) for name in (*PROJECTIONS, OTHERS)
    )
    # A quantized copy is kept beside the BF16 output of attention, which its own backward pass needs.
    output = (BF16 + quantized["proj"] * precision.saved_bytes) * shape.attention
    attention = (BF16 + qkv) * shape.hidden + BF16 * (shape.attention + 2 * shape.keys) + output
    attention += FP32 * shape.heads
    mlp = (BF16 + fc1) * shape.hidden + BF16 * 2 * shape.mlp_size + fc2 * shape.mlp_size
    mamba = (BF16 + saved) * shape.hidden + BF16 * (2 * shape.mamba_inner + shape.conv) + saved * shape.mamba_inner
    moe = (BF16 + saved * (shape.experts_a_token + 1)) * shape.hidden + (BF16 + saved) * shape.active
    return (
        shape.attention_layers * attention
        + shape.mlp_layers * mlp
        + shape.mamba_layers * mamba
        + shape.moe_layers * moe
    )
