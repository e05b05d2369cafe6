"""What `torch.cuda` answers where there is no CUDA, so that Megatron's training loop runs on the CPU.

Each line names the call that needs it. Nothing here is imported where a GPU is: `enable()` refuses.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections import defaultdict
from typing import Any

import torch
from torch.utils._device import _device_constructors

from pretraining.megatron import compat


class _Stream:
    """A CUDA stream or event; every method does nothing (the schedules wait on and record them)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self


def enable() -> None:
    """Answer `torch.cuda` from the CPU, for this process and for good.

    Raises:
        RuntimeError: a CUDA device is present; it must be used, or hidden with CUDA_VISIBLE_DEVICES="".
    """
    cuda = torch.cuda
    if getattr(cuda, "_answered_by_cpu", False):
        return
    if cuda.is_available():
        raise RuntimeError('a CUDA device is present; hide it with CUDA_VISIBLE_DEVICES="" to train on the CPU')
    cuda._answered_by_cpu = True

    cuda.is_available = lambda: True  # initialize_megatron asserts it
    cuda.is_initialized = lambda: True
    cuda._lazy_init = lambda: None  # every torch.cuda function calls it first
    cuda.current_device = lambda: "cpu"  # where RoPE, DDP buffers, loss and batches are placed
    cuda.device_count = lambda: 1  # _initialize_distributed divides the rank by it
    cuda.get_device_name = lambda *_: "cpu"
    cuda.get_device_capability = lambda *_: (8, 0)  # config checks compare with it
    cuda.get_device_properties = lambda *_: types.SimpleNamespace(
        name="cpu", major=8, minor=0, multi_processor_count=1, total_memory=2**30
    )
    for name in ("synchronize", "set_device", "empty_cache", "reset_peak_memory_stats"):
        setattr(cuda, name, lambda *args, **kwargs: None)  # timers, set-up, empty_unused_memory_level
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, lambda *args: 0)  # training_log's memory line
    cuda.memory_stats = lambda *_: defaultdict(int)
    cuda.Stream = cuda.Event = cuda.ExternalStream = _Stream
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: _Stream()
    cuda.stream = lambda *_: contextlib.nullcontext()
    # A CUDA build of torch, which has no other accelerator in mind, would ask the driver for the current stream
    # (Adam's step) and for pinned memory (DataLoader). A CPU build answers the same.
    torch.accelerator.is_available = lambda: False
    torch.accelerator.current_accelerator = lambda *_, **__: None

    _random_state()
    _placement()
    _tensor_types()


def _random_state() -> None:
    """One generator serves both "the CPU's" and "the GPU's" stream; Megatron saves and restores both."""
    cuda = torch.cuda

    def get(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def put(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        torch.set_rng_state(state)

    for module in (cuda, cuda.random):
        module.get_rng_state, module.set_rng_state = get, put
    compat.use_random_state(get, put)
    cuda.manual_seed = torch.default_generator.manual_seed  # model_parallel_cuda_manual_seed, on each stream
    cuda.manual_seed_all = lambda seed: None  # torch.manual_seed calls it after seeding the generator

    # A DataLoader draws a seed from the CPU's stream when its iteration starts, which is after the restoring of a
    # checkpoint. Here that would shift the stochastic rounding, so a resumed run would not round as the unbroken one.
    loader = torch.utils.data.DataLoader
    construct = loader.__init__

    @functools.wraps(construct)
    def with_own_generator(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("generator", torch.Generator())
        construct(self, *args, **kwargs)

    loader.__init__ = with_own_generator


def _placement() -> None:
    """Creating or moving a tensor to "cuda" stays here: training_log, setup and the datasets do it by name."""
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self

    def on_cpu(create: Any) -> Any:
        @functools.wraps(create)
        def created(*args: Any, **kwargs: Any) -> Any:
            if "device" in kwargs and str(kwargs["device"]).startswith("cuda"):
                kwargs["device"] = "cpu"
            return create(*args, **kwargs)

        return created

    # `with torch.device("meta")` knows functions by identity, from a list made at first use: of these, not of ours.
    _device_constructors()
    for name in ("tensor", "empty", "zeros", "ones", "full", "arange", "rand", "randn", "as_tensor", "empty_like"):
        setattr(torch, name, on_cpu(getattr(torch, name)))


def _tensor_types() -> None:
    """`torch.cuda.FloatTensor` and its kin: the optimizers build and compare with them by name."""
    for dtype in ("Float", "BFloat16", "Half", "Double", "Int", "Long", "Byte", "Bool"):
        setattr(torch.cuda, f"{dtype}Tensor", getattr(torch, f"{dtype}Tensor"))
    plain_type = torch.Tensor.type

    def cuda_named_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = plain_type(self, *args, **kwargs)
        return f"torch.cuda.{answer.split('.')[-1]}" if isinstance(answer, str) else answer

    torch.Tensor.type = cuda_named_type  # Float16OptimizerWithFloat16Params asks for 'torch.cuda.BFloat16Tensor'
