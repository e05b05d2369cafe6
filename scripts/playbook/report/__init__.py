"""What a comparison leaves for people: `report.html`, CSV, Markdown, and a PNG of every plot.

    folder/
        report.html       everything, in one file that needs no network
        comparison.csv    one figure a row
        comparison.md     the same for an issue or a wiki
        plots/*.png       what report.html shows as SVG

The same comparison and runs give the same files, byte for byte.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from playbook import PROJECT
from playbook.comparison_file import MARKDOWN, PAGE, PLOTS, TABLE
from playbook.lines import Lines
from playbook.results import KIND, Comparison
from pretraining.errors import UsageError
from pretraining.record import Run

_HEAD = 2048  # bytes, in which a file of ours says that it is


def check_target(folder: Path) -> None:
    """Make sure that a report can be written to `folder`, before the work.

    Raises:
        UsageError: something there is not of an earlier report; it is never overwritten.
    """
    for path in (*(folder / name for name in (PAGE, TABLE, MARKDOWN)), *(folder / PLOTS).glob("*.png")):
        if path.is_symlink() or (path.exists() and not _is_ours(path)):
            raise UsageError(f"{path} exists and is not of a report; it is not overwritten. Choose another folder.")


def _is_ours(path: Path) -> bool:
    from playbook.report import export

    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return KIND.encode() in head or head.startswith(",".join(export.HEADER).encode())


def write(comparison: Comparison, runs: Mapping[str, Sequence[Run]], folder: Path) -> list[Path]:
    """Write the report. Plots of an earlier one that this one lacks are removed.

    Args:
        comparison: the result.
        runs: of each arm by name, in the order of `Arm.runs`.
        folder: made where it does not exist.

    Returns:
        The paths written, `report.html` first.

    Raises:
        UsageError: see `check_target`.
        OSError: it cannot be written.
    """
    prepare_matplotlib()
    from playbook.report import export, page, plots, svg  # half a second that a refused one need not wait

    check_target(folder)
    runs = {name: [replace(run, train=Lines.of(run.train)) for run in all_of] for name, all_of in runs.items()}
    drawings, pictures, titles = {}, {}, []
    with svg.style():
        for plot in plots.draw(comparison, runs):
            drawn = svg.svg(plot.canvas, plot.name, plot.title, plot.description)
            drawings[plot.name] = page.Drawing(drawn, plot.caption)
            pictures[folder / PLOTS / f"{plot.name}.png"] = svg.png(plot.canvas, comparison.kind)
            titles.append((plot.title, f"{PLOTS}/{plot.name}.png"))
    beside = ["comparison.json", TABLE, MARKDOWN, f"{PLOTS}/"]
    files = {
        folder / PAGE: page.render(comparison, runs, drawings, beside).encode(),
        folder / TABLE: export.as_csv(comparison).encode(),
        folder / MARKDOWN: export.as_markdown(comparison, titles).encode(),
        **pictures,
    }
    (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    write_files(files)
    for stale in set((folder / PLOTS).glob("*.png")) - files.keys():
        stale.unlink()
    return list(files)


def prepare_matplotlib() -> None:
    """Keep its list of fonts in the project, because a home may be read-only, and its remarks off the terminal."""
    os.environ.setdefault("MPLCONFIGDIR", str(PROJECT / ".cache" / "matplotlib"))
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def write_files(files: Mapping[Path, bytes]) -> None:
    """All or none: beside their places, synced, then moved into them. Raises OSError where one cannot be written."""
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in files}
    try:
        for path, content in files.items():
            with beside[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in files:
            beside[path].replace(path)
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)
