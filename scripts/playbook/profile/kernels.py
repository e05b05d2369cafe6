"""What a kernel or operator of a trace does, by its name: the one table of it.

The first pattern that a name holds decides, so what is particular stands before what is general: an attention kernel of
cuDNN also says `wgmma`, and a quantization that also transposes is no copy. Names of Transformer Engine are those of
its sources (2.14), `_amax_kernel` and its kin those of `assets/pretraining/numerics/nvfp4_triton.py`.
"""

import re
from enum import StrEnum


class Kind(StrEnum):
    """What time goes to, in the order in which it is told."""

    PRODUCTS = "matrix products"
    VOCABULARY = "vocabulary projection"  # products too, see `tracing`: by name they are like all others
    ATTENTION = "attention"
    QUANTIZATION = "quantization, rounding"
    NORMS = "norms, rotary, activation, loss"
    OPTIMIZER = "optimizer"
    COPIES = "copies and elementwise"
    OTHER = "other"
    COMMUNICATION = "communication"  # last: what hides behind computation costs nothing


_KERNELS = (
    (Kind.COMMUNICATION, r"nccl|nvshmem|userbuffers|_p2p_|allreduce_oneshot|symm_mem"),
    (Kind.ATTENTION, r"flash_|flash::|fmha|_sdpa_|sdpa|fused_attn|scaled_masked_softmax|upper_triang.*softmax"),
    (
        Kind.QUANTIZATION,
        r"_quantize_kernel|_tiles_kernel|quantize|amax|cast_transpose|cast_fp8|block_scaled|block_scaling|hadamard"
        r"|nvfp4_|mxfp8_|swizzle|scale_inv|_scaling_kernel|zero_scales|transpose_optimized|partial_cast",
    ),
    (Kind.OPTIMIZER, r"multi_tensor|adam|l2norm|lpnorm"),
    (
        Kind.NORMS,
        r"norm(?!al)|(?<![a-z])rope|softmax|cross_entropy|nll_loss|silu|gelu|swiglu|gated|unary_kernel|embedding",
    ),
    (Kind.PRODUCTS, r"gemm|nvjet|cutlass|cublas|xmma|wgmma|splitk|gemv|dot_kernel"),
    (
        Kind.COPIES,
        r"memcpy|memset|elementwise|copy|catarray|reduce_kernel|fill|index|gather|scatter|transpose|arange|triton_poi"
        r"|triton_red|distribution|masked|radix|sort|cumsum|scan",
    ),
)
_OPERATORS = (
    (Kind.COMMUNICATION, r"^gloo:|^c10d::|^nccl:"),
    (Kind.OPTIMIZER, r"^Optimizer\.|^aten::_(foreach|fused_adam)"),
    (Kind.ATTENTION, r"scaled_dot_product|flash|^aten::(badd)?bmm$|^aten::_softmax|^aten::masked_fill_?$"),
    (Kind.QUANTIZATION, r"^_Linear(Backward)?$"),  # what is left of them without their products: rounding, with Numba
    (Kind.PRODUCTS, r"^aten::(mm|addmm|mv|dot)$"),
    (Kind.NORMS, r"norm|softmax|CrossEntropy|silu|sigmoid|embedding|::(exp|log|cos|sin)$"),
    (Kind.COPIES, r"^aten::"),
)


# What an operator calls is part of it.
WHOLE = (Kind.OPTIMIZER, Kind.COMMUNICATION)


def is_of_loss(name: str) -> bool:
    """Whether a kernel on a GPU computes the loss from the logits."""
    return bool(re.search(r"cross_entropy|online_softmax|nll_loss", name, re.IGNORECASE))


def of_kernel(name: str) -> Kind:
    """What a kernel, copy or fill on a GPU does."""
    return next((kind for kind, pattern in _KERNELS if re.search(pattern, name, re.IGNORECASE)), Kind.OTHER)


def of_operator(name: str) -> Kind:
    """What an operator on the CPU does, without the operators that it calls."""
    return next((kind for kind, pattern in _OPERATORS if re.search(pattern, name, re.IGNORECASE)), Kind.OTHER)
