"""Native kernels are admitted by what they compute, at the start of every run that trains with them.

Small tensors go through the engine's own quantizers, made of the very recipe that trains, and through one linear layer,
forward and backward. Rounding to nearest must be that of the specification, stochastic rounding without bias, and the
layer's results the products of what the specification quantizes. Kernels that are not made for a GPU fail so: with
zeros, or without chance (Transformer Engine issues 2255, 2956, 3217).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pretraining.request.recipe.nvfp4_recipe import TENSORS
from pretraining.selfcheck import engines, formats, rounding, step
from pretraining.selfcheck.engines import LayoutError
from pretraining.selfcheck.formats import Fp8, Nvfp4, Side

TOKENS, INPUTS, OUTPUTS = 128, 256, 384  # multiples of 128, the largest tile of all, and no two alike
DRAWS = 8
# Of elements or scales, that may be one step off: an engine may add in another order, approximate a reciprocal, or skip
# the rounding to BF16 after the Hadamard transform. Rounding of another kind moves a quarter of them and more.
ROUNDED_OTHERWISE = 0.02
# Of a product to nearest. An ingredient left out moves it by 0.11 and more (see `step`), and 2 % of codes by 0.01.
LAYER = 0.03
# Of a product with stochastic rounding, in units of what one draw of the specification is off; a draw is off by 1.
OTHER_DRAW = 1.5
RESULTS = ("output", "input gradient", "weight gradient")


class TransformerEngine:
    """The engine of this process, on the current GPU, by a recipe of its own, as Megatron-Core trains with."""

    def __init__(self, recipe: Any) -> None:
        from transformer_engine.pytorch.quantization import RecipeState

        self._recipe = recipe
        forward, backward = (
            RecipeState.create(recipe, mode=mode, num_quantizers=count).make_quantizers()
            for mode, count in (("forward", 3), ("backward", 2))
        )
        self.quantizers = dict(zip(TENSORS, (*forward[:2], backward[0]), strict=True))

    def layer(self, x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, ...] | None:
        """RESULTS of x (tokens, inputs), weight (outputs, inputs) and the output's gradient.

        None with delayed scaling, where a layer would stay among those whose amax is reduced.
        """
        if self._recipe.delayed():
            return None

        def make(weights: list[Tensor]) -> torch.nn.Module:
            return engines.Layers(weights, self._recipe, "cuda")

        return tuple(step.one_layer(make, weight, x, gradient).values())


@dataclass
class Findings:
    """What the probe came to."""

    required: bool = False  # what cannot be held is a problem
    found: dict[str, str] = field(default_factory=dict)  # by tensor or result, in words
    problem: str = ""  # the first that is not as it has to be
    seconds: float = 0.0  # it took

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Within: an error is found. A kernel that fails is wrong; one that cannot be called or read is not held."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (formats.NotKnown, AttributeError, ImportError, TypeError) as error:
            said = f"not held: {error}"
            self.add(name, said, said if self.required else "")
        except (RuntimeError, AssertionError, ValueError) as error:
            self.add(name, "", f"it fails: {(str(error).strip().splitlines() or [type(error).__name__])[0]}")

    def add(self, name: str, said: str, problem: str) -> None:
        self.found[name] = problem or said
        self.problem = self.problem or (f"{name}: {problem}" if problem else "")


def probe(make: Callable[[], TransformerEngine], device: str = "cuda", *, required: bool = False) -> Findings:
    """Hold an engine's kernels against the specification; the state of random numbers stays as it was.

    Args:
        make: the engine, which may be of a release that has other names.
        device: where it computes.
        required: what cannot be held is a problem too: there is no other reason to trust the kernels.
    """
    began, findings = time.monotonic(), Findings(required)
    gpus = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(gpus), torch.enable_grad():
        torch.default_generator.manual_seed(4)
        if gpus:
            torch.cuda.manual_seed(4)
        shapes = {"input": (TOKENS, INPUTS), "weight": (OUTPUTS, INPUTS), "grad_output": (TOKENS, OUTPUTS)}
        generator = torch.Generator().manual_seed(3)
        given = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
        known: dict[str, Nvfp4 | Fp8] = {}
        with findings.of("quantizers"):
            engine = make()
            for name, quantizer in engine.quantizers.items():
                with findings.of(name):
                    known[name] = formats.of_quantizer(quantizer)
                    _hold(findings, name, quantizer, known[name], given[name], device)
        if len(known) == len(TENSORS):
            with findings.of("layer"):
                _hold_layer(findings, engine, known, given, device)
    findings.seconds = time.monotonic() - began
    return findings


def _hold(findings: Findings, name: str, quantizer: Any, known: Nvfp4 | Fp8, x: Tensor, device: str) -> None:
    """One quantizer's two sides."""
    made = [quantizer(x.to(device)) for _ in range(DRAWS if known.stochastic else 1)]
    for side, matrix in engines.matrices(x).items():
        try:
            drawn = [known.read(each, side, matrix) for each in made]
        except LayoutError as error:
            findings.add(f"{name}, {side}", "", f"it cannot be read: {error}")
            continue
        problem = _wrong_scales(drawn[0]) or (_wrong_chance if known.stochastic else _wrong_codes)(drawn)
        said = f"without bias in {DRAWS} draws" if known.stochastic else _how_close(drawn[0])
        findings.add(f"{name}, {side}", said, problem)


def _wrong_scales(side: Side) -> str:
    if not side.found.any():
        return f"all {side.found.numel()} elements are zero"
    return _too_far(side.scales_off, "scales are not the specification's")


def _wrong_codes(drawn: list[Side]) -> str:
    (side,) = drawn
    return _too_far(side.found - side.wanted, "elements are not rounded to the nearest")


def _too_far(steps: Tensor, what: str) -> str:
    off = steps.abs()
    too_far = (off > 1).any() or (off > 0).float().mean() > ROUNDED_OTHERWISE
    return f"{int((off > 0).sum())} of {off.numel()} {what}" if too_far else ""


def _wrong_chance(drawn: list[Side]) -> str:
    judged = rounding.judge([each.values for each in drawn], drawn[0].scaled)
    if judged.outside <= ROUNDED_OTHERWISE * judged.elements * judged.draws:
        judged = replace(judged, outside=0)
    return f"stochastic rounding: {judged.problem}" if judged.problem else ""


def _how_close(side: Side) -> str:
    parts = (("scales", side.scales_off), ("elements", (side.found - side.wanted).abs()))
    off = [f"{int(each.sum())} of {each.numel()} {name} one step off" for name, each in parts if each.any()]
    return " and ".join(off) or "equal to the specification"


def _hold_layer(
    findings: Findings, engine: TransformerEngine, known: dict[str, Nvfp4 | Fp8], given: dict[str, Tensor], device: str
) -> None:
    """A linear layer's three products beside those of what the specification quantizes."""
    results = engine.layer(*(given[name].to(device) for name in TENSORS))
    if results is None:
        return
    nearest = _products(known, given)
    drawn = _products(known, given, stochastic=True)
    for name, found, wanted, other in zip(RESULTS, results, nearest, drawn, strict=True):
        apart = step.relative(found, wanted)
        allowed = max(LAYER, OTHER_DRAW * step.relative(other, wanted))
        said = f"within {apart:.2g} of the specification's products"
        problem = "" if apart <= allowed else f"{apart:.2g} from the specification's products, at most {allowed:.2g}"
        findings.add(f"layer, {name}", said, problem)


def _products(known: dict[str, Nvfp4 | Fp8], given: dict[str, Tensor], *, stochastic: bool = False) -> list[Tensor]:
    """RESULTS in float32, of tensors that the specification quantizes, to nearest but where it is asked for."""

    def sides(name: str) -> dict[str, Tensor]:
        matrices = engines.matrices(given[name])
        return {side: known[name].specified(matrix, side, stochastic) for side, matrix in matrices.items()}

    x, weight, gradient = map(sides, TENSORS)
    return [
        x["rows"] @ weight["rows"].T,
        gradient["rows"] @ weight["columns"].T,
        gradient["columns"] @ x["columns"].T,
    ]
