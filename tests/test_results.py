"""The records in assets/results say what overview.md says."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from playbook import ablation, ablation_file, comparison, loading
from playbook.results import Arm, Comparison

PAIR = Path("assets/results/h200-llama3-8b-8-layers")
ABLATED = Path("assets/results/cpu-tiny-ablation")


@pytest.fixture(scope="module")
def compared(project: Path) -> Comparison:
    """The pair, compared without force."""
    return comparison.compare([[loading.load(project / PAIR / name)] for name in ("bf16", "nvfp4")])


def row(overview: str, name: str) -> list[str]:
    """The cells of the table's row."""
    line = next(line for line in overview.partition(str(PAIR))[2].splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_figures_of_the_overview(project: Path, compared: Comparison) -> None:
    overview = (project / "overview.md").read_text(encoding="utf-8")

    def said(arm: Arm) -> tuple[str, str, str]:
        step, rate, memory = arm.step_time, arm.tokens_per_second, arm.runs[0].memory
        gb = ", ".join(f"{memory[kind].value:.1f}" for kind in ("device used", "torch allocated", "torch reserved"))
        return (
            f"{1000 * step.value:,.0f} ms ({1000 * step.low:,.0f} to {1000 * step.high:,.0f})",
            f"{rate.value:,.0f} ({rate.low:,.0f} to {rate.high:,.0f})",
            f"{gb} GB",
        )

    rows = [row(overview, name) for name in ("step", "tokens/s", "peak memory: device, allocated, reserved")]
    for column, arm in enumerate(compared.arms):
        assert tuple(cells[column] for cells in rows) == said(arm)
    energy = row(overview, "energy a step, a token")
    assert energy == [
        f"{arm.energy_per_step.value:,.0f} J, {1000 * arm.joules_per_token.value:.1f} mJ" for arm in compared.arms
    ]
    ratio = compared.contrasts[0].step_time.figure
    assert f"{ratio.value:.3f} times BF16's (95 % interval {ratio.low:.3f} to {ratio.high:.3f}" in overview


@pytest.fixture(scope="module")
def ablated(project: Path) -> tuple[dict, ablation.Ablation]:
    """What the kept ablation says, and the same computed anew from its runs."""
    said = json.loads((project / ABLATED / ablation_file.FILE).read_text(encoding="utf-8"))
    variants = {each.name: each for each in ablation.variants(4, 0, 1)}
    found: dict[ablation.Variant, list[ablation.Trained]] = {}
    bases = {}
    for row in said["rows"]:
        for run in row["runs"]:
            loaded, base = loading.load(project / ABLATED / run["run"]), bases.get(run["seed"])
            bases.setdefault(run["seed"], loaded)
            found.setdefault(variants[row["name"]], []).append(ablation.trained(run["seed"], loaded, base))
    return said, ablation.build(found, bases[said["seeds"][0]], 1, created="", reproduce="")


def test_the_ablation_is_what_its_runs_say(project: Path, ablated) -> None:
    said, anew = ablated
    assert [row["name"] for row in said["rows"]] == [each.name for each in ablation.variants(4, 0, 1)]
    assert said["verdict"] == anew.verdict and said["seeds"] == anew.seeds
    for row, again in zip(said["rows"], asdict(anew)["rows"], strict=True):
        assert [row[name] for name in ("to_bf16", "to_whole")] == [again[name] for name in ("to_bf16", "to_whole")]
        assert (row["gap"] or {}).get("value") == pytest.approx((again["gap"] or {}).get("value"))
        for run in row["runs"]:
            kept = loading.load(project / ABLATED / run["run"])
            ingredients = {name: name != row["without"] for name in ("rht", "stochastic", "two_d")}
            assert kept.parity["seed"] == run["seed"]
            assert kept.precision.get("ingredients", ingredients) == ingredients
            assert kept.precision["bf16_tail_layers"] == (row["bf16_tail_layers"] or 0)


def test_the_ablation_of_the_overview(project: Path, ablated) -> None:
    overview = (project / "overview.md").read_text(encoding="utf-8").partition(str(ABLATED))[2]
    (header, *rows) = ablation.table(ablated[1])
    for cells in rows:
        line = next(line for line in overview.splitlines() if line.startswith(f"| {cells[0]} |"))
        shown = [cell.strip() for cell in line.split("|")[2:-1]]
        assert shown[:5] == cells[1:6], header


def test_no_record_names_a_machine(project: Path) -> None:
    for path in (project / "assets" / "results").rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        assert "GPU-" not in text and '"/' not in text, path
