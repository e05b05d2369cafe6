"""Tables for a terminal. Rich is imported late: a dry run, which prints none, has the standard library alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_TRAILING = re.compile(r" +((?:\x1b\[[\d;]*m)*)$", re.MULTILINE)


def empty_table() -> Table:
    """A table without columns, as all of this project look."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)


def print_table(rows: Sequence[Sequence[str]], *, left: int, styles: Sequence[str] = ()) -> None:
    """Print a table whose cells are whole: what is wider than the terminal goes on in its next line.

    The first row has the titles; `left` columns are flush left. `styles` are Rich's, of the other rows.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.text import Text

    table = empty_table()
    table.padding = (0, 1, 0, 0)
    titles, *others = rows
    for at, title in enumerate(titles):
        table.add_column(Text(title), justify="left" if at < left else "right", no_wrap=True)
    for row, style in zip(others, styles or [""] * len(others), strict=True):
        table.add_row(*(Text(cell, style=style) for cell in row))
    console = Console(highlight=False)
    whole = Measurement.get(console, console.options.update(width=10_000), table).maximum
    console.width = max(console.width, whole)
    with console.capture() as captured:
        console.print(table)
    print(_TRAILING.sub(r"\1", captured.get()), end="")
