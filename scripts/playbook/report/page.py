"""`report.html`: one file with everything in it, no script, no network; a template filled from the comparison."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from playbook.compare.model import Arm, Comparison, RunResult
from playbook.compare.stats import Figure
from playbook.report import wording
from playbook.report.canvas import Runs, looks
from playbook.report.svg import VARIABLES
from pretraining.record.run_folder import Run
from pretraining.request.recipe.nvfp4_recipe import TITLES
from pretraining.units import gigabytes

HERE = Path(__file__).parent
_TEMPLATES = Environment(
    loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_GROUPS = ("Hardware", "Software", "Precision", "Work")
_HARDWARE = ("host", "device", "processes")
GROUPS = (
    ("Loss", ("loss", "loss-gap")),
    ("Step times", ("step-times", "step-trace")),
    ("Memory and power", ("memory", "power")),
)


@dataclass(frozen=True)
class Drawing:
    """A plot in the page: an `<svg>` element and the words below it."""

    svg: str
    caption: str


def render(comparison: Comparison, runs: Runs, drawings: Mapping[str, Drawing], beside: list[str]) -> str:
    """The page.

    Args:
        runs: of each arm by name, in the order of `Arm.runs`.
        drawings: by name; see `canvas.Plot`.
        beside: the names of the files with the same data.
    """
    page = _TEMPLATES.get_template("page.html.j2").render(
        folderless=folderless,
        result=comparison,
        title=title(comparison),
        model=_model(runs),
        created=comparison.created.replace("T", " ").replace("Z", " UTC"),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        wording=wording,
        names={arm.name: wording.name(arm) for arm in comparison.arms},
        colours={look.arm.name: VARIABLES[look.colour] for look in looks(comparison)},
        plots=drawings,
        groups=[(heading, drawn) for heading, drawn in GROUPS if any(name in drawings for name in drawn)],
        contrasts=[(contrast, wording.against(contrast)) for contrast in comparison.contrasts],
        rows=wording.rows(comparison),
        peaks=wording.mfu_peaks(comparison),
        warnings=wording.warnings(comparison),
        leading=[name for name in drawings if not any(name in drawn for _, drawn in GROUPS)],
        runs=_runs(comparison.arms, runs),
        environment=environment(comparison, runs),
        commands=commands(comparison, runs),
        beside=beside,
        void=[found for found in comparison.differences if found.void],
    )
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", page)  # what a terminal would take for orders


def title(comparison: Comparison) -> str:
    """ "nvfp4 against bf16"; with the arms' letters where nothing else tells them apart."""
    called = {arm.name: arm.label for arm in comparison.arms}
    if len({*called.values()}) < len(called):
        called = {arm.name: wording.name(arm) for arm in comparison.arms}
    base = called.pop(comparison.baseline)
    return f"{', '.join(called.values())} against {base}"


def _model(runs: Runs) -> str:
    models = dict.fromkeys(str(run.environment.get("model") or "") for all_of in runs.values() for run in all_of)
    return ", ".join(filter(None, models))


def _runs(arms: list[Arm], runs: Runs) -> list[tuple[str, RunResult, dict[str, Figure], str]]:
    """Every run with what it is called, its step times and when it started, in turn where all tell that."""
    found = [
        (arm.run_label(index), result, _step_times(result), str(run.environment.get("started") or ""))
        for arm in arms
        for index, (result, run) in enumerate(zip(arm.runs, runs[arm.name], strict=True))
    ]
    return sorted(found, key=lambda each: each[3]) if all(started for *_, started in found) else found


def _step_times(run: RunResult) -> dict[str, Figure]:
    if not (found := run.step_times):
        return {}
    quartiles = Figure(found.median, "s", found.first_quartile, found.third_quartile)
    return {"median": quartiles, "range": Figure(found.median, "s", found.minimum, found.maximum)}


def environment(comparison: Comparison, runs: Runs) -> dict[str, dict[str, list[str]]]:
    """The facts by group and name, what each arm has in words; runs of an arm that differ stand behind one another."""
    found: dict[str, dict[str, list[str]]] = {group: {} for group in _GROUPS}
    for at, arm in enumerate(comparison.arms):
        for run in runs[arm.name]:
            for group, name, value in _facts(run):
                cells = found[group].setdefault(name, [""] * len(comparison.arms))
                if value not in cells[at].split(" / "):
                    cells[at] = f"{cells[at]} / {value}" if cells[at] else value
    return {group: facts for group, facts in found.items() if facts}


def commands(comparison: Comparison, runs: Runs) -> list[tuple[str, str]]:
    """What the first run of each arm was started with, where its plan says so."""
    found = []
    for arm in comparison.arms:
        words = runs[arm.name][0].plan.get("command")
        if isinstance(words, list) and words:
            found.append((wording.name(arm), shlex.join(folderless(str(word)) for word in words)))
    return found


def folderless(text: str) -> str:
    """A path, alone or after = or a comma, by its last part: the page is sent to others, and folders name people."""
    return re.sub(r"(?:(?<=^)|(?<=[=,]))/(?:[^/=,]+/)*(?=[^/=,])", "", text.rstrip("/"))


def _facts(run: Run) -> Iterator[tuple[str, str, str]]:
    """Group, name and value of all that a record says."""
    recorded, plan = run.environment, run.plan
    for name in _HARDWARE:
        yield from _leaves("Hardware", name, recorded.get(name))
    yield from _leaves("Software", "", recorded.get("versions"))
    yield from _leaves("Software", "image", plan.get("image"))
    yield from _leaves("Software", "git commit of the playbook", plan.get("git_commit"))
    yield from _leaves("Precision", "", run.precision)
    shown = {
        *_HARDWARE,
        *(recorded.get("device") or {}),
        *(name.replace("-", "_") for name in recorded.get("versions") or {}),
    }
    for name, value in run.parity.items():
        if name not in shown:
            yield from _leaves("Work", name, value)
    for name in ("tokens_per_step", "flops_per_token", "mock_data", "weights_from", "finetuned", "resumed_from"):
        yield from _leaves("Work", name, recorded.get(name))


def _leaves(group: str, name: str, value: Any) -> Iterator[tuple[str, str, str]]:
    """A nested value as one fact for each leaf; nothing of None."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(group, TITLES.get(key, f"{name} {key}".strip()), inner)
    elif value is not None:
        is_size = name.endswith("_bytes") and isinstance(value, int | float)
        words = gigabytes(value, 2) if is_size else _words(value)
        yield group, name.removesuffix("_bytes").replace("_", " "), words


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_words, value))
    return folderless(str(value))
