"""`report.html`: one file with everything in it, no script, no network; a template filled from the comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from playbook.compare.model import Arm, Comparison, RunResult
from playbook.compare.stats import Figure
from playbook.report import page_facts, wording
from playbook.report.canvas import Runs, looks
from playbook.report.svg import VARIABLES

HERE = Path(__file__).parent
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


@dataclass(frozen=True)
class StepTimes:
    """A run's step times as figures."""

    median: Figure
    range: Figure


def render(comparison: Comparison, runs: Runs, drawings: Mapping[str, Drawing], beside: list[str]) -> str:
    """The page.

    Args:
        comparison: the result.
        runs: of each arm by name, in the order of `Arm.runs`.
        drawings: by name; see `canvas.Plot`.
        beside: the names of the files with the same data.
    """
    page = _template().render(
        folderless=page_facts.folderless,
        result=comparison,
        title=title(comparison),
        model=_model(runs),
        created=comparison.created.replace("T", " ").replace("Z", " UTC"),
        css=Markup(_css()),
        wording=wording,
        names={arm.name: wording.name(arm) for arm in comparison.arms},
        colours={look.arm.name: VARIABLES[look.colour] for look in looks(comparison)},
        plots={name: Drawing(Markup(each.svg), each.caption) for name, each in drawings.items()},
        groups=[(heading, drawn) for heading, drawn in GROUPS if any(name in drawings for name in drawn)],
        contrasts=[(contrast, wording.against(contrast)) for contrast in comparison.contrasts],
        rows=wording.rows(comparison),
        peaks=wording.mfu_peaks(comparison),
        warnings=wording.warnings(comparison),
        runs=list(_runs(comparison.arms)),
        environment=page_facts.table(comparison, runs),
        commands=page_facts.commands(comparison, runs),
        beside=beside,
        void=[found for found in comparison.differences if found.void],
    )
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", page)  # what a terminal would take for orders


def title(comparison: Comparison) -> str:
    """ "nvfp4 against bf16"."""
    others = [arm.label for arm in comparison.arms if arm.name != comparison.baseline]
    return f"{', '.join(dict.fromkeys(others))} against {comparison.arm(comparison.baseline).label}"


def _model(runs: Runs) -> str:
    models = dict.fromkeys(str(run.environment.get("model") or "") for all_of in runs.values() for run in all_of)
    return ", ".join(filter(None, models))


def _runs(arms: list[Arm]) -> Iterator[tuple[str, RunResult, StepTimes | None]]:
    for arm in arms:
        for index, run in enumerate(arm.runs):
            yield arm.run_label(index), run, _step_times(run)


def _step_times(run: RunResult) -> StepTimes | None:
    found = run.step_times
    if not found:
        return None
    middle = Figure(found.median, "s", found.first_quartile, found.third_quartile)
    return StepTimes(middle, Figure(found.median, "s", found.minimum, found.maximum))


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")


@cache
def _css() -> str:
    return (HERE / "page.css").read_text(encoding="utf-8")
