"""A picture of the errors: depth from left to right, projections below one another, a panel for each product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure as Canvas

from playbook.common import file_sets
from playbook.report import svg
from playbook.report.canvas import TOP, WIDTH, blank
from playbook.report.svg import INK, PAPER
from playbook.sensitivity.findings import PRODUCTS, Findings
from pretraining.record.run_folder import SENSITIVITY_KIND
from pretraining.request.recipe.kept_in_bf16 import PROJECTIONS

PICTURE, DRAWING = "sensitivity.png", "sensitivity.svg"
TITLE = "NVFP4's relative error against BF16, per cent"
_ROW, _BETWEEN, _BELOW, _LEFT, _SCALE = 20, 26, 34, 42, 62  # points
_NUMBERED = 8  # layers at most, whose cells hold their figure
_IN_BF16 = "#b4bac3"
_COLOURS = LinearSegmentedColormap.from_list("error", ["#e8f1f8", "#7fb2d9", "#0b4f8a", "#08264a"])


def write(found: Findings, folder: Path) -> list[Path]:
    """Draw it into the run folder, as PNG and SVG. Returns the paths. Raises OSError."""
    with svg.style():
        canvas = _draw(found)
        picture = svg.png(canvas, SENSITIVITY_KIND)
        element = svg.svg(canvas, "sensitivity", TITLE, _in_words(found))
    files = {PICTURE: picture, DRAWING: svg.as_file(element).encode()}
    for name, content in files.items():
        beside = folder / f".{name}"
        file_sets.write_synced(beside, content)
        beside.replace(folder / name)
    return [folder / name for name in files]


def _draw(found: Findings) -> Canvas:
    panel = _ROW * len(PROJECTIONS)
    height = TOP + (panel + _BETWEEN) * len(PRODUCTS) + _BELOW - 8
    canvas = blank(TITLE, height)
    grids = {name: _grid(found, name) for name in PRODUCTS}
    known = np.concatenate([grid[np.isfinite(grid)] for grid in grids.values()])
    scale = Normalize(float(known.min()), float(known.max()) if np.ptp(known) else float(known.min()) + 1)
    for at, (name, grid) in enumerate(grids.items()):
        top = TOP + (panel + _BETWEEN) * at + _BETWEEN - 6
        place = (_LEFT / WIDTH, 1 - (top + panel) / height, 1 - (_LEFT + _SCALE) / WIDTH, panel / height)
        axes = canvas.add_axes(place)
        mesh = axes.pcolormesh(grid, cmap=_COLOURS, norm=scale, edgecolors=PAPER, linewidth=min(0.8, 24 / found.layers))
        axes.set_facecolor(_IN_BF16)
        _label(axes, grid, scale, name, last=at == len(PRODUCTS) - 1)
    bar = canvas.add_axes(
        (1 - (_SCALE - 14) / WIDTH, place[1], 10 / WIDTH, 1 - (TOP + _BETWEEN - 6) / height - place[1])
    )
    canvas.colorbar(mesh, cax=bar).outline.set_visible(False)
    bar.grid(visible=False)
    return canvas


def _grid(found: Findings, product: str) -> np.ndarray:
    """Errors in per cent, by projection and layer; NaN where a layer is in BF16."""
    grid = np.full((len(PROJECTIONS), found.layers), np.nan)
    for cell in found.cells:
        error = cell.errors.get(product)
        grid[PROJECTIONS.index(cell.projection), cell.layer] = np.nan if error is None else 100 * error
    return grid


def _label(axes: Axes, grid: np.ndarray, scale: Normalize, name: str, *, last: bool) -> None:
    axes.set_title(name, loc="left", fontsize=11, color=INK, pad=4)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(PROJECTIONS)) + 0.5, PROJECTIONS)
    layers = grid.shape[1]
    step = next(each for each in (1, 2, 4, 8, 16, 32) if layers <= 12 * each or each == 32)
    shown = np.arange(0, layers, step)
    axes.set_xticks(shown + 0.5, shown if last else [""] * len(shown))
    axes.tick_params(length=0)
    if last:
        axes.set_xlabel("layer (grey: in BF16)" if np.isnan(grid).any() else "layer")
    for row, column in np.ndindex(grid.shape) if layers <= _NUMBERED else ():
        value = grid[row, column]
        colour = PAPER if np.isfinite(value) and scale(value) > 0.45 else INK
        text = f"{value:.1f}" if np.isfinite(value) else "BF16"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9, color=colour)


def _in_words(found: Findings) -> str:
    worst = max(found.measured, key=lambda cell: cell.error)
    return (
        f"Largest of {len(found.measured)} linear layers: {worst.projection} of layer {worst.layer}, "
        f"{100 * worst.error:.1f} % over its products"
    )
