"""Measured runs, made by hand."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from pretraining.record import run_folder

PARAMETERS = {"qkv": 32768, "proj": 16384, "fc1": 98304, "fc2": 49152}


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., Path]:
    """`measured(4, {("fc2", 3): 0.3}, in_bf16=[("qkv", 0)])`: a folder of four layers; other errors are 0.1."""

    def make(
        layers: int, errors: Mapping[tuple[str, int], float] = MappingProxyType({}), in_bf16: Any = (), **more: Any
    ) -> Path:
        cells = []
        for number in range(layers):
            for projection, parameters in PARAMETERS.items():
                error = errors.get((projection, number), 0.1)
                operand = {"error": error, "clipped": 0.03, "zeroed": 0.07}
                product = {"error": error, "operands": {"input": operand}}
                missing = (projection, number) in in_bf16
                cells.append({
                    "layer": number, "projection": projection, "parameters": parameters,
                    "gradient_over_noise": None if missing else 1 / error,
                    "products": {} if missing else dict.fromkeys(("fprop", "dgrad", "wgrad"), product),
                })  # fmt: skip
        whole = {
            "kind": run_folder.SENSITIVITY_KIND,
            "schema": 1,
            "model": "tiny",
            "mock_data": False,
            "iterations": [49, 50],
        }
        recipe = {"rht": "on", "stochastic": "on", "weights": "16x16"}
        run_folder.write_json(
            tmp_path / run_folder.SENSITIVITY,
            whole | {"gradient_over_noise": 9.9, "recipe": recipe, "layers": cells} | more,
        )
        return tmp_path

    return make
