"""One BF16 matrix product whose FP32 sums are multiplied by a number on the device before they are rounded.

That number, the product of two tensor scales, is not known to the host without waiting for the GPU. cuBLASLt takes it
by address (``CUBLASLT_POINTER_MODE_DEVICE``), which no function of PyTorch offers, so the library that PyTorch has
loaded is called directly. With ``beta`` 1 it also adds to ``main_grad``. Sources: cuBLAS documentation, "Using the
cuBLASLt API"; the values below are those of ``cublasLt.h`` and ``cublas_api.h`` in CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import functools
import re
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_CUDA_TYPES = {torch.float32: 0, torch.bfloat16: 14}  # CUDA_R_32F, CUDA_R_16BF
_COMPUTE_32F = 68
_POINTER_MODE, _TRANSPOSE_A, _TRANSPOSE_B = 2, 3, 4  # cublasLtMatmulDescAttributes_t
_POINTER_MODE_DEVICE = 1
_MAX_WORKSPACE, _REDUCTION_SCHEMES, _ALIGNMENT_A = 1, 3, 5  # cublasLtMatmulPreferenceAttributes_t; B, C, D follow A
_IN_COMPUTE_TYPE = 2  # cublasLtReductionScheme_t: parts of a sum are added in FP32, and not in the result's own type
_MOST_ALIGNED = 256  # bytes, of which cuBLASLt takes every pointer to be a multiple unless it is told otherwise
_WORKSPACE_BYTES = 32 * 2**20  # what NVIDIA recommends for Hopper and newer


class _Heuristic(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``: an algorithm and what it needs."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class _Plan(NamedTuple):
    """A product of given sizes: handles of cuBLASLt, which live as long as the process."""

    operation: c_void_p
    layouts: tuple[c_void_p, c_void_p, c_void_p]
    algorithm: _Heuristic


def product(a: Tensor, b: Tensor, alpha: Tensor, *, out: Tensor | None = None, accumulate: bool = False) -> Tensor:
    """``alpha * (a @ b)``, summed in FP32 and rounded once.

    Args:
        a: bfloat16 of shape (M, K), contiguous or the transpose of a contiguous matrix.
        b: bfloat16 of shape (K, N), likewise.
        alpha: float32 of one element, on the same device; or of shape (M, 1) or (1, N), which takes a float32 result
            more, as in Transformer Engine's products of row-scaled tensors.
        out: contiguous, of shape (M, N), bfloat16 or float32, to write into; None makes a bfloat16 one.
        accumulate: add to ``out`` instead of overwriting it.

    Raises:
        ValueError: shapes that do not fit, or nothing to add to.
        RuntimeError: cuBLASLt has no algorithm, or fails.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"no product of shapes {tuple(a.shape)} and {tuple(b.shape)}")
    if out is None and accumulate:
        raise ValueError("a product is added to `out`, and there is none")
    if out is None:
        out = torch.empty(a.shape[0], b.shape[1], dtype=torch.bfloat16, device=a.device)
    elif out.shape != (a.shape[0], b.shape[1]) or not out.is_contiguous():
        raise ValueError(f"the product of {tuple(a.shape)} and {tuple(b.shape)} does not fit {tuple(out.shape)}")
    if alpha.numel() > 1 or not a.is_cuda:
        exact = _exact(a, b) * alpha
        return out.add_(exact) if accumulate else out.copy_(exact)
    first, transposed_a = _stored(a)
    second, transposed_b = _stored(b)
    aligned = tuple(map(_alignment, (second, first, out)))
    plan = _plan(a.shape[0], b.shape[1], a.shape[1], transposed_a, transposed_b, out.dtype, a.device, aligned)
    beta = _constant(float(accumulate), a.device)
    stream = torch.cuda.current_stream(a.device).cuda_stream
    workspace = _workspace(a.device, stream)
    # cuBLAS counts by columns: it computes out.T = b.T @ a.T.
    result = c_void_p(out.data_ptr()), plan.layouts[2]
    status = _library().cublasLtMatmul(
        _handle(a.device),
        plan.operation,
        c_void_p(alpha.data_ptr()),
        c_void_p(second.data_ptr()),
        plan.layouts[0],
        c_void_p(first.data_ptr()),
        plan.layouts[1],
        c_void_p(beta.data_ptr()),
        *result,  # what is added to
        *result,
        byref(plan.algorithm),
        c_void_p(workspace.data_ptr()),
        c_size_t(_WORKSPACE_BYTES),
        c_void_p(stream),
    )
    _check(status, "cublasLtMatmul")
    return out


def _exact(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32."""
    if not a.is_cuda:
        return a.float() @ b.float()
    result = torch.empty(a.shape[0], b.shape[1], dtype=torch.float32, device=a.device)
    return product(a, b, _constant(1.0, a.device), out=result)


def _stored(x: Tensor) -> tuple[Tensor, bool]:
    """The contiguous matrix behind x, and whether x is its transpose."""
    if x.is_contiguous():
        return x, False
    return (x.T, True) if x.T.is_contiguous() else (x.contiguous(), False)


def _alignment(x: Tensor) -> int:
    """The largest power of two that its address is a multiple of, at most what cuBLASLt asks for."""
    address = x.data_ptr()
    return min(address & -address or _MOST_ALIGNED, _MOST_ALIGNED)


@functools.cache
def _plan(
    rows: int,
    columns: int,
    depth: int,
    transposed_a: bool,
    transposed_b: bool,
    dtype: torch.dtype,
    device: torch.device,
    aligned: tuple[int, int, int],
) -> _Plan:
    """Of a product of these sizes; `aligned` are the addresses of cuBLAS's A and B and of the result."""
    library = _library()
    operation = c_void_p()
    _check(library.cublasLtMatmulDescCreate(byref(operation), _COMPUTE_32F, _CUDA_TYPES[torch.float32]), "descriptor")
    settings = {_POINTER_MODE: _POINTER_MODE_DEVICE, _TRANSPOSE_A: transposed_b, _TRANSPOSE_B: transposed_a}
    for attribute, value in settings.items():
        setting = c_int32(value)
        _check(library.cublasLtMatmulDescSetAttribute(operation, attribute, byref(setting), c_size_t(4)), "attribute")
    layouts = (
        _layout(torch.bfloat16, depth, columns) if transposed_b else _layout(torch.bfloat16, columns, depth),
        _layout(torch.bfloat16, rows, depth) if transposed_a else _layout(torch.bfloat16, depth, rows),
        _layout(dtype, columns, rows),
    )
    preference = c_void_p()
    _check(library.cublasLtMatmulPreferenceCreate(byref(preference)), "preference")
    wishes = {_MAX_WORKSPACE: c_uint64(_WORKSPACE_BYTES), _REDUCTION_SCHEMES: c_uint32(_IN_COMPUTE_TYPE)}
    # The result is read where it was: C is D.
    wishes |= enumerate(map(c_uint32, (*aligned, aligned[-1])), _ALIGNMENT_A)
    for attribute, wanted in wishes.items():
        size = c_size_t(ctypes.sizeof(wanted))
        status = library.cublasLtMatmulPreferenceSetAttribute(preference, attribute, byref(wanted), size)
        _check(status, f"preference {attribute}")
    best, found = _Heuristic(), c_int()
    status = library.cublasLtMatmulAlgoGetHeuristic(
        _handle(device), operation, *layouts, layouts[2], preference, 1, byref(best), byref(found)
    )
    _check(status, f"an algorithm for {rows} x {depth} x {columns}")
    if not found.value:
        raise RuntimeError(f"cuBLASLt has no algorithm for a product {rows} x {depth} x {columns} into {dtype}")
    return _Plan(operation, layouts, best)


def _layout(dtype: torch.dtype, rows: int, columns: int) -> c_void_p:
    layout, shape = c_void_p(), (c_uint64(rows), c_uint64(columns), c_int64(rows))
    _check(_library().cublasLtMatrixLayoutCreate(byref(layout), _CUDA_TYPES[dtype], *shape), "layout")
    return layout


@functools.cache
def _library() -> ctypes.CDLL:
    """The cuBLASLt that PyTorch has loaded into this process."""
    loaded = re.search(r"\S*/libcublasLt\.so[.\d]*", Path("/proc/self/maps").read_text())
    if loaded is None:
        raise RuntimeError("no libcublasLt is loaded: this PyTorch is no CUDA build")
    return ctypes.CDLL(loaded[0])


@functools.cache
def _handle(device: torch.device) -> c_void_p:
    handle = c_void_p()
    with torch.cuda.device(device):
        _check(_library().cublasLtCreate(byref(handle)), "handle")
    return handle


@functools.cache
def _constant(value: float, device: torch.device) -> Tensor:
    return torch.full((1,), value, dtype=torch.float32, device=device)


@functools.cache
def _workspace(device: torch.device, stream: int) -> Tensor:
    """Scratch memory of one stream; two streams must not share it."""
    return torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def _check(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"cuBLASLt failed ({what}): status {status}, see cublasStatus_t in cuBLAS's documentation")


def adds_weight_gradients() -> bool:
    """Whether this PyTorch can: its products round to another type than their operands' from 2.8 on."""
    return "dtype_out" in torch.ops.aten.addmm.overloads()


def add_weight_gradient(inputs: Tensor, grad_output: Tensor, main_grad: Tensor) -> None:
    """`main_grad += grad_output.T @ inputs`, in place, each element summed in FP32 and rounded once.

    Args:
        inputs: bfloat16 of shape (tokens, columns), on a GPU.
        grad_output: bfloat16 of shape (tokens, rows).
        main_grad: of shape (rows, columns), in float32 or, where gradients are reduced in it, in bfloat16.
    """
    torch.addmm(main_grad, grad_output.t(), inputs, out_dtype=main_grad.dtype, out=main_grad)
