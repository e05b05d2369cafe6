"""What every arm ran on and with, side by side, from the records of its runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from playbook.compare.model import Comparison
from playbook.report import wording
from playbook.report.canvas import Runs
from pretraining.record.run_folder import Run
from pretraining.request.nvfp4_recipe import TITLES

_GROUPS = ("Hardware", "Software", "Precision", "Work")
_HARDWARE = ("host", "device", "processes")


@dataclass(frozen=True)
class Fact:
    """One line of the table: what each arm has, in words; runs of an arm that differ stand behind one another."""

    name: str
    values: list[str]

    @property
    def is_equal(self) -> bool:
        """Whether all arms have the same."""
        return len(set(self.values)) == 1


def table(comparison: Comparison, runs: Runs) -> dict[str, list[Fact]]:
    """The facts by group; a group that nothing is known of is left out."""
    found: dict[str, dict[str, list[str]]] = {group: {} for group in _GROUPS}
    for at, arm in enumerate(comparison.arms):
        for run in runs[arm.name]:
            for group, name, value in _facts(run):
                cells = found[group].setdefault(name, [""] * len(comparison.arms))
                if value not in cells[at].split(" / "):
                    cells[at] = f"{cells[at]} / {value}" if cells[at] else value
    groups = {
        group: [Fact(name, [cell or wording.NO_FIGURE for cell in cells]) for name, cells in facts.items()]
        for group, facts in found.items()
    }
    return {group: facts for group, facts in groups.items() if facts}


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
    environment, plan = run.environment, run.plan
    for name in _HARDWARE:
        yield from _leaves("Hardware", name, environment.get(name))
    yield from _leaves("Software", "", environment.get("versions"))
    yield from _leaves("Software", "image", plan.get("image"))
    yield from _leaves("Software", "git commit of the playbook", plan.get("git_commit"))
    yield from _leaves("Precision", "", run.precision)
    shown = {
        *_HARDWARE,
        *(environment.get("device") or {}),
        *(name.replace("-", "_") for name in environment.get("versions") or {}),
    }
    for name, value in run.parity.items():
        if name not in shown:
            yield from _leaves("Work", name, value)
    for name in ("tokens_per_step", "flops_per_token", "mock_data", "weights_from", "finetuned", "resumed_from"):
        yield from _leaves("Work", name, environment.get(name))


def _leaves(group: str, name: str, value: Any) -> Iterator[tuple[str, str, str]]:
    """A nested value as one fact for each leaf; nothing of None."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(group, TITLES.get(key, f"{name} {key}".strip()), inner)
    elif value is not None:
        is_size = name.endswith("_bytes") and isinstance(value, int | float)
        words = f"{value / 1e9:,.2f} GB" if is_size else _words(value)
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
