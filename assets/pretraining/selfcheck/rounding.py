"""Whether stochastic rounding is what it should be: it cannot be equal bit by bit, but it can be judged.

Every element must come out as one of its two neighbours on the E2M1 grid (as itself where it lies on it), and its mean
over many draws must be the element. The second is tested where a wrong rounding cannot cancel: elements are grouped by
their distance from the neighbour nearer to zero, and in each group the share of roundings away from zero must be the
mean distance. Rounding to nearest, for one, is right on average and wrong in every group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretraining.numerics import nvfp4

GROUPS = 8
# Of a step of the grid: what a rounding with eight random bits an element can be off, as the GPU's instruction has
# (`cvt.rs.satfinite.e2m1x4.f32`: 32 for four elements). Five standard errors of the sample come on top.
BIAS = 2.0**-8
ERRORS = 5.0


@dataclass(frozen=True)
class Judgement:
    """What the draws of one side came to."""

    elements: int
    draws: int
    outside: int  # roundings to something else than a neighbour
    first: str  # the first element with one
    repeated: bool  # all draws were the same
    biases: list[float]  # of each group, in steps of the grid; positive is away from zero
    limits: list[float]  # what each may be at most, either way

    @property
    def worst(self) -> int:
        """The group whose bias is largest beside its limit."""
        return max(range(len(self.biases)), key=lambda n: abs(self.biases[n]) / self.limits[n])

    @property
    def problem(self) -> str:
        """What is wrong, "" where nothing is."""
        if self.outside:
            return f"{self.outside} roundings to no neighbour, the first {self.first}"
        if self.repeated:
            return f"all of {self.draws} draws are the same"
        bias, limit = self.biases[self.worst], self.limits[self.worst]
        if abs(bias) > limit:
            low, high = self.worst / GROUPS, (self.worst + 1) / GROUPS
            where = f"for elements {low:g} to {high:g} of a step from their neighbour"
            return f"biased by {bias:+.4f} steps (at most {limit:.4f}) {where}"
        return ""

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "problem": self.problem}


def judge(draws: Iterable[Tensor], scaled: Tensor) -> Judgement:
    """Judge draws, E2M1 values of one matrix each, as roundings of `scaled`, which lies in [-6, 6]."""
    below, distance = nvfp4.neighbours(scaled)
    grid = torch.tensor((*nvfp4.E2M1, 8.0))
    floor, ceiling, sign = grid[below], grid[below + 1], torch.where(scaled < 0, -1.0, 1.0)
    away = torch.zeros_like(scaled)
    outside, first, repeated, count, before = 0, "", True, 0, None
    for values in draws:
        up = (values == sign * ceiling) & (distance > 0)
        wrong = ~(up | (values == sign * floor))
        if wrong.any() and not outside:
            index = tuple(wrong.nonzero()[0].tolist())
            first = f"at {list(index)}: {scaled[index]:g} to {values[index]:g}"
        outside += int(wrong.sum())
        repeated &= before is None or torch.equal(values, before)
        away, count, before = away + up, count + 1, values
    biases, limits = [], []
    group = (distance * GROUPS).int()
    for number in range(GROUPS):
        inside = distance[(group == number) & (distance > 0)].double()
        rounded = away[(group == number) & (distance > 0)].double() / count
        variance = (inside * (1 - inside)).sum().item() / count
        size = max(len(inside), 1)
        biases.append((rounded - inside).sum().item() / size)
        limits.append(BIAS + ERRORS * math.sqrt(variance) / size)
    return Judgement(scaled.numel(), count, outside, first, repeated and count > 1, biases, limits)
