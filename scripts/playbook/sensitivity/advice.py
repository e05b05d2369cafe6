"""What to keep in BF16 for a share of the compute, as the word that `NVFP4=` takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from playbook.sensitivity.findings import Cell, Findings
from pretraining.errors import UsageError
from pretraining.request.recipe import nvfp4_recipe
from pretraining.request.recipe.kept_in_bf16 import KeptInBf16

BUDGET = "15%"


@dataclass(frozen=True)
class Advice:
    """What to keep in BF16.

    Attributes:
        cells: in the order in which they were chosen.
        share: of the linear layers' compute, those in BF16 already among it; 1 is all.
        words: the whole recipe's, to paste; "" where nothing is kept.
    """

    cells: list[Cell]
    share: float
    words: str


def budget(text: str) -> float:
    """A share of 1 from "15%" or "0.15". Raises UsageError for anything else."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?|\.\d{1,6})(\s*%)?", text.strip(), re.ASCII)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share < 1:
        raise UsageError(
            f"BUDGET={text}: it is a share of the linear layers' compute, more than none and less than all: 15% or 0.15"
        )
    return share


def advise(found: Findings, share: float) -> Advice:
    """Keep the linear layers with the largest errors, as many as fit.

    An error squared is the noise in a layer's results next to them. What is taken from the model for a layer's compute
    is that times its parameters; so the largest errors first take the most for what they cost. All three products of a
    layer cost the same and go together, because `bf16=` keeps them together.
    """
    whole = sum(cell.parameters for cell in found.cells)
    kept = [cell for cell in found.cells if not cell.errors]
    used = sum(cell.parameters for cell in kept)
    chosen = []
    for cell in sorted(found.measured, key=lambda cell: -cell.error):
        if used + cell.parameters <= share * whole and cell.error:
            chosen.append(cell)
            used += cell.parameters
    if not chosen:
        return Advice([], used / whole, "")
    named = ",".join(f"{cell.projection}:{cell.layer}" for cell in (*kept, *chosen))
    word = str(KeptInBf16.read(named).of(found.layers, range(found.layers)))
    recipe = nvfp4_recipe.Nvfp4Recipe.of({**found.recipe, "bf16": word})
    return Advice(chosen, used / whole, nvfp4_recipe.as_text(recipe.changed()))
