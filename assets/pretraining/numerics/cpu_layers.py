"""BF16 and NVFP4 arithmetic in Megatron's local layer spec, for training on the CPU with float32 storage.

Megatron's ColumnParallelLinear and RowParallelLinear compute their product in one method, ``_forward_impl``. The
classes below replace that method; parameters, communication and checkpoints stay Megatron's. Two arithmetics exist:

* ``BF16``: operands and results of every product are rounded to BF16, sums are float32: what a BF16 tensor core does
  but for its accumulator's rounding, at the speed of a float32 product.
* ``NVFP4``: the recipe of arXiv 2509.25149. Forward: activations 1x16, weights 16x16. Input gradient: stochastically
  rounded gradients 1x16, the same weights. Weight gradient: both operands in blocks along the tokens, after a random
  Hadamard transform, the gradient stochastically rounded. Products are exact but for the float32 sums;
  their results are rounded to BF16.

Both round the weight gradient of each micro batch to BF16 before Megatron adds it to the float32 ``main_grad``, as
Megatron's local layers do in BF16 without gradient accumulation fusion. (With the fusion a GPU adds the float32 product
unrounded; the fusion needs APEX, so it cannot be on here.)

Stochastic rounding draws one seed a layer and backward pass from PyTorch's default CPU generator, whose state Megatron
checkpoints: a resumed run rounds as the unbroken one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.utils import get_tensor_model_parallel_group_if_none
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from pretraining.numerics import late_switch
from pretraining.numerics.nvfp4 import Operand
from pretraining.numerics.nvfp4_numba import quantize, round_bf16
from pretraining.request.recipe import nvfp4_recipe

_GOLDEN = 0x9E3779B97F4A7C15  # odd, its bits spread: ranks land far apart


class Arithmetic:
    """The three products of a linear layer, on matrices: x (tokens, K), weight (N, K), gradient (tokens, N).

    Results are rounded to BF16. ``weight`` is whatever ``prepare`` made of the parameter.
    """

    after: Mapping[str, Arithmetic] = {}  # a late switch, by what it goes to

    def now(self) -> Arithmetic:
        """The one that computes at this iteration: itself, until a late switch."""
        switched = late_switch.switched_to()
        return self.after[switched] if switched and self.after else self

    def prepare(self, weight: Tensor) -> Any:
        """What the products need of the parameter; computed once an optimizer step."""

    def fprop(self, x: Tensor, weight: Any) -> Tensor:
        """x @ weight.T, shape (tokens, N)."""

    def backward(self, gradient: Tensor) -> tuple[Callable[[Any], Tensor], Callable[[Tensor], Tensor]]:
        """The two products with the gradient: weight to dgrad (tokens, K), and x to wgrad (N, K)."""


class BF16(Arithmetic):
    """BF16 operands and results, float32 sums."""

    def prepare(self, weight: Tensor) -> Tensor:
        return round_bf16(weight)

    def fprop(self, x: Tensor, weight: Tensor) -> Tensor:
        return round_bf16(round_bf16(x) @ weight.T, inplace=True)

    def backward(self, gradient: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        gradient = round_bf16(gradient)
        return (
            lambda weight: round_bf16(gradient @ weight, inplace=True),
            lambda x: round_bf16(gradient.T @ round_bf16(x), inplace=True),
        )


class NVFP4(Arithmetic):
    """NVFP4 operands, BF16 results, float32 sums, by the ingredients of a recipe; by default those of this process."""

    def __init__(self, recipe: nvfp4_recipe.Nvfp4Recipe | None = None) -> None:
        self.recipe = recipe or nvfp4_recipe.in_use()
        self.how = {tensor: self.recipe.rounding(tensor) for tensor in nvfp4_recipe.TENSORS}

    @functools.cached_property
    def after(self) -> Mapping[str, Arithmetic]:
        return {"forward": ForwardInBF16(self.recipe), "bf16": BF16()}

    def prepare(self, weight: Tensor) -> tuple[Operand, Operand]:
        """The weight for fprop and for dgrad: one quantization with 16x16 tiles, two without."""
        rows = self.quantized("weight", weight)
        if self.how["weight"].is_own_transpose:
            return rows, rows
        values, scale = self.quantized("weight", weight, columns=True)
        return rows, Operand(values[: weight.shape[0]], scale)  # without padding

    def fprop(self, x: Tensor, weight: tuple[Operand, Operand]) -> Tensor:
        return _product(self.quantized("input", x), _transposed(weight[0]))

    def backward(self, gradient: Tensor) -> tuple[Callable[[Any], Tensor], Callable[[Tensor], Tensor]]:
        """Tokens that do not fill the last block of wgrad are zeros, which add nothing."""
        seed = 0
        if self.how["grad_output"].stochastic:
            seed = own_seed(int(torch.randint(2**62, ())))  # two are used: the quantizations must round independently

        def dgrad(weight: tuple[Operand, Operand]) -> Tensor:
            return _product(self.quantized("grad_output", gradient, seed=seed), weight[1])

        def wgrad(x: Tensor) -> Tensor:
            columns = self.quantized("grad_output", gradient, columns=True, seed=seed + 2**62)
            return _product(_transposed(columns), self.quantized("input", x, columns=True))

        return dgrad, wgrad

    def quantized(self, tensor: str, matrix: Tensor, *, columns: bool = False, seed: int = 0) -> Operand:
        """One of the recipe's TENSORS as this arithmetic rounds it."""
        return quantize(matrix, self.how[tensor], columns=columns, seed=seed)


class ForwardInBF16(NVFP4):
    """What a late switch of the forward pass leaves: gradients are computed in NVFP4."""

    after: Mapping[str, Arithmetic] = {}

    def prepare(self, weight: Tensor) -> tuple[Operand, Operand]:
        """The weight in BF16 for fprop, and as NVFP4 has it for dgrad."""
        return _in_bf16(weight), super().prepare(weight)[1]

    def fprop(self, x: Tensor, weight: tuple[Operand, Operand]) -> Tensor:
        return _product(_in_bf16(x), _transposed(weight[0]))


def own_seed(drawn: int) -> int:
    """A seed below 2**62 of this process alone, from one that all of them drew.

    Megatron seeds the processes of one pipeline stage alike, so data-parallel ranks would round different gradients
    with the same random numbers, and the noise that should average out would not. Tensor-parallel ranks hold different
    slices of a column-parallel layer's gradient, and so round independently too; of a row-parallel layer's, which they
    all hold, each makes an unbiased rounding of its own. Process 0 keeps the seed as drawn.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    return (drawn + rank * _GOLDEN) % 2**62


def _product(a: Operand, b: Operand) -> Tensor:
    # The product of two float32 scales is exact as a Python float; round_bf16 takes it as a float32, rounded once.
    result, scale = a.values @ b.values, a.scale * b.scale
    if isinstance(scale, Tensor):  # by row
        result, scale = result.mul_(scale), 1.0
    return round_bf16(result, scale, inplace=True)


def _in_bf16(x: Tensor) -> Operand:
    return Operand(round_bf16(x), 1.0)


def _transposed(a: Operand) -> Operand:
    return Operand(a.values.T, a.scale.T if isinstance(a.scale, Tensor) else a.scale)


_steps = 0  # of every PyTorch optimizer in the process


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)


class PreparedWeight:
    """An arithmetic's prepared weight, made anew when the parameter may have changed.

    It may have when its storage or version counter differs (an in-place update, a loaded checkpoint), or when any
    optimizer has stepped since: Megatron's distributed and mixed-precision optimizers write through ``param.data``,
    which no version counter sees. A write through ``.data`` with no optimizer step goes unnoticed.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._prepared: Any = None

    def get(self, weight: Tensor, arithmetic: Arithmetic) -> Any:
        """``arithmetic.prepare(weight)``, from memory if it still holds."""
        key = (weight.data_ptr(), weight._version, _steps, arithmetic)
        if key != self._key:
            self._prepared, self._key = arithmetic.prepare(weight), key
        return self._prepared


class _Linear(torch.autograd.Function):
    """A linear layer in a given arithmetic, with the communication of Megatron's
    ``linear_with_grad_accumulation_and_async_allreduce``."""

    @staticmethod
    def forward(ctx, x, weight, bias, prepared, arithmetic, allreduce_dgrad, group):
        # The input itself is saved: the layer before usually keeps it anyway, and quantizing it again in blocks along
        # the tokens costs a twentieth of the product.
        ctx.save_for_backward(x)
        ctx.prepared, ctx.arithmetic, ctx.use_bias = prepared, arithmetic, bias is not None
        ctx.allreduce_dgrad, ctx.group = allreduce_dgrad, group
        y = arithmetic.fprop(x.reshape(-1, x.shape[-1]), prepared)
        if bias is not None:
            y = round_bf16(y + round_bf16(bias), inplace=True)
        return y

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad[:2]
        dgrad, wgrad = ctx.arithmetic.backward(gradient)
        grad_x = grad_weight = handle = None
        if need_x:
            grad_x = dgrad(ctx.prepared).view(x.shape)
            if ctx.allreduce_dgrad:
                handle = dist.all_reduce(grad_x, group=ctx.group, async_op=True)  # meanwhile: the weight gradient
        if need_weight:
            grad_weight = wgrad(x.reshape(-1, x.shape[-1]))
        grad_bias = round_bf16(round_bf16(gradient).sum(dim=0), inplace=True) if ctx.use_bias else None
        if handle is not None:
            handle.wait()
            grad_x = round_bf16(grad_x, inplace=True)  # a reduction in BF16 leaves BF16
        return grad_x, grad_weight, grad_bias, None, None, None, None


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gradient_accumulation_fusion: bool,
    allreduce_dgrad: bool,
    sequence_parallel: bool,
    tp_group: dist.ProcessGroup | None = None,
    grad_output_buffer: list[Tensor] | None = None,
    wgrad_deferral_limit: int | None = None,
    *,
    arithmetic: Arithmetic,
    memory: PreparedWeight,
    **unknown: Any,
) -> Tensor:
    """What ``_forward_impl`` of Megatron's layers computes, in the given arithmetic.

    Args:
        input: float32 of shape (..., K).
        weight: float32 of shape (N, K).
        arithmetic, memory: the products, and where the prepared weight is kept.
        unknown: what newer releases of Megatron-Core ask for besides, such as ``gtp_remat_size`` of 0.19.
        Others: as in Megatron's ``linear_with_grad_accumulation_and_async_allreduce``.

    Raises:
        ValueError: gradient accumulation fusion, deferred embedding gradients, sequence parallelism or something
            unknown is on.
    """
    if gradient_accumulation_fusion:
        raise ValueError(
            "gradient_accumulation_fusion is on, but emulated layers have no fused kernel; "
            "set model.gradient_accumulation_fusion=False"
        )
    if grad_output_buffer is not None:
        raise ValueError(
            "defer_embedding_wgrad_compute is on, but emulated layers do not defer; "
            "set model.defer_embedding_wgrad_compute=False"
        )
    unknown["sequence_parallel"] = sequence_parallel  # which Megatron-Core's norms without CUDA refuse too
    if asked := {name: value for name, value in unknown.items() if value not in (None, False, 1) or value is True}:
        raise ValueError(f"Megatron-Core asks for what emulated layers do not do: {asked}")
    if allreduce_dgrad:
        tp_group = get_tensor_model_parallel_group_if_none(tp_group)
    arithmetic = arithmetic.now()
    prepared = memory.get(weight, arithmetic)
    y = _Linear.apply(input, weight, bias, prepared, arithmetic, allreduce_dgrad, tp_group)
    # Viewed here and not in the function: Megatron's cross entropy works in place, which autograd forbids on a view
    # that a custom function made.
    return y.view(*input.shape[:-1], weight.shape[0])


def set_arithmetic(module: ColumnParallelLinear | RowParallelLinear, arithmetic: Arithmetic) -> None:
    """Make an existing Megatron layer, for example the output layer, compute in the given arithmetic."""
    module._forward_impl = functools.partial(linear, arithmetic=arithmetic, memory=PreparedWeight())


def _in_arithmetic(base: type, arithmetic: Callable[[], Arithmetic]) -> type:
    class Layer(base):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            set_arithmetic(self, arithmetic())

    Layer.__name__ = Layer.__qualname__ = f"{arithmetic.__name__}{base.__name__}"
    Layer.__doc__ = f"Megatron's {base.__name__} in {arithmetic.__name__} arithmetic."
    return Layer


# Of each arithmetic Megatron's layers, and what takes their place.
LAYERS: dict[str, dict[type, type]] = {
    name: {base: _in_arithmetic(base, arithmetic) for base in (ColumnParallelLinear, RowParallelLinear)}
    for name, arithmetic in {"bf16": BF16, "nvfp4": NVFP4}.items()
}


def layer_spec(spec: ModuleSpec, precision: str) -> ModuleSpec:
    """A copy of a transformer layer's spec, such as ``get_gpt_layer_local_spec``'s, with its linear layers replaced.

    Args:
        precision: of LAYERS.

    Raises:
        ValueError: the spec has no local linear layer to replace.
    """
    replaced = _replace(spec, LAYERS[precision])
    if replaced == spec:
        raise ValueError("the spec names no ColumnParallelLinear or RowParallelLinear; start from the local layer spec")
    return replaced


def _replace(node: Any, layers: dict[type, type]) -> Any:
    """Walk specs, which are nested dataclasses, and swap the classes they name."""
    if isinstance(node, type):
        return layers.get(node, node)
    if dataclasses.is_dataclass(node):
        fields = {f.name: _replace(getattr(node, f.name), layers) for f in dataclasses.fields(node)}
        return dataclasses.replace(node, **fields)
    return node
