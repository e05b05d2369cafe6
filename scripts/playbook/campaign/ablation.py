"""What an ablation comes to: NVFP4's loss gap to BF16, whole and with one thing changed, for every seed.

A gap is `make compare`'s, of two runs with one seed: the same weights to begin with, the same tokens in the same order.
How gaps of several seeds differ is luck, and nothing within that is called a difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from playbook.compare import comparison, loss_gap, run_figures
from playbook.compare.ablation_file import KIND, SCHEMA
from playbook.compare.stats import Figure
from playbook.report.terminal import joined
from pretraining.record.run_folder import Run, Verdict
from pretraining.request.nvfp4_recipe import INGREDIENTS, Nvfp4Recipe, as_text

ALIKE, ABOVE, BELOW = "not told apart", "above", "below"
FEWEST_SEEDS = 2  # one has no spread, and so nothing to tell a difference by


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        without: the ingredient that is switched off, a name of `switches.INGREDIENTS`; "" for none.
        tail: last layers in BF16, None for as many as the recipe keeps.
    """

    precision: str
    without: str = ""
    tail: int | None = None

    @property
    def nvfp4(self) -> str | None:
        """The words of its recipe; None for the whole one."""
        return as_text(Nvfp4Recipe().without(self.without).changed()) if self.without else None

    @property
    def name(self) -> str:
        """As the table calls it."""
        if self.precision == "bf16":
            return "BF16"
        if self.without:
            return f"without {INGREDIENTS[self.without]}"
        return "whole recipe" if self.tail is None else f"last {self.tail} in BF16"


BF16, WHOLE = Variant("bf16"), Variant("nvfp4")


def variants(layers: int, head: int, tail: int) -> list[Variant]:
    """All of them, BF16 and the whole recipe first, then what is said to matter most.

    Args:
        layers: of the model.
        head, tail: how many the recipe keeps in BF16 at its start and end; that tail is the whole recipe's.
    """
    tails = [Variant("nvfp4", tail=other) for other in (0, 1, 2) if other != tail and head + other < layers]
    return [BF16, WHOLE, *tails[:1], *(Variant("nvfp4", without=each) for each in INGREDIENTS), *tails[1:]]


@dataclass(frozen=True)
class Trained:
    """One run of a variant.

    Attributes:
        run: the name of its folder.
        code: the state of the training code, "" where not recorded.
        problem: why there is no gap: how it ended, or what its work differs in from BF16's; "" where there is one.
        training_loss, validation_loss: nats a token, as `results.RunResult`.
        training_loss_gap, validation_loss_gap: per cent from BF16's with the same seed, as `results.Contrast`.
    """

    seed: int
    run: str
    verdict: str
    arithmetic: str
    git_commit: str
    code: str = ""
    problem: str = ""
    training_loss: Figure | None = None
    validation_loss: Figure | None = None
    training_loss_gap: Figure | None = None
    validation_loss_gap: Figure | None = None


def trained(seed: int, run: Run, base: Run | None) -> Trained:
    """The run's losses, and its gaps to BF16's run with the same seed.

    Args:
        run, base: from `loading.load`; `base` is None where `run` is that run itself.
    """
    result = run_figures.measure(run).result
    said = Trained(
        seed=seed,
        run=run.folder.name,
        verdict=result.verdict,
        arithmetic=run.precision.get("arithmetic", ""),
        git_commit=run.commit,
        code=run.code,
        training_loss=result.training_loss,
        validation_loss=result.validation_loss,
    )
    if result.verdict != Verdict.SUCCEEDED:
        return replace(said, problem=f"{result.verdict}: {result.cause}")
    if base is None:
        return said
    try:
        (found,) = comparison.compare([[base], [run]], baseline="A").contrasts
    except comparison.NotComparable as refusal:
        return replace(said, problem=f"not comparable: {joined(list(map(str, refusal.differences)))}")
    return replace(
        said,
        problem="" if found.training_loss_gap else "no loss was recorded",
        training_loss_gap=found.training_loss_gap,
        validation_loss_gap=found.validation_loss_gap,
    )


@dataclass(frozen=True)
class Row:
    """One variant and its seeds.

    Attributes:
        bf16_tail_layers: last layers in BF16, None of BF16 itself.
        gap: the mean of its seeds' training loss gaps, with the lowest and the highest; None without any.
        to_bf16, to_whole: where its gaps lie, "above", "below" or "not told apart", or why that is not known; "" of
            itself.
    """

    name: str
    without: str
    bf16_tail_layers: int | None
    runs: list[Trained]
    gap: Figure | None = None
    to_bf16: str = ""
    to_whole: str = ""

    @property
    def gaps(self) -> list[float]:
        """Of its seeds, per cent."""
        return [each.training_loss_gap.value for each in self.runs if each.training_loss_gap]


@dataclass(frozen=True)
class Ablation:
    """The result.

    Attributes:
        verdict: some sentences to put on top.
        tokens: of each run.
        spread: what seeds alone make of a gap, per cent: how far those of a variant lie apart, the median over the
            variants, or those of the whole recipe where that is more.
        scope: one sentence on what these runs can and cannot show.
        reproduce: the command that makes it again.
    """

    created: str
    verdict: str
    model: str
    parameters: int | None
    arithmetic: str
    device: str
    versions: dict[str, Any]
    data: str
    iterations: int
    tokens: int
    seeds: list[int]
    spread: float
    rows: list[Row]
    scope: str
    published: str = loss_gap.PUBLISHED
    reproduce: str = ""
    kind: str = KIND
    schema: int = SCHEMA


def build(found: dict[Variant, list[Trained]], base: Run, tail: int, *, created: str, reproduce: str = "") -> Ablation:
    """Set the variants against BF16 and against the whole recipe.

    Args:
        found: the runs of each variant, `BF16` and `WHOLE` among them.
        base: a run in BF16, for the facts that all share.
        tail: the last layers that the whole recipe keeps in BF16.
    """
    plain = [_row(variant, runs, tail) for variant, runs in found.items()]
    spreads = [float(np.ptp(row.gaps)) for row in plain if len(row.gaps) >= FEWEST_SEEDS]
    (whole,) = (row for row in plain if row.name == WHOLE.name)
    usual = max(float(np.median(spreads)), float(np.ptp(whole.gaps or [0.0]))) if spreads else 0.0
    rows = [_placed(row, whole, usual) for row in plain]
    of_base = run_figures.measure(base)
    facts = base.environment
    return Ablation(
        created=created,
        verdict=_verdict(rows, usual, mock=loss_gap.on_mock([of_base])),
        model=facts.get("model", ""),
        parameters=base.parity.get("parameters"),
        arithmetic=next((each.arithmetic for each in found[WHOLE] if each.arithmetic), ""),
        device=str(base.parity.get("device", "")),
        versions=facts.get("versions") or {},
        data=str(base.parity.get("data", "")),
        iterations=loss_gap.iterations([of_base]),
        tokens=loss_gap.tokens([of_base]),
        seeds=[each.seed for each in found[BF16]],
        spread=usual,
        rows=rows,
        scope=loss_gap.scope([of_base]),
        reproduce=reproduce,
    )


def reread(said: Mapping[str, Any], runs: Mapping[str, Run]) -> Ablation:
    """An ablation computed anew from its runs.

    Args:
        said: the content of its ablation.json.
        runs: by the names of their folders, from `loading.load`.
    """
    found: dict[Variant, list[Trained]] = {}
    bases: dict[int, Run] = {}
    tail = 0
    for row in said["rows"]:
        variant = Variant("nvfp4", row["without"], None if row["without"] else row["bf16_tail_layers"])
        if row["name"] in (BF16.name, WHOLE.name):
            variant = BF16 if row["name"] == BF16.name else WHOLE
            tail = row["bf16_tail_layers"] or tail
        for each in row["runs"]:
            run = runs[each["run"]]
            found.setdefault(variant, []).append(trained(each["seed"], run, bases.get(each["seed"])))
            bases.setdefault(each["seed"], run)
    base = bases[said["seeds"][0]]
    return build(found, base, tail, created=said["created"], reproduce=said["reproduce"])


def _row(variant: Variant, runs: Sequence[Trained], tail: int) -> Row:
    values = [each.training_loss_gap.value for each in runs if each.training_loss_gap]
    gap = None
    if values:
        several = len(values) > 1
        gap = Figure(
            float(np.mean(values)), "%", min(values) if several else None, max(values) if several else None,
            f"range of {len(values)} seeds" if several else "", len(values),
        )  # fmt: skip
    kept = None if variant == BF16 else tail if variant.tail is None else variant.tail
    return Row(variant.name, variant.without, kept, list(runs), gap)


def _placed(row: Row, whole: Row, usual: float) -> Row:
    if row.name == BF16.name:
        return row
    to_whole = "" if row is whole else _place(row, whole.gaps, usual)
    return replace(row, to_bf16=_place(row, [0.0] * len(row.gaps), usual), to_whole=to_whole)


def _place(row: Row, others: list[float], usual: float) -> str:
    """Where the row's gaps lie from others: nothing is called a difference that seeds alone may make.

    The two must lie farther apart than the seeds of either, than those of the whole recipe and than seeds do as a rule:
    of several pairs of seeds one always happens to be close, and would otherwise be a discovery.
    """
    if ended := list(dict.fromkeys(each.verdict for each in row.runs if each.verdict != Verdict.SUCCEEDED)):
        return joined(ended)
    if min(len(row.gaps), len(others)) < FEWEST_SEEDS:
        return "one seed alone" if row.gaps and others else "not known"
    spread = max(float(np.ptp(row.gaps)), float(np.ptp(others)), usual)
    if min(row.gaps) - max(others) > spread:
        return ABOVE
    return BELOW if min(others) - max(row.gaps) > spread else ALIKE


def _verdict(rows: list[Row], usual: float, *, mock: bool) -> str:
    if mock:
        return "The data is mock: its losses say nothing about accuracy."
    whole = next(row for row in rows if row.name == WHOLE.name)
    others = [row for row in rows if row.to_whole]
    said = []
    if whole.gap:
        said.append(f"The whole recipe lies {whole.gap.value:+.2f} % from BF16{_range(whole.gap)}: {whole.to_bf16}.")
    for where in (ABOVE, BELOW):
        if named := [f"{row.name} ({row.gap.value:+.2f} %)" for row in others if row.to_whole == where and row.gap]:
            said.append(f"{where.capitalize()} the whole recipe by more than seeds differ: {joined(named)}.")
    if alike := [row.name for row in others if row.to_whole == ALIKE]:
        said.append(f"Not told from the whole recipe: {joined(alike)}.")
    for verdict in dict.fromkeys(each.verdict for row in rows for each in row.runs):
        if verdict != Verdict.SUCCEEDED:
            named = [f"{row.name} (seed {each.seed})" for row in rows for each in row.runs if each.verdict == verdict]
            said.append(f"{str(verdict).replace('_', ' ').capitalize()}: {joined(named)}.")
    seeds = max(len(row.runs) for row in rows)
    if seeds < FEWEST_SEEDS:
        said.append("One seed shows no spread, so nothing is said to differ.")
    else:
        said.append(
            f"Seeds alone put gaps {usual:.2f} % apart; {seeds} of them show how far luck goes, and prove no "
            "difference."
        )
    return " ".join(said)


def _range(gap: Figure) -> str:
    return "" if gap.low is None else f" ({gap.low:+.2f} to {gap.high:+.2f} over {gap.count} seeds)"


def table(of: Ablation) -> list[list[str]]:
    """The header, then a row a variant; of several seeds the figures stand in their order."""
    header = ["", "tail", "training loss", "gap, %", "mean", "validation gap, %", "to BF16", "to whole"]
    return [
        header,
        *(
            [
                row.name,
                "all" if row.bf16_tail_layers is None else str(row.bf16_tail_layers),
                _each(row, "training_loss", ".4f"),
                _each(row, "training_loss_gap", "+.2f") if row.to_bf16 else "",
                f"{row.gap.value:+.2f}" if row.gap else "",
                _each(row, "validation_loss_gap", "+.2f") if row.to_bf16 else "",
                row.to_bf16,
                row.to_whole,
            ]
            for row in of.rows
        ),
    ]


def _each(row: Row, name: str, form: str) -> str:
    """One figure of each run; a dash, and in place of its gap how it ended, of a run without."""
    values: list[Figure | None] = [getattr(each, name) for each in row.runs]
    return ", ".join(
        f"{figure.value:{form}}" if figure else run.verdict if name == "training_loss_gap" and run.problem else "-"
        for run, figure in zip(row.runs, values, strict=True)
    )


def problems(of: Ablation) -> list[str]:
    """The runs without a gap, each with why; and whether all are of one state of the code."""
    runs = [(row, each) for row in of.rows for each in row.runs]
    said = [f"{row.name}, seed {each.seed}: {each.problem}" for row, each in runs if each.problem]
    states = Counter(each.code for _, each in runs if each.code)
    if len(states) > 1:
        said.append(
            f"not one state of the code: {joined([f'{count} runs of {code}' for code, count in states.items()])}"
        )
    return said


def about(of: Ablation) -> str:
    """What was trained, on one line."""
    size = f" ({of.parameters:,} parameters)" if of.parameters else ""
    return (
        f"{of.model}{size}, NVFP4 {of.arithmetic} on {of.device}, {of.iterations:,} iterations, {of.tokens:,} tokens "
        f"of {of.data} a run, seeds {joined(list(map(str, of.seeds)))}"
    )
