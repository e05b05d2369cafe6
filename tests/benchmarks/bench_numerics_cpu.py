"""Cost of NVFP4 and BF16 emulation on this CPU: ns an element, and NVFP4 against BF16 linear layers.

    PYTHONPATH=assets python tests/benchmarks/bench_numerics_cpu.py

Every figure is the fastest of several repeats, and the ratios are of figures taken in turn in one process: on a shared
machine only those mean something.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numba
import torch

from pretraining.numerics import nvfp4
from pretraining.numerics.cpu_layers import BF16, NVFP4, Arithmetic, PreparedWeight, linear
from pretraining.numerics.nvfp4_numba import quantize, round_bf16
from pretraining.request.recipe.nvfp4_recipe import Rounding

RHT, TILES, STOCHASTIC = Rounding(rht=True), Rounding((16, 16)), Rounding(stochastic=True)
RHT_STOCHASTIC = Rounding(rht=True, stochastic=True)


def fastest(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each function, all of them in turn each repeat."""
    for function in functions.values():
        function()
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def quantizations(tokens: int, hidden: int, repeats: int) -> None:
    """Each quantization beside the specification in eager PyTorch and beside one matrix product."""
    x = torch.randn(tokens, hidden)
    bf16, weight = x.bfloat16(), torch.randn(hidden, hidden)
    columns = bf16.T.contiguous()
    fast = {
        "rows": lambda: quantize(x),
        "rows, stochastic": lambda: quantize(x, STOCHASTIC, seed=1),
        "columns": lambda: quantize(x, columns=True),
        "columns, RHT": lambda: quantize(x, RHT, columns=True),
        "columns, RHT, stochastic": lambda: quantize(x, RHT_STOCHASTIC, columns=True, seed=1),
        "16x16 tiles": lambda: quantize(x, TILES),
        "BF16": lambda: round_bf16(x),
        "float32 product": lambda: x @ weight,
    }
    eager = {
        "rows": lambda: nvfp4.quantize(bf16),
        "rows, stochastic": lambda: nvfp4.quantize(bf16, STOCHASTIC),
        "columns": lambda: nvfp4.quantize(columns),
        "columns, RHT": lambda: nvfp4.quantize(columns, RHT),
        "columns, RHT, stochastic": lambda: nvfp4.quantize(columns, RHT_STOCHASTIC),
        "16x16 tiles": lambda: nvfp4.quantize(bf16, TILES),
        "BF16": lambda: x.bfloat16().float(),
    }
    seconds, reference = fastest(fast, repeats), fastest(eager, max(repeats // 5, 1))
    print(f"\n{tokens} x {hidden}, ns an element          numba   PyTorch")
    for name in fast:
        other = f"{reference[name] / x.numel() * 1e9:9.2f}" if name in reference else ""
        print(f"  {name:36s}{seconds[name] / x.numel() * 1e9:7.2f} {other}")


def training_step(tokens: int, hidden: int, arithmetic: Arithmetic) -> Callable[[], None]:
    """Forward and backward of the four linear layers of a Llama layer with grouped-query attention (1/4) and 3x FFN."""
    shapes = [(hidden, hidden * 3 // 2), (hidden, hidden), (hidden, 6 * hidden), (3 * hidden, hidden)]
    parts = []
    for inputs, outputs in shapes:
        x, weight = torch.randn(tokens, inputs).requires_grad_(), torch.randn(outputs, inputs).requires_grad_()
        parts.append((x, weight, torch.randn(tokens, outputs), PreparedWeight()))

    def step() -> None:
        for x, weight, gradient, memory in parts:
            x.grad = weight.grad = None
            y = linear(x, weight, None, False, False, False, arithmetic=arithmetic, memory=memory)
            y.backward(gradient)

    return step


def layers(tokens: int, hidden: int, repeats: int) -> None:
    """NVFP4 against BF16, weights already quantized (they are once an optimizer step)."""
    steps = {name: training_step(tokens, hidden, a) for name, a in (("BF16", BF16()), ("NVFP4", NVFP4()))}
    seconds = fastest(steps, repeats)
    print(
        f"  {tokens:5d} tokens, hidden {hidden:4d}: BF16 {seconds['BF16'] * 1e3:7.2f} ms, "
        f"NVFP4 {seconds['NVFP4'] * 1e3:7.2f} ms, ratio {seconds['NVFP4'] / seconds['BF16']:.2f}"
    )


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    start = time.perf_counter()
    round_bf16(quantize(torch.zeros(16, 16)).values)
    print(f"numba {numba.__version__}, {numba.threading_layer()}, {numba.get_num_threads()} threads; "
          f"compiled or loaded in {time.perf_counter() - start:.1f} s")  # fmt: skip
    for tokens, hidden in ((2048, 384), (4096, 1152)):
        quantizations(tokens, hidden, repeats)
    print("\nlinear layers of one transformer layer, forward and backward")
    for tokens in (2048, 4096):
        for hidden in (128, 256, 384):
            layers(tokens, hidden, repeats)


if __name__ == "__main__":
    main()
