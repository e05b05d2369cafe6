"""What a comparison leaves: `comparison.json`, and for people `report.html`, CSV, Markdown, a PNG of every plot.

    folder/
        comparison.json   for programs, `make gate` among them
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
from functools import partial
from pathlib import Path

from playbook import PROJECT
from playbook.common import file_sets
from playbook.compare import saved
from playbook.compare.model import KIND, Comparison
from playbook.compare.saved import FILE, MARKDOWN, PAGE, PLOTS, TABLE
from playbook.record.columns import Lines
from pretraining.errors import UsageError
from pretraining.record.run_folder import Run

_HEAD = 2048  # bytes, in which a file of ours says that it is


def check_target(folder: Path) -> None:
    """Raise UsageError before the work where a file in `folder` is not of an earlier report: none is overwritten."""
    saved.check_target(folder / FILE)
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
    """Write comparison and report, all or nothing, in place of an earlier one in that folder.

    `runs` are of each arm by name, in the order of `Arm.runs`. Returns the paths written: `comparison.json`,
    `report.html`, then the others.

    Raises as `check_target`, and OSError; what was there is then as it was.
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
            picture = f"{PLOTS}/{plot.name}.png"
            pictures[picture] = svg.png(plot.canvas, comparison.kind)
            titles.append((plot.title, picture))
    contents = {
        PAGE: page.render(comparison, runs, drawings, [FILE, TABLE, MARKDOWN, f"{PLOTS}/"]).encode(),
        TABLE: export.as_csv(comparison).encode(),
        MARKDOWN: export.as_markdown(comparison, titles).encode(),
        **pictures,
    }
    files = {name: partial(file_sets.write_synced, content=content) for name, content in contents.items()}
    earlier = [path for name in (FILE, PAGE, TABLE, MARKDOWN, f"{PLOTS}/*.png") for path in folder.glob(name)]
    file_sets.place(
        folder,
        files | {FILE: partial(saved.write, comparison)},
        [str(path.relative_to(folder)) for path in earlier],
    )
    return [folder / name for name in (FILE, *contents)]


def prepare_matplotlib() -> None:
    """Keep its list of fonts in the project, because a home may be read-only, and its remarks off the terminal."""
    os.environ.setdefault("MPLCONFIGDIR", str(PROJECT / ".cache" / "matplotlib"))
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
