"""The model of a step: its coefficients come from a fit on half of the published runs, and hold on the other half."""

import gzip
import json
import math
from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from playbook.common import gpu_table
from playbook.plan import estimate, published_runs, step_time
from playbook.plan.step_time import Coefficients, Training
from pretraining.request import footprint
from pretraining.request.models import find_model
from pretraining.request.precisions import find_precision
from pretraining.request.recipe.kept_in_bf16 import PROJECTIONS

RESULTS = Path(__file__).parents[3] / "assets/results"
ROUGH = Coefficients(
    bf16=1, fp8=2, nvfp4=3, hopper=0.8, attention=0.4, quantize=4, layers=0.3, replicas=0.1, step=0.02
)  # fmt: skip


def fit(runs: list[published_runs.PublishedRun], start: Coefficients) -> Coefficients:
    """The coefficients of least squared log errors; each configuration counts once, however often it was published.

    Gauss-Newton in the coefficients' logarithms, damped, with a Jacobian by differences.
    """
    twins = Counter(run.configuration for run in runs)
    weights = np.array([twins[run.configuration] ** -0.5 for run in runs])

    def errors(logs: np.ndarray) -> np.ndarray:
        coefficients = Coefficients(*np.exp(logs).tolist())
        return weights * np.log1p([run.error(coefficients) for run in runs])

    logs, damping = np.log(astuple(start)), 1e-3
    found = errors(logs)
    for _ in range(40):
        jacobian = np.array([(errors(logs + off) - found) / 1e-4 for off in 1e-4 * np.eye(len(logs))]).T
        step = np.linalg.solve(jacobian.T @ jacobian + damping * np.eye(len(logs)), -jacobian.T @ found)
        tried = errors(logs + np.clip(step, -0.5, 0.5))
        gained = found @ found - tried @ tried
        if gained > 0:
            logs, found, damping = logs + np.clip(step, -0.5, 0.5), tried, damping / 3
            if gained < 1e-9:
                break
        else:
            damping *= 5
    return Coefficients(*np.exp(logs).tolist())


def test_the_coefficients_are_those_of_the_fit() -> None:
    found = fit([run for run in published_runs.runs() if run.fits], ROUGH)
    assert astuple(step_time.FITTED) == pytest.approx(astuple(found), rel=0.01), found


def test_half_of_the_runs_are_held_out_and_no_configuration_is_on_both_sides() -> None:
    held = {run.configuration for run in published_runs.held_out()}
    fitted = {run.configuration for run in published_runs.runs() if run.fits}
    assert not held & fitted
    assert len(held) >= 40 and len(fitted) >= 40 and len(published_runs.runs()) >= 60
    assert {run.training.gpu.name for run in published_runs.runs()} == set(estimate.KINDS)


def test_runs_that_were_held_out() -> None:
    errors = np.abs([run.error() for run in published_runs.held_out()])
    assert np.median(errors) <= 0.10
    assert np.mean(errors <= 0.20) >= 0.9


@pytest.mark.parametrize(
    "which",
    [
        lambda run: run.training.precision.name == "bf16",
        lambda run: run.training.precision.name in ("fp8", "mxfp8", "fp8_blockwise"),
        lambda run: run.training.precision.name == "nvfp4",
        lambda run: run.training.gpu.capability == step_time.HOPPER,
        lambda run: run.training.gpu.capability != step_time.HOPPER,
        lambda run: run.training.gpus <= 8,
        lambda run: run.training.gpus >= 1000,
    ],
    ids=["bf16", "fp8", "nvfp4", "hopper", "blackwell", "8 GPUs", "1000 GPUs"],
)
def test_no_kind_of_them_is_far_off(which) -> None:
    """Of all runs of a kind, fitted on and held out, half within a tenth."""
    errors = [abs(run.error()) for run in published_runs.runs() if which(run)]
    assert len(errors) >= 5 and np.median(errors) <= 0.10


def test_what_it_says_of_itself_is_what_it_misses_by() -> None:
    half, most = published_runs.misses()
    errors = [abs(run.error()) for run in published_runs.held_out()]
    assert half == pytest.approx(np.median(errors), abs=0.005) and np.mean(np.array(errors) <= most) >= 0.9


def test_published_configurations_fit_their_memory() -> None:
    """They ran: at least 95 in 100 must be said to."""
    ran = [estimate.fits(run.training.memory(run.gradient_bytes), run.training.gpu) for run in published_runs.runs()]
    assert np.mean(ran) >= 0.95


@pytest.mark.parametrize("run", [run for run in published_runs.runs() if run.memory], ids=lambda run: run.name)
def test_published_memory(run) -> None:
    """Within 5 %. That which recomputes half of its layers has 10 bytes of optimizer state a parameter, not 12."""
    found = run.training.memory(run.gradient_bytes)
    saved = found.optimizer / 6 if run.training.recomputed else 0.0
    assert found.total - saved == pytest.approx(run.memory, rel=0.05)


def test_own_rows_are_those_of_the_records() -> None:
    own = [run for run in published_runs.runs() if run.source.startswith("this project: ")]
    for run in own:
        folder = RESULTS / run.source.removeprefix("this project: ") / run.training.precision.name
        peak = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))["peak_memory"]
        assert run.memory == pytest.approx(peak["bytes"], rel=1e-3), run.name
        with gzip.open(folder / "metrics.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.strip()]
        steps = [line["step_time_s"] for line in lines if line.get("kind") == "train"][3:]
        tokens = run.training.global_batch * run.training.sequence / run.training.gpus
        assert tokens / np.median(steps) == pytest.approx(run.tokens, rel=0.01), run.name
    assert len(own) >= 5


def training(**changes) -> Training:
    shape = footprint.shape_of(find_model("llama31-405b").hf_config)
    kind, precision = gpu_table.kinds()["gb300"], find_precision("nvfp4")
    sizes = {"tensor": 4, "pipeline": 8, "virtual": 8}
    return replace(Training(shape, precision, kind, 256, 1, 1536, 8192, **sizes), **changes)


def seconds(**changes) -> float:
    return sum(step_time.parts(training(**changes)).values())


def stages(**changes) -> list[tuple[int, int]]:
    """Layers of each, quantized and in BF16."""
    found = training(**changes).stages
    assert all(len({stage[name] for name in PROJECTIONS}) == 1 for stage in found)
    return [(stage["qkv"], stage[step_time.ALL] - stage["qkv"]) for stage in found]


def test_each_layer_is_on_one_stage() -> None:
    assert stages() == [(15, 0), *[(16, 0)] * 6, (15, 0)]  # embedding and loss take a layer's place each
    assert stages(pipeline=9, virtual=7, gpus=288) == [(14, 0)] * 9
    assert stages(pipeline=1, virtual=1, kept=(1, 15)) == [(110, 16)]


def test_layers_in_bf16_slow_down_the_stage_that_has_them() -> None:
    """In one piece a stage the last stage has them all, and every other waits for it."""
    assert stages(virtual=1, kept=(0, 15))[-1] == (0, 15)
    spread = seconds(kept=(0, 15)) / seconds()
    assert 1.1 < spread < seconds(virtual=1, kept=(0, 15)) / seconds(virtual=1)


def test_parts_follow_from_sizes() -> None:
    parts = step_time.parts(training())
    assert parts["pipeline bubble"] * 192 * 8 / 7 == pytest.approx(
        sum(parts[name] for name in parts if name not in ("pipeline bubble", "data parallel", "optimizer and the rest"))
    )
    assert step_time.parts(training(global_batch=3072))["attention"] == pytest.approx(2 * parts["attention"])
    assert step_time.parts(training(sequence=16384))["attention"] == pytest.approx(4 * parts["attention"])
    assert step_time.parts(training(recomputed=126))["recomputation"] > 0 == parts["recomputation"]
    assert not step_time.parts(training(tensor=1))["tensor parallel"] and parts["tensor parallel"] > 0


def test_nothing_computes_faster_than_its_peak() -> None:
    for run in published_runs.runs():
        rate = step_time.product_rate(run.training, run.training.precision.name)
        assert rate < 1e12 * run.training.gpu.peak(run.training.precision.name)


def test_the_readme_says_what_it_misses_by() -> None:
    readme = " ".join((Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8").split())
    half, most = (math.ceil(100 * miss) for miss in published_runs.misses())
    said = f"half of those lie within {half} % of it, nine of ten within {most} %"
    kept = f"{len(published_runs.held_out())} of {len(published_runs.runs())} published speeds"
    assert kept in readme and said in readme
