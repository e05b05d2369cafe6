"""What an ablation leaves for people and for programs: `ablation.json`, Markdown, and a picture of the gaps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from matplotlib.lines import Line2D

from playbook.campaign import ablation
from playbook.campaign.ablation import Ablation
from playbook.campaign.ablation_file import FILE, KIND, MARKDOWN, PICTURE
from playbook.common import file_sets
from playbook.report import svg, wording
from playbook.report.canvas import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Plot, numbers, single
from playbook.report.export import as_table, escaped, on_one_line, wrapped
from pretraining.record.run_folder import write_json

TITLE = "Training loss gap to BF16 with the same seed, per cent"
HOW = (
    "Gaps are relative to BF16 with the same seed, over the last tenth of the iterations (five at least), on the "
    "same tokens; the figures of several seeds stand in their order. Intervals are 95 % t-intervals over seeds, paired "
    "by seed, with the error that all variants share, or each pair's own where the variants spread unlike. A variant "
    "is above or below where closed testing of all these differences together calls it so: in one of twenty studies "
    "chance makes any such call. With fewer than three seeds nothing is judged."
)
NAME = 28  # characters of a name on a terminal's line
DRAWN = 52  # of one in the picture
LEGEND = 18  # points
ROW = 40
WHISKER = 0.09


def write(of: Ablation, folder: Path) -> list[Path]:
    """Write all three into a new folder, which appears whole. Returns the paths. Raises OSError."""
    with svg.style():
        drawn = svg.png(picture(of).canvas, KIND)
    files = {
        PICTURE: partial(file_sets.write_synced, content=drawn),
        MARKDOWN: partial(file_sets.write_synced, content=as_markdown(of).encode()),
        FILE: partial(write_json, content=asdict(of)),
    }
    file_sets.place(folder, files, ())
    return [folder / name for name in (FILE, MARKDOWN, PICTURE)]


def as_markdown(of: Ablation) -> str:
    """The ablation as GitHub shows it, every run named."""
    runs = [["variant", "seed", "run", "ended", "commit"]]
    runs += [
        [row.name, str(each.seed), each.run, each.verdict, each.git_commit[:12]] for row in of.rows for each in row.runs
    ]
    versions = ", ".join(f"{name} {version}" for name, version in of.versions.items() if version)
    pair = [next((each.run for each in row.runs), "") for row in of.rows[:2]]
    parts = [
        f"<!-- {of.kind} -->\n# Ablation of NVFP4: {escaped(of.model)}",
        section(of, escaped(f"{ablation.about(of)}."), [(TITLE, PICTURE)]),
        "## Runs",
        escaped(versions),
        as_table(runs),
        f'Any two of them compare: `make compare RUNS="{" ".join(pair)}"`.',
    ]
    return "\n\n".join(parts) + "\n"


def section(of: Ablation, what: str, pictures: Sequence[tuple[str, str]]) -> str:
    """The ablation for a page, without a heading; of each picture its title, and its path relative to the page."""
    parts = [
        wrapped(what),
        wrapped(f"**{escaped(of.verdict)}**"),
        as_table(table(of, everything=True)),
        wrapped(HOW),
        *(f"- {escaped(problem)}" for problem in ablation.problems(of)),
        *(wrapped(escaped(wording.sentence(each))) for each in (of.scope, of.published) if each),
        *(f"![{escaped(name)}]({path})" for name, path in pictures),
    ]
    if of.reproduce:
        parts += ["To repeat it:", f"    {on_one_line(of.reproduce)}"]
    return "\n\n".join(parts)


def table(of: Ablation, *, everything: bool = False) -> list[list[str]]:
    """The header, then a row a variant; of several seeds the figures stand in their order.

    Args:
        everything: with each seed's figures; else they are left out where the mean says it, of one seed or of seeds
            that are judged, and names are broken: no terminal is wide enough.
    """
    each = everything or (of.shown is None and len(of.seeds) > 1)
    rows = [
        ["", "tail", *["gap, %"] * each, "to BF16", "to whole", *["training loss", "validation gap, %"] * everything]
    ]
    for row in of.rows:
        tail = "all" if row.bf16_tail_layers is None else str(row.bf16_tail_layers)
        own = [_each(row, "training_loss_gap", "+.2f") if row.to_bf16 else ""]
        losses = [_each(row, "training_loss", ".4f"), _each(row, "validation_loss_gap", "+.2f") if row.to_bf16 else ""]
        pairs = [(row.gap, row.to_bf16), (row.from_whole, row.to_whole)]
        lies = [f"{ablation.with_ends(figure)} {where}".strip() for figure, where in pairs]
        name = row.name if everything else textwrap.fill(row.name, NAME, break_on_hyphens=False)
        rows.append([name, tail, *own * each, *lies, *losses * everything])
    return rows


def _each(row: ablation.Row, name: str, form: str) -> str:
    """One figure of each run; a dash, and in place of its gap how it ended, of a run without."""
    values = [getattr(each, name) for each in row.runs]
    return ", ".join(
        f"{figure.value:{form}}" if figure else run.verdict if name == "training_loss_gap" and run.problem else "-"
        for run, figure in zip(row.runs, values, strict=True)
    )


def picture(of: Ablation) -> Plot:
    """Every variant's gaps, a mark a seed. To be used inside `svg.style`."""
    shown = [row for row in of.rows if row.to_bf16]
    below = BOTTOM + LEGEND
    height = TOP + LEGEND + ROW * len(shown) + below
    canvas, axes = single(TITLE, height=height)
    axes.set_position((LEFT / WIDTH, below / height, 1 - (LEFT + RIGHT) / WIDTH, ROW * len(shown) / height))
    axes.grid(visible=False)
    whole = next((row.gap for row in shown if not row.to_whole and row.gap), None)
    for at in range(len(shown)):  # below the names alone
        if whole and whole.low is not None:
            axes.fill_between([whole.low, whole.high], at - 0.14, at + 0.42, color=svg.BAND, linewidth=0)
        axes.plot([0, 0], [at - 0.14, at + 0.42], color=svg.INK, linewidth=1.2)
    count = len(svg.ARMS) - 1  # the first is a baseline's
    looks = {seed: (svg.ARMS[1 + at % count], svg.MARKERS[1 + at % count]) for at, seed in enumerate(of.seeds)}
    for at, row in enumerate(shown):
        known = [each for each in row.runs if each.training_loss_gap]
        for place, each in enumerate(known):
            y = at + 0.4 * (place - (len(known) - 1) / 2) / max(2, len(known) - 1) + 0.14
            colour, marker = looks[each.seed]
            axes.plot(each.training_loss_gap.value, y, marker=marker, color=colour, markersize=6)
        if row.gap and row.gap.low is not None:
            axes.plot([row.gap.low, row.gap.high], [at + 0.14] * 2, color=svg.INK, linewidth=1.2)
            for end in (row.gap.low, row.gap.high):
                axes.plot([end, end], [at + 0.14 - WHISKER, at + 0.14 + WHISKER], color=svg.INK, linewidth=1.2)
        axes.annotate(_said(row), (0, at), xycoords=("axes fraction", "data"), xytext=(-LEFT + 3, 13),
                      textcoords="offset points", va="center")  # fmt: skip
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    bars = "\nbar: 95 % interval over seeds; shaded: the whole recipe's" if of.shown is not None else ""
    axes.set_xlabel(f"0 is BF16; a mark a seed{bars}")
    numbers(axes.xaxis, 6)
    marks = [
        Line2D([], [], color=colour, marker=marker, markersize=6, linestyle="none") for colour, marker in looks.values()
    ]
    canvas.legend(marks, [f"seed {seed}" for seed in looks], ncols=len(looks), loc="upper left", handlelength=1,
                  bbox_to_anchor=(2 / WIDTH, 1 - 21 / height), borderaxespad=0, columnspacing=1.5)  # fmt: skip
    return Plot("gaps", canvas, TITLE, of.verdict, "")


def _said(row: ablation.Row) -> str:
    """The variant, its mean, and what became of the seeds that have no gap."""
    without = dict.fromkeys(each.verdict for each in row.runs if not each.training_loss_gap)
    said = [f"{row.gap.value:+.2f} %".replace("-", "−")] if row.gap else []
    return "   ".join([textwrap.shorten(row.name, DRAWN, placeholder=" …"), *said, *without])
