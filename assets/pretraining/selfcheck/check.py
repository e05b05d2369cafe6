"""All that a selfcheck compares: the vectors and random tensors in every mode, stochastic rounding, a training step."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretraining.numerics import nvfp4
from pretraining.numerics.nvfp4 import BLOCK, Operand, QuantizedMatrix
from pretraining.request.recipe.nvfp4_recipe import Rounding, native_roundings
from pretraining.selfcheck import deviations, engines, rounding, step
from pretraining.selfcheck.engines import SIDES, LayoutError, Ours
from pretraining.selfcheck.engines import TransformerEngine as Native

STOCHASTIC = [each for each in native_roundings() if each.stochastic]
EXACT = [each for each in native_roundings() if not each.stochastic]
# Transformer Engine has kernels of its own for rows divisible by 64 beside columns divisible by 128; its scales are
# padded for rows or blocks that do not fill 128 and 4, and it takes no other rows than multiples of 16.
SHAPES = ((256, 512), (64, 128), (304, 272), (48, 80), (200, 384))
DRAWN, DRAWS = (256, 512), 64
NEAR = "equal but for the signs of zeros"
OURS = "our kernels, "  # begins a side of ours

_URL = re.compile(r"\w+://\S+")
_PATH = re.compile(r"(?<![\w.])(?:~[\w.-]*)?(?:/[\w.@+~ -]*\w)*/[\w.@+~-]+/?")
_SOURCE = re.compile(r"[\w.+-]+\.(?:py|cuh?|cpp|cc|h|so)(?:\.[\d.]+)?")
_HOME = re.compile(r"/(?:home|Users)/([\w.-]+)")


@dataclass(frozen=True)
class Result:
    """One comparison."""

    name: str  # of the tensor, or of what was measured
    mode: str  # "" where it means nothing, as `side` then is
    side: str
    equal: bool  # False where something differs; a zero's other sign does not count
    problem: str = ""  # the first difference in words
    cause: str = ""  # what explains all of the differences, where something does
    details: dict[str, Any] = field(default_factory=dict)  # for the file
    failure: str = ""  # why the comparison could not be made; nothing is said of the numbers then

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in ("", {})}


def everything(
    native: Native, ours: Ours, vectors: Path, device: str, *, shapes=SHAPES, drawn=DRAWN, draws: int = DRAWS
) -> Iterator[Result]:
    """Each comparison, as it is made.

    Args:
        vectors: Transformer Engine's reference results, see tests/vectors.
        device: where ours computes; the native side takes matrices from anywhere.
        shapes, drawn, draws: of random matrices; of those for stochastic rounding, and how often.
    """
    for case in torch.load(vectors):
        mode = Rounding(tile=tuple(case["tile"]), rht=case["rht"])
        yield from exact(f"vector {case['name']}", case["x"], mode, native, ours, device)
    for name, x in random_tensors(shapes):
        for mode in EXACT:
            yield from exact(name, x, mode, native, ours, device)
    x = torch.randn(drawn, generator=torch.Generator().manual_seed(1)).bfloat16()
    for mode in STOCHASTIC:
        yield from stochastic(x, mode, native, ours, device, draws)
    yield from training_step(native, ours, device)


def random_tensors(shapes: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, Tensor]]:
    """Names and BF16 matrices, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        normal = torch.randn(shape, generator=generator)
        spread = torch.exp(4 * torch.randn(shape, generator=generator))
        holes = torch.rand(shape[0], shape[1] // BLOCK, generator=generator).repeat_interleave(BLOCK, dim=1)
        kinds = {
            "normal": normal,
            "heavy tails": normal * spread,
            "tiny": normal * 1e-30,
            "zeros among them": normal * (holes > 0.5) * (torch.rand(shape, generator=generator) > 0.2),
        }
        for kind, x in kinds.items():
            yield f"{kind} {shape[0]}x{shape[1]}", x.bfloat16()
    yield "zeros 32x64", torch.zeros(32, 64).bfloat16()


def exact(name: str, x: Tensor, mode: Rounding, native: Native, ours: Ours, device: str) -> Iterator[Result]:
    """Native codes, block scales and amax of both sides against the specification, and our kernels against it."""
    specified, matrices = engines.specified(x, mode), engines.matrices(x)

    def of_native(side: str, stored: engines.Stored) -> Iterator[Result]:
        yield _one_side(name, mode, side, stored, specified[side], matrices[side])

    def of_ours(side: str, found: Operand) -> Iterator[Result]:
        yield _our_kernels(name, mode, side, found, specified[side])

    yield from _both_sides(name, mode, "", lambda: native.quantize(engines.padded(x), mode), of_native)
    yield from _both_sides(name, mode, OURS, lambda: ours.kernels(x.to(device), mode), of_ours)


def _both_sides(
    name: str, mode: Rounding, whose: str, make: Callable[[], dict[str, Any]], compare: Callable[..., Iterator[Result]]
) -> Iterator[Result]:
    """`compare(side, made[side])` for every side; where it is missing, or something raises, what failed."""
    made: dict[str, Any] | Exception
    try:
        made = make()
    except Exception as error:
        made = error
    for side in SIDES:
        try:
            if isinstance(made, Exception):
                raise made
            if side not in made:
                raise LookupError(f"no {side} were returned")
            yield from compare(side, made[side])
        except LayoutError as error:
            yield Result(name, mode.name, whose + side, False, f"layout: {error}")
        except Exception as error:
            yield failed(name, mode, whose + side, error)


def _one_side(
    name: str, mode: Rounding, side: str, stored: engines.Stored, specified: QuantizedMatrix, matrix: Tensor
) -> Result:
    columns = matrix.shape[1]
    rows = len(matrix) if side == "columns" else len(matrix) + -len(matrix) % BLOCK
    of_side = mode if side == "columns" else mode.of_rows
    native = engines.read(stored, rows, columns)
    native = QuantizedMatrix(native.codes[: len(matrix)], native.scales[: len(matrix)], native.amax)
    found = deviations.differences(native, specified)
    details: dict[str, Any] = {"differences": [asdict(each) for each in found]} if found else {}
    if signs := deviations.zero_signs(native, specified):
        details["zeros_of_other_sign"] = signs
    if not found:
        return Result(name, mode.name, side, True, NEAR if signs else "", details=details)
    cause = deviations.cause_of(native, matrix, of_side)
    return Result(name, mode.name, side, False, "; ".join(map(str, found)), cause, details)


def _our_kernels(name: str, mode: Rounding, side: str, found: Operand, specified: QuantizedMatrix) -> Result:
    values, expected = _shaped(found, specified), specified.values.bfloat16()
    unequal = values.contiguous().view(torch.int16) != expected.contiguous().view(torch.int16)
    both_zero = (values == 0) & (expected == 0)
    first = deviations.first_difference("kernel values", values, expected, unequal & ~both_zero)
    same_scale = torch.equal(found.scale.float(), specified.tensor_scale)
    problem = str(first) if first else "" if same_scale else "the tensor scale differs"
    return Result(name, mode.name, OURS + side, not problem, problem)


def _shaped(found: Operand, specified: QuantizedMatrix) -> Tensor:
    """The values of one side. Raises LayoutError where their shape is not the specification's."""
    wanted = tuple(specified.values.shape)
    if tuple(found.values.shape) != wanted:
        raise LayoutError(f"kernel values of shape {tuple(found.values.shape)}, expected {wanted}")
    return found.values


def stochastic(x: Tensor, mode: Rounding, native: Native, ours: Ours, device: str, draws: int) -> Iterator[Result]:
    """Both ways of rounding stochastically, judged by `rounding`; all scales are those of rounding to nearest.

    Of the native kernels these are the block scales and amax, of ours the tensor scale: a block scale is in the values.
    """
    specified = engines.specified(x, mode)
    name = f"{draws} draws of {x.shape[0]}x{x.shape[1]}"
    scaled = {}
    for side, matrix in engines.matrices(x).items():
        rotated = nvfp4.random_hadamard_transform(matrix) if mode.rht and side == "columns" else matrix
        expected = specified[side]
        scaled[side] = nvfp4.scale_elements(rotated.float(), expected.scales, nvfp4.encode_scale(expected.amax))

    def of_native(side: str, drawn: list[engines.Stored]) -> Iterator[Result]:
        read = [engines.read(each, *scaled[side].shape) for each in drawn]
        yield _judged(name, mode, side, [nvfp4.decode(nvfp4.unpack(each.codes)) for each in read], scaled[side])
        found = [d for each in read for d in deviations.differences(each, specified[side]) if d.part != "codes"]
        details = {"differences": [asdict(found[0])]} if found else {}
        problem = str(found[0]) if found else ""
        yield Result(name, mode.name, f"{side}: scales", not found, problem, details=details)

    def of_ours(side: str, drawn: list[Operand]) -> Iterator[Result]:
        scales = specified[side].scales.float().repeat_interleave(BLOCK, dim=1)
        values = [_shaped(each, specified[side]).float() / scales for each in drawn]
        yield _judged(name, mode, OURS + side, values, scaled[side])
        same = all(torch.equal(each.scale.float(), specified[side].tensor_scale) for each in drawn)
        yield Result(name, mode.name, f"{OURS}{side}: tensor scale", same, "" if same else "the tensor scale differs")

    def all_draws(draw: Callable[[int], dict[str, Any]]) -> dict[str, list[Any]]:
        drawn = [draw(seed) for seed in range(draws)]
        return {side: [each[side] for each in drawn] for side in SIDES if all(side in each for each in drawn)}

    draw_native = partial(all_draws, lambda _: native.quantize(x, mode))
    draw_ours = partial(all_draws, lambda seed: ours.kernels(x.to(device), mode, seed))
    yield from _both_sides(name, mode, "", draw_native, of_native)
    yield from _both_sides(name, mode, OURS, draw_ours, of_ours)


def _judged(name: str, mode: Rounding, side: str, values: list[Tensor], scaled: Tensor) -> Result:
    judgement = rounding.judge(values, scaled)
    return Result(name, mode.name, side, not judgement.problem, judgement.problem, details=judgement.as_json())


def training_step(native: Native, ours: Ours, device: str) -> Iterator[Result]:
    """The relative difference of outputs, losses and gradients."""
    try:
        measured = step.measure(native.model, ours.model, device)
    except Exception as error:
        yield failed("training step", None, "", error)
        return
    for each in measured:
        within = each.difference <= each.tolerance  # False for NaN too
        said = "" if within else f"relative difference {each.difference:.2g}, tolerance {each.tolerance:.2g}"
        yield Result(f"training step, {each.name}", "", "", within, said, details=each._asdict())


def failed(name: str, mode: Rounding | None, side: str, error: Exception) -> Result:
    """A comparison that could not be made, without what would tell whose machine it was."""
    said = f"{type(error).__name__}: {anonymous(error)}"
    return Result(name, mode.name if mode else "", side, False, failure=said)


def anonymous(error: Exception) -> str:
    """The first lines of an error, without paths (of a source its name stays), URLs, and names of user and machine."""

    def shown(path: re.Match[str]) -> str:
        last = path[0].rpartition("/")[2]
        return last if _SOURCE.fullmatch(last) else "..."

    text = "\n".join(str(error).strip().splitlines()[:5])
    names = {socket.gethostname(), socket.gethostname().partition(".")[0], os.environ.get("USER", "")}
    names.update(_HOME.findall(text))
    with suppress(KeyError, OSError):  # a container's user may have no name
        names.add(getpass.getuser())
    text = _PATH.sub(shown, _URL.sub("...", text))
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(name)}\b", "...", text)
    return text[:500]
