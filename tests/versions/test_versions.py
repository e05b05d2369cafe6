"""The contract with each supported Megatron-Bridge: `make test-versions`, because the packages are gigabytes.

One process a version answers all questions, see contract.py.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pretraining.request.models import MODELS
from pretraining.request.precisions import PRECISIONS

pytestmark = pytest.mark.versions


@pytest.fixture(scope="module")
def answers(release, environment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one version answers."""
    path = tmp_path_factory.mktemp("versions") / "answers.json"
    contract = Path(__file__).with_name("contract.py")
    ended = subprocess.run(
        [release.python, str(contract), str(path)],
        env=environment(PYTHONPATH=release.path), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(path.read_text())
    print(f"\n{release.version}: {found['versions']}, {found['cpu_seconds']:.1f} s, {found['peak_bytes'] / 1e9:.2f} GB")
    return {"version": release.version, **found}


def test_the_version_is_the_one_asked_for(answers) -> None:
    assert answers["versions"]["megatron-bridge"] == answers["version"]


def test_every_model_in_every_precision_is_read_back_as_it_was_set(answers) -> None:
    found = answers["every_config"]
    refused = {"nemotron3-nano fp8_delayed"}
    assert set(found) == {f"{model} {precision}" for model in MODELS for precision in PRECISIONS} - refused
    assert {name: lost for name, lost in found.items() if lost} == {}


def test_mock_data_changes_no_vocabulary(answers) -> None:
    assert answers["words"] == {"llama31-8b": 128256, "llama32-1b": 128256, "llama3-8b": 128256}


def test_how_presets_gather_weights_is_as_the_table_says(answers) -> None:
    version = tuple(int(part) for part in answers["version"].split("."))
    assert answers["gathers"] == {
        name: row.gather if version >= row.gather_since else "BF16" for name, row in PRECISIONS.items()
    } | {"nvfp4 primary=bf16": "BF16"}


def test_the_tuned_preset_is_one_graph_an_iteration(answers) -> None:
    found = answers["tuned"]
    assert (found["impl"], found["scope"]) in (("local", ["full_iteration"]), ("full_iteration", []))
    assert found["rng"] == [True, True] and found["checks"] == [False, False]
    assert found["tail"] == 4  # tuned for speed, and still the recipe


def test_a_product_that_is_kept_in_bf16_is_so_in_megatron_core(answers) -> None:
    assert answers["kept_in_bf16"] == {"quantized": [False, False], "gather": None}


def test_a_late_switch_keeps_bf16_weights_and_changes_each_layers_recipe(answers) -> None:
    assert answers["switched"] == {
        "get_fp8_context": ["config", "layer_no", "is_init"],
        "get_fp4_context": ["config", "layer_no", "is_init"],
        "fp8 6:bf16": [None, "hybrid tensorwise"],
        "mxfp8 6:bf16": [None, "e4m3 mxfp8"],
        "fp8_blockwise 6:bf16": [None, "hybrid blockwise"],
        "nvfp4 6:bf16": [None, "e2m1 nvfp4"],
        "nvfp4 6:fp8": [None, "e2m1 nvfp4", "hybrid tensorwise"],
    }


def test_a_saved_config_with_overrides_is_taken_back(answers) -> None:
    assert answers["saved"]["same"]
    found = answers["saved"]["facts"]["overrides"]
    assert {name: found[name] for name in ("optimizer.lr", "comm_overlap.tp_comm_overlap")} == {
        "optimizer.lr": "0.0001", "comm_overlap.tp_comm_overlap": "true",
    }  # fmt: skip
    assert set(found) == {
        "optimizer.lr", "model.attention_backend", "model.recompute_modules", "optimizer.exp_avg_dtype",
        "comm_overlap.tp_comm_overlap",
    }  # fmt: skip


def test_a_config_is_built_in_seconds_and_without_weights(answers) -> None:
    """All of them, the 405B model's too, imports included."""
    assert answers["cpu_seconds"] < 15
    assert answers["peak_bytes"] < 2e9
