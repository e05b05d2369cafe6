"""All plots of a report, in the order of the page; here those of what a comparison comes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from playbook.compare.model import Comparison, Ratio
from playbook.compare.stats import Figure
from playbook.report import canvas as drawing
from playbook.report import curves, series, wording
from playbook.report.canvas import BOTTOM, LEFT, TOP, Look, Plot, Runs, numbers
from playbook.report.svg import BAND, INK
from pretraining.record.run_folder import Run


def draw(comparison: Comparison, runs: Runs) -> Iterator[Plot]:
    """Every plot that there is data for. To be used inside `svg.style`."""
    drawn = (repeats, loss, loss_gap, curves.distribution, curves.trace, curves.memory, curves.power)
    looks = drawing.looks(comparison)
    yield from speed(comparison, looks)
    for function in drawn:
        if plot := function(comparison, runs, looks):
            yield plot


def speed(comparison: Comparison, looks: Sequence[Look]) -> Iterator[Plot]:
    """Each arm's step-time ratio with its interval, beside 1; what is faster to the right has an axis of its own."""
    ratios = {each.candidate: each.step_time for each in comparison.contrasts if each.step_time}
    for at, what in enumerate(dict.fromkeys(each.what for each in ratios.values())):
        of = {name: ratio for name, ratio in ratios.items() if ratio.what == what}
        yield _ratios("speed" if at == 0 else what.replace(" ", "-"), what, of, looks)


def _ratios(name: str, what: str, ratios: Mapping[str, Ratio], looks: Sequence[Look]) -> Plot:
    """The ratios of one kind, by arm."""
    shown = [look for look in looks if look.arm.name in ratios]
    title = f"{what.capitalize()} against {looks[0].within(drawing.IN_TITLE)}"
    canvas, axes = drawing.single(title, height=TOP + BOTTOM + 38 * len(shown))
    axes.grid(visible=False)
    smallest = max(ratios[look.arm.name].smallest for look in shown)
    said = []
    for row, look in enumerate(shown):
        figure = ratios[look.arm.name].figure
        no_difference = [1 / (1 + smallest), 1 + smallest]
        axes.fill_between(no_difference, row - 0.22, row + 0.45, color=BAND, linewidth=0)
        axes.plot([1, 1], [row - 0.22, row + 0.45], color=INK, linewidth=1.2)
        _interval_bar(axes, figure, row, look)
        ends = wording.interval(figure)
        text = f"   {wording.value(figure)}{f'  ({ends})' if ends else ''}"
        said.append(f"{look.label}{text}")
        text = f"{look.within(drawing.IN_LINE - len(text))}{text}"
        axes.annotate(text, (0, row), xycoords=("axes fraction", "data"), xytext=(-LEFT + 3, 14),
                      textcoords="offset points", va="center")  # fmt: skip
    ends = [end for each in ratios.values() for end in (each.figure.low, each.figure.value, each.figure.high) if end]
    first, last = min(1 / (1 + smallest), *ends), max(1 + smallest, *ends)
    room = 0.06 * (last - first) or 0.02
    axes.set_xlim(first - room, last + room)
    axes.set_ylim(len(shown) - 0.55, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("times; 1 is no difference")
    numbers(axes.xaxis, 6)
    spreads = dict.fromkeys(each.figure.spread for each in ratios.values() if each.figure.spread)
    caption = f"Bar: {' or '.join(spreads)}." if spreads else "No interval is known."
    if smallest:
        caption += f" Shaded: too small to be called a difference here, under {100 * smallest:.2g} %."
    return Plot(name, canvas, title, "; ".join(said), caption)


def _interval_bar(axes: Axes, figure: Figure, y: float, look: Look) -> None:
    if figure.low is not None and figure.high is not None:
        axes.plot([figure.low, figure.high], [y, y], color=look.colour, linewidth=2)
        for end in (figure.low, figure.high):
            axes.plot([end, end], [y - 0.13, y + 0.13], color=look.colour, linewidth=2)
    axes.plot(figure.value, y, marker=look.marker, color=look.colour, markersize=7)


def repeats(comparison: Comparison, _runs: Runs, looks: Sequence[Look]) -> Plot | None:
    """The median step of every run, where an arm has several."""
    timed = [(look, [run.step_times for run in look.arm.runs if run.step_times]) for look in looks]
    timed = [(look, times) for look, times in timed if times]
    most = max((len(times) for _, times in timed), default=0)
    if most < 2:
        return None
    title = "Step time of each run"
    canvas, axes = drawing.panels(title, [look for look, _ in timed], height=14 * most + 6, below=24)
    said = []
    for panel, (look, times) in zip(axes, timed, strict=True):
        scale, unit = drawing.time_unit(times[0].median)
        for row, each in enumerate(times):
            ends = [each.first_quartile * scale, each.third_quartile * scale]
            panel.plot(ends, [row, row], color=look.colour, linewidth=4, alpha=0.4, solid_capstyle="butt")
            panel.plot(each.median * scale, row, marker=look.marker, color=look.colour, markersize=5)
        panel.set_ylim(len(times) - 0.4, -0.6)
        panel.set_yticks(range(len(times)), [f"run {row + 1}" for row in range(len(times))])
        panel.spines["left"].set_visible(False)
        numbers(panel.xaxis, 5)
        drawing.panel_title(panel, look, unit)
        said.append(f"{look.label}: {', '.join(wording.number(each.median * scale) for each in times)} {unit}")
    own = "" if drawing.same_axis_where_near(axes) else " Each panel has its own axis."
    caption = f"Mark: median; bar: interquartile range within the run. Runs of an arm in their order.{own}"
    return Plot("repeats", canvas, title, "; ".join(said), caption)


def loss(comparison: Comparison, runs: Runs, looks: Sequence[Look]) -> Plot | None:
    """Training loss of every run, raw and smoothed, and its validations."""
    shown = [look for look in looks if any(_knows_loss(run) for run in runs[look.arm.name])]
    if not shown:
        return None
    tokens = _tokens_a_step(runs, shown)
    title = "Training loss, nats a token"
    canvas, axes = drawing.single(title, height=270, legend=shown)
    windows, validated, said = set(), False, []
    for look in reversed(shown):  # the dashed baseline on top, so that two equal curves both show
        for run in runs[look.arm.name]:
            scale = tokens.get(look.arm.name, 1)
            x, y = series.column(run.train, "iteration") * scale, series.column(run.train, "loss")
            windows.add(window := series.smoothing_window(len(y)))
            drawing.raw(axes, x, y, look, faint=window > 1)
            drawing.thinned_line(axes, x, smooth := series.smooth(y, window), look)
            found = [each for each in run.evaluations if each.get("split") == "validation"]
            validated = validated or bool(found)
            axes.plot(series.column(found, "iteration") * scale, series.column(found, "loss"), color=look.colour,
                      linestyle="none", marker=look.marker, markersize=6, markerfacecolor="none")  # fmt: skip
        known = smooth[np.isfinite(smooth)]
        said.append(f"{look.label} ends at {known[-1]:.4f}" if len(known) else f"{look.label} has no loss")
    axes.set_xlabel("tokens" if tokens else "iteration")
    numbers(axes.xaxis, 5)
    numbers(axes.yaxis, 6)
    marks = " Open marks: validation." if validated else ""
    caption = f"{_smoothing(windows)}{marks} {_same_tokens(comparison, tokens)}"
    return Plot("loss", canvas, title, "; ".join(reversed(said)), caption)


def _knows_loss(run: Run) -> bool:
    return bool(np.isfinite(series.column(run.train, "loss")).any())


def _tokens_a_step(runs: Runs, shown: Sequence[Look]) -> dict[str, int]:
    """Tokens of an iteration by arm where they differ, which only a forced comparison has; else nothing."""
    sizes = {look.arm.name: runs[look.arm.name][0].environment.get("tokens_per_step") for look in shown}
    return sizes if None not in sizes.values() and len(set(sizes.values())) > 1 else {}


def _same_tokens(comparison: Comparison, tokens: dict[str, int]) -> str:
    if tokens:
        return "The axis is tokens, because an iteration of one holds more than of another."
    if comparison.not_known:
        return "Which tokens each read was not checked."
    if comparison.forced:
        return "Forced: whether both read the same tokens is not known."
    return "Iteration for iteration, all runs read the same tokens."


def _smoothing(windows: set[int]) -> str:
    """What is faint, and over how many iterations the strong line is a mean."""
    over = wording.joined([f"{each:,}" for each in sorted(windows)])
    return "Every iteration." if over == "1" else f"Faint: every iteration; line: mean over {over} of them."


def loss_gap(comparison: Comparison, runs: Runs, looks: Sequence[Look]) -> Plot | None:
    """Every arm's relative gap to the baseline, iteration by iteration; none where a gap means nothing."""
    base, *others = looks
    meant = {each.candidate for each in comparison.contrasts if each.training_loss_gap}
    others = [look for look in others if look.arm.name in meant]
    gaps = [(look, *series.loss_gap(runs[look.arm.name], runs[base.arm.name])) for look in others]
    gaps = [(look, x, gap) for look, x, gap in gaps if np.isfinite(gap).any()]
    if not gaps or _tokens_a_step(runs, looks):
        return None
    title = f"Loss gap to {base.within(drawing.IN_TITLE)}, per cent"
    canvas, axes = drawing.single(title, height=270, legend=[look for look, _, _ in gaps])
    contrasts = {each.candidate: each for each in comparison.contrasts}
    axes.axhline(0, color=INK, linewidth=1.2)
    windows, said = set(), []
    for at, (look, x, gap) in enumerate(gaps):
        windows.add(window := series.smoothing_window(len(gap)))
        drawing.raw(axes, x, gap, look, faint=window > 1)
        drawing.thinned_line(axes, x, series.smooth(gap, window), look)
        if figure := contrasts[look.arm.name].training_loss_gap:
            _end_mark(axes, x[-1] + (x[-1] - x[0]) * (0.03 + 0.035 * at), figure, look)
            said.append(f"{look.label}: {wording.value(figure, signed=True)} over the last tenth")
    axes.set_xlabel("iteration")
    numbers(axes.xaxis, 5)
    beyond = _zoom(axes, gaps, [contrasts[look.arm.name].training_loss_gap for look, _, _ in gaps])
    numbers(axes.yaxis, 6)
    caption = _smoothing(windows)
    if beyond:
        caption += " The axis is that of the second half: the first iterations lie beyond it."
    if said:
        caption += " Right of the curve: the last tenth, with its interval over seeds where they are enough."
    if max(len(runs[look.arm.name]) for look in looks) > 1:
        caption += " Runs of an arm are averaged first."
    return Plot("loss-gap", canvas, title, "; ".join(said), caption)


def _zoom(axes: Axes, gaps: Sequence[tuple[Look, series.Array, series.Array]], ends: Sequence[Figure | None]) -> bool:
    """Set the axis by the second half of the curves and the gaps that are told. Returns whether that cuts any off."""
    seen = [0.0] + [end for each in ends if each for end in (each.low, each.value, each.high) if end is not None]
    for _, _, gap in gaps:
        last = gap[len(gap) // 2 :]
        if (known := last[np.isfinite(last)]).size:
            seen += np.quantile(known, [0.01, 0.99]).tolist()
    room = 0.12 * (max(seen) - min(seen)) or 1.0
    low, high = min(seen) - room, max(seen) + room
    axes.set_ylim(low, high)
    return any(bool((gap < low).any() or (gap > high).any()) for _, _, gap in gaps)


def _end_mark(axes: Axes, x: float, figure: Figure, look: Look) -> None:
    if figure.low is not None and figure.high is not None:
        axes.plot([x, x], [figure.low, figure.high], color=look.colour, linewidth=2)
    axes.plot(x, figure.value, marker=look.marker, color=look.colour, markersize=5)
