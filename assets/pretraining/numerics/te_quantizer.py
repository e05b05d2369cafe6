"""NVFP4 training inside Transformer Engine's own layers, on GPUs without FP4 tensor cores.

Megatron-Core takes a quantizer factory by name (``fp4_recipe="custom"``, ``fp4_quantizer_factory``); Transformer Engine
calls it with the role of each tensor of a linear layer. The quantizers below round as the NVFP4 recipe does (arXiv
2509.25149, section 4; Transformer Engine's ``NVFP4BlockScaling``): input 1x16, with a random Hadamard transform for the
weight gradient; weight 16x16; output gradient as the input, stochastically. Products are exact but for their FP32 sums:
one BF16 product of the values, the two tensor scales applied to the sums.

Both layouts of a tensor are BF16 matrices of its own shape. Of an input, Transformer Engine keeps the columns' until
backward, as many bytes as BF16 training keeps; a weight's tiles are their own transpose and kept once, and rounded once
an optimizer step, because Transformer Engine caches them between micro batches.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformer_engine.pytorch.cpp_extensions import gemm as te_gemm
from transformer_engine.pytorch.quantized_tensor import QuantizedTensorStorage, Quantizer

from pretraining import packages
from pretraining.numerics import late_switch
from pretraining.numerics.nvfp4 import Operand
from pretraining.numerics.nvfp4_triton import quantize
from pretraining.numerics.product import product
from pretraining.numerics.quantization_error import Layer, Measurement, Sample, sampled
from pretraining.request.recipe import nvfp4_recipe


def quantizer_factory(role: Any) -> EmulatedQuantizer | None:
    """The quantizer of one tensor of a linear layer, for Transformer Engine's ``CustomRecipe``.

    None for results where Transformer Engine allows it: they stay in BF16, so theirs is never used.

    Args:
        role: up to Transformer Engine 2.15 a string such as "linear_input"; from 2.16 a ``QuantizerRole``, or None for
            a result whose reader is unknown.
    """
    _provide_products()
    is_name = isinstance(role, str)
    tensor = role.removeprefix("linear_") if is_name else getattr(role, "tensor_type", "")
    if tensor in nvfp4_recipe.TENSORS:
        return EmulatedQuantizer(tensor, nvfp4_recipe.in_use())
    return None if is_name else EmulatedQuantizer("input", nvfp4_recipe.in_use())


class EmulatedTensor(QuantizedTensorStorage):
    """A quantized matrix on its way through a layer: blocks along the rows and along the columns."""

    layer: Layer | None = None  # whose it is, where it is measured
    row_sample: Sample | None = None  # some of it for the measurement
    column_sample: Sample | None = None

    custom = True  # how Transformer Engine tells it from its own

    def __init__(self, quantizer: EmulatedQuantizer, shape: torch.Size, rows: Operand | None, columns: Operand | None):
        self._quantizer = quantizer
        self._dtype = self.dtype = torch.bfloat16
        self.original_shape = shape  # of the tensor before its leading dimensions were flattened
        self.rows, self.columns = rows, columns  # None where not needed, or no longer; one object where they are tiles
        self.device = next(each.values.device for each in (rows, columns) if each is not None)

    def size(self, *axis: int) -> torch.Size | int:
        """Of the tensor before quantization."""
        return self.original_shape[axis[0]] if axis else self.original_shape

    def update_usage(self, rowwise_usage: bool | None = None, columnwise_usage: bool | None = None) -> None:
        """Drop what is no longer needed. Raises RuntimeError for what was never made."""
        if rowwise_usage is False:
            self.rows = None
        if columnwise_usage is False:
            self.columns = None
        if (rowwise_usage and self.rows is None) or (columnwise_usage and self.columns is None):
            raise RuntimeError("blocks along an axis were asked for after the tensor they come from was gone")

    def get_usages(self) -> dict[str, bool]:
        return {"rowwise": self.rows is not None, "columnwise": self.columns is not None}

    def prepare_for_saving(self) -> tuple[list[Tensor | None], EmulatedTensor]:
        """Hand the tensors to autograd. A weight also keeps them: it is read again by the next micro batch."""
        tensors = [part for each in (self.rows, self.columns) for part in (each or (None, None))]
        if self._quantizer.tensor != "weight":
            self.clear()
        return tensors, self

    def restore_from_saved(self, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Take them back, and return the rest."""
        pairs = tensors[:2], tensors[2:4]
        self.rows, self.columns = (None if values is None else Operand(values, scale) for values, scale in pairs)
        return tensors[4:]

    def clear(self) -> None:
        self.rows = self.columns = None


class EmulatedQuantizer(Quantizer):
    """Rounds one kind of tensor: "input", "weight" or "grad_output"."""

    custom = True
    layer: Layer | None = None  # whose forward pass used it last, under a measurement

    def __init__(self, tensor: str, recipe: nvfp4_recipe.Nvfp4Recipe) -> None:
        super().__init__(rowwise=True, columnwise=True)
        self.tensor, self.how = tensor, recipe.rounding(tensor)

    def quantize(self, tensor: Tensor, *, out: EmulatedTensor | None = None, **_: Any) -> EmulatedTensor:
        """What Transformer Engine calls for a new tensor; leading dimensions are flattened."""
        if out is not None:
            return self.update_quantized(tensor, out)
        made = EmulatedTensor(self, tensor.shape, *self._operands(tensor, None))
        _take_samples(made, tensor)
        return made

    def update_quantized(self, src: Tensor, dst: EmulatedTensor, *, noop_flag: Tensor | None = None) -> EmulatedTensor:
        """Quantize anew into ``dst``: a weight after an optimizer step.

        Args:
            noop_flag: float32 of one element on the GPU: not 0 where ``dst`` is to stay as it is. CUDA graphs of single
                layers have it; one of a whole iteration was recorded with the first micro batch's quantization alone.

        Raises:
            ValueError: there is such a flag, and ``dst`` is not tiles, which alone are written in place.
        """
        if noop_flag is not None and (not self.how.is_own_transpose or late_switch.switched_to()):
            raise ValueError(
                "emulated NVFP4 skips a weight within a CUDA graph of one layer only where its blocks are 16x16 tiles: "
                "use a graph of the whole iteration (--tuned), or none"
            )
        dst.rows, dst.columns = self._operands(src, dst.columns, noop_flag)
        _take_samples(dst, src)
        return dst

    def _operands(
        self, tensor: Tensor, into: Operand | None, skip: Tensor | None = None
    ) -> tuple[Operand | None, Operand | None]:
        x = tensor.detach().reshape(-1, tensor.shape[-1])
        # What the forward pass multiplies, rows, stays as it is after a late switch of that pass.
        in_bf16 = late_switch.switched_to() == "forward" and self.tensor != "grad_output"
        rows, columns = quantize(
            x,
            self.how,
            rows=self.rowwise_usage and not in_bf16,
            columns=self.columnwise_usage,
            seed=_seed(x.device) if self.how.stochastic else None,
            stream=_rank(),
            folded=packages.folds_block_scale(),
            out=into,
            skip=skip,
        )
        return (Operand(x.bfloat16(), _one(x.device)) if in_bf16 else rows), columns


@functools.cache
def _one(device: torch.device) -> Tensor:
    return torch.ones(1, device=device)


def _seed(device: torch.device) -> Tensor:
    """A new seed from the device's generator: Megatron seeds it and checkpoints its state, a CUDA graph advances it."""
    return torch.randint(2**62, (1,), device=device)


@functools.cache
def _rank() -> int:
    """Data-parallel ranks have the same generator state and must round independently."""
    return dist.get_rank() if dist.is_initialized() else 0


_measurement: Measurement | None = None


def measure(measurement: Measurement | None) -> None:
    """Show every product of this process to a measurement from now on, or to none."""
    global _measurement
    _measurement = measurement


def _take_samples(made: EmulatedTensor, source: Tensor) -> None:
    """Keep some of a tensor whose products will be shown, and its layer: in a forward pass the one that computes.

    In a backward pass it is the one that its quantizer's last forward pass was of.

    An input without columns is kept where a layer computes forward, and quantizes it again in the backward pass. Else
    it is an evaluation's, or of a forward pass that will be computed again.
    """
    made.layer = made.row_sample = made.column_sample = None
    if _measurement is None:
        return
    quantizer = made._quantizer
    if _measurement.layer is not None:
        quantizer.layer = _measurement.layer
    elif made.columns is None and quantizer.tensor == "input":
        return
    made.layer = quantizer.layer
    x, how = source.detach().reshape(-1, source.shape[-1]), quantizer.how
    folded = packages.folds_block_scale()
    if made.rows is not None:
        made.row_sample = sampled(x, made.rows, how, folded=folded)
    if made.columns is not None:
        made.column_sample = sampled(x, made.columns, how, columns=True, folded=folded)


def _show(layout: str, a: EmulatedTensor, b: EmulatedTensor) -> None:
    """Show a product whose operands were sampled to the measurement; a weight or an input knows the layer."""
    name, left, right = {
        "TN": ("fprop", b.row_sample, a.row_sample),
        "NN": ("dgrad", b.row_sample, a.column_sample),
        "NT": ("wgrad", b.column_sample, a.column_sample),
    }[layout]
    if left and right and a.layer:
        _measurement.product(a.layer, name, left, right)


@functools.cache
def _provide_products() -> None:
    """Have Transformer Engine's layers multiply quantized tensors by ``_gemm``.

    Its own ``custom_gemm`` neither writes ``out`` nor accumulates, while its layers mark the weight gradient as added:
    with ``gradient_accumulation_fusion`` every weight gradient would be lost.
    """
    te_gemm.custom_gemm = functools.partial(_gemm, te_gemm.custom_gemm)


def _gemm(
    others: Any,
    a: EmulatedTensor,
    b: EmulatedTensor,
    workspace: Tensor,
    out_dtype: torch.dtype | None = None,
    quantization_params: Quantizer | None = None,
    gelu: bool = False,
    gelu_in: Tensor | None = None,
    accumulate: bool = False,
    layout: str = "TN",
    out: Tensor | None = None,
    bias: Tensor | None = None,
    *rest: Any,
) -> tuple[Tensor, None, None, None]:
    """Transformer Engine's ``custom_gemm``: fprop in layout TN, dgrad in NN, wgrad in NT.

    The names are cuBLAS's, which counts by columns: b is the left operand, a the right one.

    Args:
        others: what to call for other quantizers' tensors, with all the rest.

    Raises:
        ValueError: asked for what no layer of a Llama asks for and this does not do.
    """
    if not (isinstance(a, EmulatedTensor) and isinstance(b, EmulatedTensor)):
        return others(
            a, b, workspace, out_dtype, quantization_params, gelu, gelu_in, accumulate, layout, out, bias, *rest
        )
    result_type = torch.bfloat16 if out is None else out.dtype
    refused = {
        "bias": bias is not None,
        "fused GELU": gelu or gelu_in is not None,
        "quantized result": quantization_params is not None,
        f"result in {out_dtype}": out_dtype not in (None, result_type),
    }
    if asked := [name for name, wanted in refused.items() if wanted]:
        raise ValueError(
            f"emulated NVFP4's products have no {' and no '.join(asked)}: use a model whose linear layers do without, "
            "in BF16"
        )
    if _measurement is not None:
        _show(layout, a, b)
    left, right = b.columns if layout == "NT" else b.rows, a.rows if layout == "TN" else a.columns
    first, second = left.values, right.values
    if layout == "TN":
        second = second.T
    elif layout == "NN":
        second = second[: first.shape[1]]  # columns are padded to whole blocks, but for tiles
    else:
        first = first.T
    result = product(first, second, left.scale * right.scale, out=out, accumulate=accumulate)
    return result.view(*b.original_shape[:-1], result.shape[-1]) if layout == "TN" else result, None, None, None
