"""What an ablation comes to: NVFP4's loss gap to BF16, whole and with one thing changed, for every seed.

A gap is `make compare`'s, of two runs with one seed: the same weights to begin with, the same tokens in the same order.
Variants are set apart by their differences within a seed, all of them together (`stats.among`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from playbook.campaign import variants
from playbook.campaign.ablation_file import KIND, SCHEMA
from playbook.campaign.variants import BF16, WHOLE, Variant
from playbook.compare import comparison, loss_gap, parity, stats
from playbook.compare.figures import Measured, alike, measure
from playbook.compare.stats import Figure
from playbook.report.wording import joined
from pretraining.record.run_folder import Run, Verdict
from pretraining.request.precisions import default_tail, find_precision
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe

ALIKE, ABOVE, BELOW = "not told apart", "above", "below"
NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Trained:
    """One run of a variant.

    Attributes:
        run: the name of its folder.
        code: the state of the training code, "" where not recorded.
        problem: why there is no gap: how it ended, or what its work differs in from BF16's; "" where there is one.
        training_loss, validation_loss: nats a token, as `model.RunResult`.
        training_loss_gap, validation_loss_gap: per cent from BF16's with the same seed, as `model.Contrast`.
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


def trained(of: Measured, base: Measured | None) -> Trained:
    """The run's losses, and its gaps to BF16's run with the same seed; `base` is None where it is that run itself."""
    run, result = of.run, of.result
    found = Trained(
        seed=seed_of(run),
        run=run.folder.name,
        verdict=result.verdict,
        arithmetic=run.precision.get("arithmetic", ""),
        git_commit=run.commit,
        code=run.code,
        training_loss=result.training_loss,
        validation_loss=result.validation_loss,
    )
    if result.verdict != Verdict.SUCCEEDED:
        return replace(found, problem=f"{result.verdict}: {result.cause}")
    if base is None:
        return found
    pair = alike([base, of])
    differences, _ = parity.check(dict(zip("AB", pair, strict=True)))
    if void := [str(each) for each in differences if each.void]:
        return replace(found, problem=f"not comparable: {joined(void)}")
    training, validation = (gap([pair[1]], [pair[0]]) for gap in (loss_gap.training, loss_gap.validation))
    return replace(
        found,
        problem="" if training or loss_gap.on_mock([base]) else "no loss was recorded",
        training_loss_gap=training and training.figure,
        validation_loss_gap=validation and validation.figure,
    )


@dataclass(frozen=True)
class Row:
    """One variant and its seeds.

    Attributes:
        recipe: as `Variant.recipe`.
        bf16_tail_layers: last layers in BF16, None of BF16 itself.
        gap: the mean of its seeds' training loss gaps, with a t-interval where they are judged; None without any.
        from_whole: the same of its differences to the whole recipe with the same seed, per cent of BF16's loss; None
            where they are not judged, and of itself.
        to_bf16, to_whole: where its gaps lie, "above", "below" or "not told apart", or why that is not known; "" of
            itself.
    """

    name: str
    recipe: str
    bf16_tail_layers: int | None
    runs: list[Trained]
    gap: Figure | None = None
    from_whole: Figure | None = None
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
        shown: the difference that these seeds show eight times in ten, per cent; None where nothing is judged.
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
    shown: float | None
    rows: list[Row]
    scope: str
    published: str = ""
    reproduce: str = ""
    kind: str = KIND
    schema: int = SCHEMA


def seed_of(run: Run) -> int:
    """As recorded, or as planned where it ended before its record began."""
    return run.parity.get("seed", run.plan.get("request", {}).get("seed", 0))


class Study:
    """The runs of an ablation, as they come: of each seed BF16's before the others."""

    def __init__(self) -> None:
        self.found: dict[Variant, list[Trained]] = {}
        self._bases: dict[int, Measured] = {}
        self._tail = 0  # the last layers that the whole recipe keeps in BF16

    def add(self, variant: Variant, run: Run) -> Trained:
        """What a run from `loading.load` comes to."""
        of = measure(run)
        result = trained(of, None if variant == BF16 else self._bases.get(seed_of(run)))
        self.found.setdefault(variant, []).append(result)
        if variant == BF16:
            self._bases[result.seed] = of
        elif variant == WHOLE:
            self._tail = run.precision.get("bf16_tail_layers") or self._tail
        return result

    @property
    def on_mock(self) -> bool:
        """Whether its data says nothing about accuracy, however many seeds there are."""
        return loss_gap.on_mock(list(self._bases.values()))

    def result(self, *, created: str, reproduce: str = "") -> Ablation:
        """The variants set against BF16 and against the whole recipe, both of which are there."""
        rows, shown = _judged([self._row(variant, runs) for variant, runs in self.found.items()])
        base = next(iter(self._bases.values()))
        facts = base.run.environment
        return Ablation(
            created=created,
            verdict=_verdict(rows, shown, mock=self.on_mock),
            model=facts.get("model", ""),
            parameters=base.run.parity.get("parameters"),
            arithmetic=next((each.arithmetic for each in self.found[WHOLE] if each.arithmetic), ""),
            device=str(base.run.parity.get("device", "")),
            versions=facts.get("versions") or {},
            data=str(base.run.parity.get("data", "")),
            iterations=loss_gap.iterations([base]),
            tokens=loss_gap.tokens([base]),
            seeds=[each.seed for each in self.found[BF16]],
            shown=shown,
            rows=rows,
            scope=loss_gap.scope([base]),
            published=loss_gap.published_at(base),
            reproduce=reproduce,
        )

    def _row(self, variant: Variant, runs: Sequence[Trained]) -> Row:
        """A variant's runs in the order of BF16's, which is how seeds are paired."""
        seeds = list(self._bases)
        runs = sorted(runs, key=lambda run: seeds.index(run.seed) if run.seed in seeds else len(seeds))
        tail = None if variant == BF16 else self._tail if variant.tail is None else variant.tail
        row = Row(variant.name, variant.recipe, tail, runs)
        if not row.gaps:
            return row
        return replace(row, gap=Figure(float(np.mean(row.gaps)), "%", spread=NOT_JUDGED, count=len(row.gaps)))


def of_runs(runs: Sequence[Run], *, created: str, reproduce: str) -> Ablation:
    """The ablation that these runs are, by what their own records say of them."""
    runs = comparison.in_order(runs)
    found = [_variant(run) for run in runs]
    wholes = [each.tail for each in found if each.precision == "nvfp4" and not each.recipe]
    usual = default_tail(find_precision("nvfp4"), next(run.parity.get("num_layers", 0) for run in runs))
    tail = usual if usual in wholes else wholes[0]
    found = [replace(each, tail=None) if each.tail == tail else each for each in found]
    study = Study()
    for variant, run in sorted(zip(found, runs, strict=True), key=lambda pair: (pair[0] != BF16, pair[0] != WHOLE)):
        study.add(variant, run)
    return study.result(created=created, reproduce=reproduce)


def _variant(run: Run) -> Variant:
    """What a run trained, its last layers in BF16 named."""
    if run.precision.get("name") != "nvfp4":
        return BF16
    recipe = Nvfp4Recipe.recorded(run.precision.get("ingredients", {}))
    return variants.of(recipe, run.precision.get("bf16_tail_layers", 0))


def _judged(rows: list[Row]) -> tuple[list[Row], float | None]:
    """The rows set against BF16 and the whole recipe, and the difference that their seeds would usually show."""
    base, whole = (next(row for row in rows if row.name == each.name) for each in (BF16, WHOLE))
    seeds = len(base.runs)
    known = [row for row in rows if row is not base and len(row.gaps) == seeds]
    if seeds < stats.FEWEST or whole not in known:
        return [replace(row, **_unjudged(row)) for row in rows], None
    others = [row for row in known if row is not whole]
    found = stats.among([[0.0] * seeds, whole.gaps, *(row.gaps for row in others)], (1, 0))
    low, high = found.differences.ends()
    spread = stats.OVER_SEEDS.format(seeds)
    placed: dict[str, dict[str, Any]] = {row.name: _unjudged(row) for row in rows if row not in known}
    arms = [base, whole, *others]
    for at, (reference, arm) in enumerate(found.pairs):
        sign, row = (-1, whole) if arm == 0 else (1, arms[arm])  # BF16's difference to the whole recipe is turned round
        value = sign * float(found.differences.value[at])
        ends = sorted(sign * float(end[at]) for end in (low, high))
        where = (ABOVE if value > 0 else BELOW) if found.called[at] else ALIKE
        names = ("from_whole", "to_whole") if reference == 1 and arm else ("gap", "to_bf16")
        figure = Figure(value, "%", *ends, spread, seeds)
        placed.setdefault(row.name, {}).update(zip(names, (figure, where), strict=True))
    shown = float(np.median(found.shown))
    return [replace(row, **placed.get(row.name, {})) for row in rows], shown


def _unjudged(row: Row) -> dict[str, str]:
    """Why nothing is said of a row."""
    if row.name == BF16.name:
        return {}
    why = joined(list(dict.fromkeys(each.verdict for each in row.runs if each.verdict != Verdict.SUCCEEDED)))
    return {"to_bf16": why or NOT_JUDGED} | ({} if row.name == WHOLE.name else {"to_whole": why or NOT_JUDGED})


def power(whole: Sequence[Trained], arms: int) -> str:
    """What the whole recipe's seeds let expect of an ablation of so many arms (BF16 is one), before it is trained."""
    values = [each.training_loss_gap.value for each in whole if each.training_loss_gap]
    if len(values) < stats.FEWEST:
        few = ("no seed has", "one seed has", "two seeds have")[len(values)]
        return f"{few} a loss gap: no difference will be judged, which takes {stats.FEWEST} (SEEDS=)"
    pilot = stats.over(values)
    planned = replace(pilot, freedom=(arms - 1) * pilot.freedom)
    shown = float(stats.shown_among(planned, arms, len(values)))
    return (
        f"{len(values)} seeds whose gaps spread like these show a variant's difference to the whole recipe over "
        f"{shown:.2g} % eight times in ten"
    )


def _verdict(rows: list[Row], shown: float | None, *, mock: bool) -> str:
    if mock:
        return "The data is mock: its losses say nothing about accuracy."
    whole = next(row for row in rows if row.name == WHOLE.name)
    others = [row for row in rows if row.to_whole]
    said = []
    if whole.gap:
        said.append(f"The whole recipe lies {with_ends(whole.gap)} from BF16: {whole.to_bf16}.")
    for where in (ABOVE, BELOW):
        named = [f"{row.name} ({with_ends(row.from_whole)})" for row in others if row.to_whole == where]
        if named:
            said.append(f"{where.capitalize()} the whole recipe: {joined(named)}.")
    if alike := [row.name for row in others if row.to_whole == ALIKE]:
        said.append(f"Not told from the whole recipe: {joined(alike)}.")
    for verdict in dict.fromkeys(each.verdict for row in rows for each in row.runs):
        if verdict != Verdict.SUCCEEDED:
            named = [f"{row.name} (seed {each.seed})" for row in rows for each in row.runs if each.verdict == verdict]
            said.append(f"{str(verdict).replace('_', ' ').capitalize()}: {joined(named)}.")
    seeds = max(len(row.runs) for row in rows)
    if shown is not None:
        said.append(f"{seeds} seeds that spread so show differences over {shown:.2g} % eight times in ten.")
    elif seeds < stats.FEWEST:
        few = "one seed does" if seeds == 1 else "two seeds do"
        said.append(f"Nothing is judged: {few} not tell how seeds differ; SEEDS= with {stats.FEWEST} or more does.")
    return " ".join(said)


def with_ends(figure: Figure | None) -> str:
    """A gap with its interval, where it has one."""
    if figure is None:
        return ""
    ends = "" if figure.low is None else f" ({figure.low:+.2f} to {figure.high:+.2f})"
    return f"{figure.value:+.2f} %{ends}"


def problems(of: Ablation) -> list[str]:
    """The runs without a gap, each with why; and whether all are of one state of the code."""
    runs = [(row, each) for row in of.rows for each in row.runs]
    said = [f"seed {each.seed} of {row.name}: {each.problem}" for row, each in runs if each.problem]
    states = Counter(each.code for _, each in runs if each.code)
    if len(states) > 1:
        counted = [f"{count} runs of {code}" for code, count in states.items()]
        said.append(f"not one state of the code: {joined(counted)}")
    return said


def about(of: Ablation) -> str:
    """What was trained, on one line."""
    size = f" ({of.parameters:,} parameters)" if of.parameters else ""
    return (
        f"{of.model}{size}, NVFP4 {of.arithmetic} on {of.device}, {of.iterations:,} iterations, {of.tokens:,} tokens "
        f"of {of.data} a run, seed{'s' * (len(of.seeds) > 1)} {joined(list(map(str, of.seeds)))}"
    )
