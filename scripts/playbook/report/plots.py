"""All plots of a report, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterator

from playbook.compare.model import Comparison
from playbook.report import device_plots, outcome_plots, step_plots
from playbook.report.canvas import Plot, Runs, looks

DRAWN = (
    outcome_plots.speed,
    outcome_plots.repeats,
    outcome_plots.loss,
    outcome_plots.loss_gap,
    step_plots.distribution,
    step_plots.trace,
    device_plots.memory,
    device_plots.power,
)


def draw(comparison: Comparison, runs: Runs) -> Iterator[Plot]:
    """Every plot that there is data for. To be used inside `svg.style`."""
    arms = looks(comparison)
    for function in DRAWN:
        if plot := function(comparison, runs, arms):
            yield plot
