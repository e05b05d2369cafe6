"""What all plots share: their size, how an arm looks, and how a line of any length is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Affine2D, ScaledTranslation

from playbook.compare.model import Arm, Comparison
from playbook.report import series, wording
from playbook.report.series import Array
from playbook.report.svg import ARMS, DASHES, INK, MARKERS, POINTS
from pretraining.record.run_folder import Run

WIDTH = 400  # points; a phone shows it at nine tenths of that, a desktop two side by side
LEFT, RIGHT, TOP, BOTTOM = 50, 18, 26, 40
LEGEND_LINE = 17
# How many characters there is room for: of a name in a legend, in a plot's title behind its words, in a line of text.
IN_LEGEND, IN_TITLE, IN_LINE = 26, 26, 61
PANEL_TITLE = 18
MOST_SQUEEZED = 4  # times as wide as a panel needs
FAINT = 0.3  # the opacity of what is behind a smoothed line

Runs = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class Plot:
    """A drawing; its description has the figures in words, its caption how it was made and how to read it."""

    name: str
    canvas: Canvas
    title: str
    description: str
    caption: str


@dataclass(frozen=True)
class Look:
    """An arm and how it is told from the others, without colour too."""

    arm: Arm
    colour: str
    dashes: Any
    marker: str

    @property
    def label(self) -> str:
        """The arm's name."""
        return wording.name(self.arm)

    def within(self, room: int) -> str:
        """The name where it is drawn: with so little of a long setting that it has `room` characters."""
        setting, least = self.arm.setting, len(wording.name(replace(self.arm, setting="")))
        if not setting or len(self.label) <= room:
            return self.label
        kept = setting[: max(0, room - least - 2)].rstrip()
        return wording.name(replace(self.arm, setting=f"{kept}\N{HORIZONTAL ELLIPSIS}"))


Looks = Sequence[Look]


def looks(comparison: Comparison) -> list[Look]:
    """The look of every arm, the baseline first."""
    arms = sorted(comparison.arms, key=lambda arm: arm.name != comparison.baseline)
    found = []
    for at, arm in enumerate(arms):
        other = at + at // len(ARMS)  # a colour that comes again has other dashes
        found.append(Look(arm, ARMS[at % len(ARMS)], DASHES[other % len(DASHES)], MARKERS[other % len(MARKERS)]))
    return found


def single(title: str, *, height: float, legend: Sequence[Look] = ()) -> tuple[Canvas, Axes]:
    """A canvas with one plot, `height` points tall; its legend, two arms a line, stands below the title."""
    top = TOP + LEGEND_LINE * ((len(legend) + 1) // 2)
    canvas = blank(title, height)
    axes = canvas.add_axes((LEFT / WIDTH, BOTTOM / height, 1 - (LEFT + RIGHT) / WIDTH, 1 - (top + BOTTOM) / height))
    if legend:
        lines = [Line2D([], [], color=look.colour, linestyle=look.dashes, linewidth=1.8) for look in legend]
        canvas.legend(
            lines, [look.within(IN_LEGEND) for look in legend], ncols=2, loc="upper left",
            bbox_to_anchor=(0.0, 1 - 21 / height), borderaxespad=0, columnspacing=1.5,
        )  # fmt: skip
    return canvas, axes


def panels(title: str, shown: Sequence[Look], *, height: float, below: float = BOTTOM) -> tuple[Canvas, list[Axes]]:
    """A canvas with a panel of `height` points for each arm, one below the other."""
    pitch = height + PANEL_TITLE + below
    whole = TOP + pitch * len(shown)
    canvas = blank(title, whole)
    return canvas, [
        canvas.add_axes(
            (LEFT / WIDTH, 1 - (TOP + pitch * (at + 1) - below) / whole, 1 - (LEFT + RIGHT) / WIDTH, height / whole)
        )
        for at in range(len(shown))
    ]


def blank(title: str, height: float) -> Canvas:
    """A canvas with nothing but its title, `height` points tall."""
    canvas = Canvas(figsize=(WIDTH / POINTS, height / POINTS))
    canvas.text(1 / WIDTH, 1 - 14 / height, title, color=INK, fontsize=11.5, fontweight="bold")
    return canvas


def panel_title(axes: Axes, look: Look, text: str) -> None:
    """Name a panel's arm, in ink, behind a dash in its colour."""
    name = look.within(IN_LINE - len(text))
    axes.annotate(
        f"{name}: {text}", (0, 1), xycoords="axes fraction", xytext=(-LEFT + 27, 5), textcoords="offset points"
    )
    dash = Line2D([-LEFT + 1, -LEFT + 23], [9, 9], color=look.colour, linestyle=look.dashes, linewidth=2, clip_on=False)
    points = Affine2D().scale(1 / POINTS) + axes.get_figure().dpi_scale_trans  # from the panel's upper left corner
    axes.add_artist(dash).set_transform(points + ScaledTranslation(0, 1, axes.transAxes))


def same_axis_where_near(axes: Sequence[Axes]) -> bool:
    """Give all panels one horizontal axis, unless that would squeeze what each shows. Returns whether it did."""
    lows, highs = zip(*(each.get_xlim() for each in axes), strict=True)
    if max(highs) - min(lows) > MOST_SQUEEZED * min(high - low for low, high in zip(lows, highs, strict=True)):
        return False
    for each in axes:
        each.set_xlim(min(lows), max(highs))
    return True


def numbers(axis: Axis, most: int) -> None:
    """At most `most` ticks, thousands with commas."""
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _tick(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value:,.6g}".replace("-", "−") if abs(value) < 1e5 else f"{value:,.0f}".replace("-", "−")


def raw(axes: Axes, x: Array, y: Array, look: Look, *, faint: bool) -> bool:
    """Draw every value, or where pixels are fewer the extremes under each. Returns whether it was the latter."""
    if len(x) <= 2 * series.PIXELS:
        axes.plot(x, y, color=look.colour, linewidth=0.9, alpha=FAINT + 0.1 if faint else 0.9)
        return False
    axes.fill_between(*series.envelope(x, y), color=look.colour, alpha=FAINT, linewidth=0)
    return True


def line(axes: Axes, x: Array, y: Array, look: Look) -> None:
    """A line in the arm's look."""
    axes.plot(x, y, color=look.colour, linestyle=look.dashes, linewidth=1.6)


def time_unit(seconds: float) -> tuple[float, str]:
    """What to multiply seconds by for a step time of this size, and the unit."""
    return (1, "s") if seconds >= 1 else (1000, "ms")


def thinned_line(axes: Axes, x: Array, y: Array, look: Look) -> None:
    """A smooth line in the arm's look, at no more points than pixels."""
    kept = series.thinned(len(x))
    line(axes, x[kept], y[kept], look)
