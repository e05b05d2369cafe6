"""One training step with native NVFP4 and with ours, rounded to nearest: outputs, gradients and the loss after it.

Both multiply the same exact values; only the order of FP32 sums and the tensor core's accumulator differ. One layer's
results may so differ in their last BF16 bit. In the second layer such a bit can move an activation to the next code,
or the tensor's amax and with it every scale; so two layers get a wider tolerance. On the CPU noise of 1e-4 in every
product moved one layer's results by 6e-4 and two layers' gradients by up to 0.057; an ingredient of the recipe left out
moves those that it touches by 0.11 to 0.26.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TOKENS, HIDDEN, INNER = 256, 256, 512
RATE = 1.0
ONE_LAYER = 2.0**-8  # one unit in the last place of BF16
TWO_LAYERS = 0.08
LOSS = 1e-3


class Measured(NamedTuple):
    """One quantity both ways."""

    name: str
    difference: float  # its norm over the norm of ours; NaN where either is not finite
    tolerance: float  # what it may be


Make = Callable[[list[Tensor]], torch.nn.Module]


def measure(native: Make, ours: Make, device: str) -> list[Measured]:
    """Train both ways, by `model` of `engines.TransformerEngine` and of `engines.Ours`."""
    torch.manual_seed(0)
    first = torch.randn(INNER, HIDDEN) / HIDDEN**0.5
    second = torch.randn(HIDDEN, INNER) / INNER**0.5
    weights = [weight.to(device, torch.bfloat16) for weight in (first, second)]
    x = torch.randn(TOKENS, HIDDEN).to(device, torch.bfloat16)
    target = torch.randn(TOKENS, HIDDEN).to(device)
    gradient = torch.randn(TOKENS, INNER).to(device, torch.bfloat16)
    found = []
    for one, other, tolerance in (
        (one_layer(native, weights[0], x, gradient), one_layer(ours, weights[0], x, gradient), ONE_LAYER),
        (_step(native, weights, x, target), _step(ours, weights, x, target), TWO_LAYERS),
    ):
        for name, expected in other.items():
            allowed = LOSS if "loss" in name else tolerance
            found.append(Measured(name, relative(one[name], expected), allowed))
    return found


def one_layer(make: Make, weight: Tensor, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    model, x = make([weight]), x.clone().requires_grad_()
    y = model(x)
    y.backward(gradient.to(y.dtype))
    (parameter,) = model.parameters()
    return {"1 layer: output": y, "1 layer: input gradient": x.grad, "1 layer: weight gradient": parameter.grad}


def _step(make: Make, weights: list[Tensor], x: Tensor, target: Tensor) -> dict[str, Tensor]:
    model, x = make(weights), x.clone().requires_grad_()

    def loss() -> Tensor:
        return (model(x).float() - target).square().mean()

    before = loss()
    before.backward()
    found = {"2 layers: loss": before, "2 layers: input gradient": x.grad}
    for number, parameter in enumerate(model.parameters(), 1):
        found[f"2 layers: weight gradient {number}"] = parameter.grad.clone()
        parameter.data -= RATE * parameter.grad
    with torch.no_grad():
        found["2 layers: loss after the step"] = loss()
    return found


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return ((found - expected).norm() / expected.norm()).item()
