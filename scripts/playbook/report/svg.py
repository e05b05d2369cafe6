"""From a matplotlib figure to files: a PNG, and an SVG that takes part in a page.

In the page an SVG inherits the font, and its colours are CSS variables, so a dark scheme recolours it. Both are the
same byte for byte for the same figure: nothing in them is a date, a random id or the user's matplotlib settings.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

POINTS = 72  # an inch
PNG_DPI = 180

_STYLE = matplotlib.rc_params_from_file(Path(__file__).with_name("plots.mplstyle"), use_default_template=False)
INK, MUTED, GRID, PAPER = map(_STYLE.get, ("text.color", "axes.edgecolor", "grid.color", "figure.facecolor"))
BAND = "#eef1f5"
# Okabe and Ito's palette, which colour-blind readers tell apart, after a neutral for the baseline.
ARMS = ("#4f5b6b", "#0072b2", "#d55e00", "#009e73", "#a8518a", "#8a6d00")
DASHES = ((0, (5, 2)), "solid", (0, (7, 2, 1.5, 2)), (0, (1.5, 1.5)), (0, (9, 3)), (0, (4, 1.5, 1, 1.5, 1, 1.5)))
MARKERS = ("s", "o", "^", "D", "v", "P")

VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", BAND: "band", PAPER: "paper"} | {
    colour: f"arm-{index}" for index, colour in enumerate(ARMS)
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib as it comes, with the report's style, whatever the user's own settings are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name; the page has it in the reader's own font
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def png(figure: Figure, kind: str) -> bytes:
    """The figure as a PNG, on white; `kind` is left in it as the program that made it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=PNG_DPI, metadata={"Software": kind})
    return file.getvalue()


def svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure, made inside `style`, as an `<svg>` element for an HTML page.

    Its ids start with `name`, unique in the page; a screen reader says title and description in its place.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    width, height = (POINTS * size for size in figure.get_size_inches())
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = _own_ids(re.sub(r"<[^>]*>", lambda found: _plain(found[0]), body), name)
    body = re.sub(r"\s*\n\s*", "\n", body)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>'
        f"{body}</svg>"
    )


def as_file(element: str) -> str:
    """An `<svg>` element of `svg` as a file: on white, with the colours and the font that a page gives it."""
    x, y, width, height = re.search(r'viewBox="([^"]*)"', element)[1].split()
    colours = {name: colour for colour, name in VARIABLES.items()}
    element = re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], element)
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    paper = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{PAPER}"/>'
    opening, rest = element.removeprefix("<svg").split("</desc>", 1)
    size = f'width="{width}" height="{height}" font-family="system-ui, sans-serif"'
    return f"<svg {spaces} {size}{opening}</desc>{paper}{rest}\n"


def _plain(tag: str) -> str:
    """A tag with the page's font and colours, without what changes nothing; a hundredth of a point is enough."""
    tag = re.sub(r" ?font-family: [^;\"]*;?| transform=\"rotate\(-0 [^\"]*\"|stroke-linecap: square;? ?", "", tag)
    for colour, name in VARIABLES.items():
        tag = tag.replace(colour, f"var(--{name})")
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", tag)


def _own_ids(body: str, name: str) -> str:
    """Only ids that something refers to, each with the name in front: a page holds several of these."""
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', body))

    def rename(found: re.Match[str]) -> str:
        return f' id="{name}-{found[1]}"' if found[1] in used else ""

    body = re.sub(r' id="([^"]*)"', rename, body)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", body)
