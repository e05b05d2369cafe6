"""Weight gradients added to their sums within the product that makes them, by PyTorch in APEX's place."""

from __future__ import annotations

import torch


def available() -> bool:
    """Whether this PyTorch can: its products round to another type than their operands' from 2.8 on."""
    return "dtype_out" in torch.ops.aten.addmm.overloads()


def add_weight_gradient(inputs: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor) -> None:
    """`main_grad += grad_output.T @ inputs`, in place, each element summed in FP32 and rounded once.

    Args:
        inputs: bfloat16 of shape (tokens, columns), on a GPU.
        grad_output: bfloat16 of shape (tokens, rows).
        main_grad: of shape (rows, columns), in float32 or, where gradients are reduced in it, in bfloat16.
    """
    torch.addmm(main_grad, grad_output.t(), inputs, out_dtype=main_grad.dtype, out=main_grad)
