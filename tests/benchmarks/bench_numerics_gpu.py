"""The NVFP4 kernels on this GPU: bytes, time and fraction of its own copy bandwidth, for every shape of a layer.

    PYTHONPATH=assets python tests/benchmarks/bench_numerics_gpu.py [--tokens 16384] [--json FILE]

Bytes are the fewest a tensor's quantization must move: 8 an element of an activation or a gradient (its maxima need one
reading, both roundings another, and each writes BF16), 6 of a weight, whose two layouts are one. Times are medians of
CUDA graph replays.
The products beside them are cuBLASLt's with the scale on the device, against `torch.mm`'s.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from triton.testing import do_bench, do_bench_cudagraph

from pretraining.numerics import nvfp4_triton
from pretraining.numerics.product import product
from pretraining.request.recipe.nvfp4_recipe import TENSORS, Nvfp4Recipe

INPUT, WEIGHT, GRADIENT = map(Nvfp4Recipe().rounding, TENSORS)
# Inputs and outputs of the linear layers of Llama 3 8B.
LAYERS = {"qkv": (4096, 6144), "proj": (4096, 4096), "fc1": (4096, 28672), "fc2": (14336, 4096)}


def milliseconds(function: Callable[[], object]) -> float:
    """Median time of a call, replayed from a CUDA graph: without the launches, which a training hides."""
    return do_bench_cudagraph(function, rep=60, return_mode="median")


def copy_bandwidth() -> float:
    """TB/s of a device-to-device copy of 2 GiB, counting bytes read and written."""
    source = torch.randint(0, 255, (2**31,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    # Not in a graph: there the copy is a node for the slower copy engine.
    return 2 * source.numel() / do_bench(lambda: target.copy_(source), rep=60, return_mode="median") / 1e9


def quantizations(tokens: int, copy: float) -> list[dict[str, object]]:
    """A row for each tensor of each layer."""
    seed = torch.tensor([1], device="cuda")
    rows = []
    for layer, (inputs, outputs) in LAYERS.items():
        for what, shape, bytes_each, call in (
            ("input", (tokens, inputs), 8, lambda x: nvfp4_triton.quantize(x, INPUT)),
            ("gradient", (tokens, outputs), 8, lambda x: nvfp4_triton.quantize(x, GRADIENT, seed=seed)),
            ("weight", (outputs, inputs), 6, lambda x: nvfp4_triton.quantize(x, WEIGHT)),
        ):
            x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
            time = milliseconds(lambda call=call, x=x: call(x))
            moved = bytes_each * x.numel()
            rows.append(
                {"layer": layer, "tensor": what, "shape": list(shape), "bytes": moved, "ms": time,
                 "fraction_of_copy": moved / time / 1e9 / copy}
            )  # fmt: skip
            del x
    return rows


def parts(tokens: int, copy: float) -> list[dict[str, object]]:
    """Each kernel alone, on fc1's gradient."""
    x = torch.randn(tokens, LAYERS["fc1"][1], device="cuda", dtype=torch.bfloat16)
    seed = torch.tensor([1], device="cuda")
    maxima = milliseconds(lambda: nvfp4_triton._amax(x, columns=True, rht=True))
    rows = [("maxima of rows and rotated columns", 2, maxima)]
    for what, each, how in (("rows and columns, nearest", 6, INPUT), ("rows and columns, stochastic", 6, GRADIENT)):
        whole = milliseconds(lambda how=how: nvfp4_triton.quantize(x, how, seed=seed))
        rows.append((what, each, whole - maxima))
    return [
        {
            "kernel": what,
            "bytes": each * x.numel(),
            "ms": time,
            "fraction_of_copy": each * x.numel() / time / 1e9 / copy,
        }
        for what, each, time in rows
    ]


def products(tokens: int) -> list[dict[str, object]]:
    """The three products of each layer, with the scale on the device and without."""
    alpha = torch.tensor([0.37], device="cuda")
    rows = []
    for layer, (inputs, outputs) in LAYERS.items():
        x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
        weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16)
        gradient = torch.randn(tokens, outputs, device="cuda", dtype=torch.bfloat16)
        for what, a, b in (("fprop", x, weight.T), ("dgrad", gradient, weight), ("wgrad", gradient.T, x)):
            flops = 2 * tokens * inputs * outputs
            scaled = milliseconds(lambda a=a, b=b: product(a, b, alpha))
            plain = milliseconds(lambda a=a, b=b: torch.mm(a, b))
            rows.append(
                {
                    "layer": layer,
                    "product": what,
                    "scaled_tflops": flops / scaled / 1e9,
                    "mm_tflops": flops / plain / 1e9,
                }
            )
    return rows


def main() -> None:
    """Measure and print; `--json` also writes."""
    flags = argparse.ArgumentParser(description="The NVFP4 kernels on this GPU.")
    flags.add_argument("--tokens", type=int, default=16384)
    flags.add_argument("--json", type=Path)
    args = flags.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured")  # `make bench` goes on
        return
    torch.manual_seed(0)
    copy = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: copy {copy:.2f} TB/s")
    results = {"device": torch.cuda.get_device_name(), "copy_tb_s": copy}
    results["parts"] = parts(args.tokens, copy)
    for row in results["parts"]:
        print(
            f"{row['kernel']:36} {row['bytes'] / 1e6:7.0f} MB {row['ms']:7.3f} ms "
            f"{row['fraction_of_copy']:6.1%} of copy"
        )
    results["quantizations"] = quantizations(args.tokens, copy)
    for row in results["quantizations"]:
        shape = " x ".join(map(str, row["shape"]))
        print(
            f"{row['layer']:5} {row['tensor']:9} {shape:15} {row['bytes'] / 1e6:7.0f} MB {row['ms']:7.3f} ms "
            f"{row['fraction_of_copy']:6.1%} of copy"
        )
    results["products"] = products(args.tokens)
    for row in results["products"]:
        print(
            f"{row['layer']:5} {row['product']:6} {row['scaled_tflops']:6.0f} TFLOP/s, torch.mm {row['mm_tflops']:6.0f}"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
