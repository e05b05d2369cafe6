"""A measured training's findings in the terminal: a table, what they mean, and what to keep in BF16."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from playbook.common.tables import print_table
from playbook.sensitivity import advice, heat_map
from playbook.sensitivity.findings import PRODUCTS, Cell, Findings, load, root_mean_square
from pretraining.request.models import MODELS
from pretraining.request.recipe.kept_in_bf16 import PROJECTIONS

THRESHOLD = math.sqrt(3)  # arXiv 2505.19115, see numerics/quantization_error.py
_WHOLE = 24  # rows; of more linear layers, projections' means and the worst
_WORST = 12
_TITLES = ("layer", "projection", *(f"{name} %" for name in PRODUCTS), "clipped %", "zeroed %", "gradient/noise")


def show(folder: Path, share: float, *, draw: bool = False) -> None:
    """Print them, and `draw` the heat map first. Raises UsageError where the run measured nothing."""
    found = load(folder)
    pictures = heat_map.write(found, folder) if draw else []
    first, last = found.iterations
    print(
        f"\n{found.model} in NVFP4 against BF16, iterations {first} to {last}: relative errors of the three products\n"
    )
    print_table([_TITLES, *_rows(found)], left=2)
    print()
    for sentence in (*_meaning(found), *_advised(found, share)):
        print(sentence if sentence.startswith("  ") else textwrap.fill(sentence, 100))
    for path in pictures:
        print(f"  {path}")


def _rows(found: Findings) -> list[tuple[str, ...]]:
    """Every linear layer of a small model; of a large one each projection's mean, then the worst."""
    if len(found.measured) <= _WHOLE:
        return [_row(cell, str(cell.layer)) for cell in found.measured]
    means = [_mean([cell for cell in found.measured if cell.projection == name]) for name in PROJECTIONS]
    worst = sorted(found.measured, key=lambda cell: -cell.error)[:_WORST]
    return [*(_row(cell, "all") for cell in means if cell), *(_row(cell, str(cell.layer)) for cell in worst)]


def _mean(cells: list[Cell]) -> Cell | None:
    if not cells:
        return None
    errors = {name: root_mean_square(cell.errors.get(name) for cell in cells) for name in PRODUCTS}
    wgrad = errors["wgrad"]
    return Cell(
        layer=-1,
        projection=cells[0].projection,
        parameters=cells[0].parameters,
        errors=errors,
        clipped=sum(cell.clipped for cell in cells) / len(cells),
        zeroed=sum(cell.zeroed for cell in cells) / len(cells),
        gradient_over_noise=1 / wgrad if wgrad else None,
    )


def _row(cell: Cell, layer: str) -> tuple[str, ...]:
    errors = (_percent(cell.errors.get(name)) for name in PRODUCTS)
    ratio = cell.gradient_over_noise
    told = "n/a" if ratio is None else f"{ratio:.1f}{' low' * (ratio < THRESHOLD)}"
    return layer, cell.projection, *errors, _percent(cell.clipped), _percent(cell.zeroed), told


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.1f}"


def _meaning(found: Findings) -> list[str]:
    ratio = found.gradient_over_noise
    below = [cell for cell in found.measured if (cell.gradient_over_noise or math.inf) < THRESHOLD]
    said = ["On mock data: random tokens say little about a text. DATA= names one."] if found.mock_data else []
    said += ["Clipped and zeroed: the largest share of elements of any operand."]
    if ratio is not None:
        said.append(
            f"The weight gradient's norm is {ratio:.1f} times its own rounding noise over all layers. It is below "
            "sqrt(3) = 1.7 times, where arXiv 2505.19115 finds that 4-bit training becomes less effective, in "
            f"{len(below)} of {len(found.measured)} linear layers."
        )
    return said


def _advised(found: Findings, share: float) -> list[str]:
    kept = advice.advise(found, share)
    of = f"{100 * share:.3g} % of the linear layers' compute"
    if not kept.words:
        return [f"For {of} nothing more can be kept in BF16: give a larger BUDGET=."]
    fit = f"{len(kept.cells)} linear layers fit" if len(kept.cells) > 1 else "one linear layer fits"
    return [
        f"Largest errors first, {fit} into {of}; {100 * kept.share:.1f} % are then in "
        "BF16. Errors choose them; whether the loss gains is for make compare to say (with EMULATE=1 on a GPU without "
        "FP4 tensor cores):",
        f'  make compare {_work(found)}BF16_TAIL=0 NVFP4="{kept.words}"',
    ]


def _work(found: Findings) -> str:
    """What names the model whose layers these are; the rest of the training is the user's to say."""
    known = MODELS.get(found.model)
    own = f'ARGS="model.num_layers={found.layers}" ' if known and known.num_layers != found.layers else ""
    return f"MODEL={found.model} {own}"
