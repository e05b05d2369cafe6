"""What a measured training found of each linear layer, read from its `sensitivity.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.request.recipe.kept_in_bf16 import PROJECTIONS

PRODUCTS = ("fprop", "dgrad", "wgrad")


def root_mean_square(errors: Iterable[float | None]) -> float | None:
    """Of the errors that are known; None where none is."""
    known = [each for each in errors if each is not None]
    return math.sqrt(sum(each * each for each in known) / len(known)) if known else None


@dataclass(frozen=True)
class Cell:
    """A linear layer of the model.

    Attributes:
        layer: the number of its transformer layer, from 0.
        projection: "qkv", "proj", "fc1" or "fc2".
        parameters: of its weight, which its compute goes by.
        errors: relative ones by product, 1 being 100 %; empty where it is in BF16, None of a product of zeros.
        clipped, zeroed: the largest share of elements of any of its operands.
        gradient_over_noise: of its weight gradient; None where one of the two is zero.
    """

    layer: int
    projection: str
    parameters: int
    errors: dict[str, float | None]
    clipped: float
    zeroed: float
    gradient_over_noise: float | None

    @property
    def error(self) -> float:
        """The root mean square of its products' errors; 0 where it has none."""
        return root_mean_square(self.errors.values()) or 0.0


@dataclass(frozen=True)
class Findings:
    """All of a model.

    Attributes:
        iterations: the first and the last that were measured.
        recipe: the words of the NVFP4 recipe and their values.
        gradient_over_noise: of all weight gradients together.
        cells: by layer, and by projection within it.
    """

    model: str
    mock_data: bool
    iterations: tuple[int, int]
    recipe: dict[str, str]
    gradient_over_noise: float | None
    cells: list[Cell]

    @property
    def measured(self) -> list[Cell]:
        """Those in NVFP4."""
        return [cell for cell in self.cells if cell.errors]

    @property
    def layers(self) -> int:
        """How many transformer layers there are."""
        return len({cell.layer for cell in self.cells})


def load(folder: Path) -> Findings:
    """Read what a run measured. Raises UsageError where it measured nothing, or the file is damaged."""
    path = folder / run_folder.SENSITIVITY
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("kind") != run_folder.SENSITIVITY_KIND:
            raise ValueError("it is another program's")
        first, last = content["iterations"]
        found = Findings(
            model=content["model"],
            mock_data=content["mock_data"],
            iterations=(first, last),
            recipe=content["recipe"],
            gradient_over_noise=content["gradient_over_noise"],
            cells=[_cell(each) for each in content["layers"]],
        )
        if {cell.layer for cell in found.cells} != set(range(found.layers)):
            raise ValueError("its layers are not numbered from 0 on")
        if not found.measured:
            raise ValueError("no layer in NVFP4 is in it")
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} does not exist: the run was not measured, or broke off; `make sensitivity`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); `make sensitivity` makes a new one") from error
    return found


def _cell(content: dict[str, Any]) -> Cell:
    products = content["products"]
    operands = [operand for product in products.values() for operand in product["operands"].values()]
    if content["projection"] not in PROJECTIONS:
        raise ValueError(f"{content['projection']!r} is no projection")
    return Cell(
        layer=content["layer"],
        projection=content["projection"],
        parameters=content["parameters"],
        errors={name: products[name]["error"] for name in PRODUCTS if name in products},
        clipped=max((each["clipped"] for each in operands), default=0.0),
        zeroed=max((each["zeroed"] for each in operands), default=0.0),
        gradient_over_noise=content["gradient_over_noise"],
    )
