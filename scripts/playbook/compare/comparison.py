"""Compares two or more configurations, each with one run or several repeats; refuses unequal work.

A run is a run folder or a raw log. The result is a `model.Comparison`.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from playbook.compare import equal_loss, loss_gap, parity, published, speedup
from playbook.compare.figures import Measured, alike, measure, of_arm, of_contrast, peak
from playbook.compare.model import UNKNOWN, Arm, Comparison, Contrast, Difference, label
from playbook.compare.stats import Figure
from pretraining.errors import UsageError
from pretraining.record.run_folder import Peak, Run, utc_now

LONGEST = 36  # characters of a fact in an arm's name


class NotComparable(Exception):
    """The runs did not do the same work, or one did not finish it: `differences` are in the way. Exit code 1."""

    def __init__(self, differences: list[Difference]) -> None:
        super().__init__("the runs cannot be compared")
        self.differences = differences


def compare(
    groups: Sequence[Sequence[Run]],
    *,
    baseline: str = "",
    force: bool = False,
    reproduce: str = "",
    loss_margin: float | None = None,
    speed_up: published.SpeedUp | None = None,
) -> Comparison:
    """Compare configurations.

    Args:
        groups: for each configuration its runs, from `loading.load`, in the order in which they ran; two or more.
        baseline: what to set the others against: an arm's name, a precision or a run's path, or "" for the least novel.
        force: compare although they differ; the result says so.
        loss_margin: the smallest difference in training loss that matters, per cent; None where none was asked for.
        speed_up: to project the time to equal loss with, in place of the runs' own.

    Raises UsageError where no arm is called `baseline`, and NotComparable where anything is in the way; with `force`
    only where one has no iteration at all.
    """
    measured = _measured(groups)
    called = _called(measured)
    differences, unchecked = parity.check(called)
    void = [found for found in differences if found.void]
    if void and not force:
        raise NotComparable(void)
    if empty := [found for found in void if found.name == parity.NO_ITERATIONS]:
        raise NotComparable(empty)
    not_known = [name for name in parity.MUST_BE_KNOWN if name in unchecked]
    doubt = parity.work(void, not_known)
    everything = list(called.values())
    built = told_apart([make_arm(name, runs) for name, runs in measured.items()])
    base = _baseline(built, baseline)
    contrasts = _contrasts(built, base, measured, loss_margin, speed_up, judged=not doubt)
    mock = loss_gap.on_mock(everything)
    return Comparison(
        created=utc_now(),
        forced=bool(void),
        verdict=_verdict(built, contrasts, base, doubt=doubt, mock=mock, losses=not not_known),
        arms=built,
        baseline=base.name,
        contrasts=contrasts,
        scope=loss_gap.scope(everything),
        bigram_entropy=_bigram_entropy(everything),
        differences=differences,
        unchecked=unchecked,
        not_known=not_known,
        doubt=doubt,
        warnings=_warnings(built, called, [name for name in unchecked if name not in not_known]),
        bands=published.against_published(built, contrasts, base),
        reproduce=reproduce,
    )


def _called(groups: dict[str, list[Measured]]) -> dict[str, Measured]:
    """Each run by its arm's name, with its number where the arm has several."""
    return {
        f"{name}{index}" if len(runs) > 1 else name: run
        for name, runs in groups.items()
        for index, run in enumerate(runs, 1)
    }


def group(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one configuration together, as repeats or with other seeds, in the order in which they started.

    Two runs are two arms, whatever they are, and so are runs that are all of one configuration: somebody wants to know
    whether they differ.
    """
    by_configuration: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([run.precision, {**run.parity, "seed": None}], sort_keys=True, default=str)
        by_configuration.setdefault(key, []).append(run)
    if len(runs) == 2 or len(by_configuration) == 1:
        return [[run] for run in runs]
    return [in_order(repeats) for repeats in by_configuration.values()]


def in_order(runs: Sequence[Run]) -> list[Run]:
    """As they started, which is how repeats are paired; those that do not tell as they were given."""
    if not all(run.environment.get("started") for run in runs):
        return list(runs)
    return sorted(runs, key=lambda run: (run.environment["started"], run.folder.name))


def named(groups: Sequence[Sequence[Run]]) -> dict[str, Sequence[Run]]:
    """Each configuration by its arm's name: "A", "B" and so on. Raises UsageError beyond "Z"."""
    if len(groups) > len(string.ascii_uppercase):
        raise UsageError(f"{len(groups)} configurations are more than one table can hold; compare at most 26")
    return dict(zip(string.ascii_uppercase, groups, strict=False))


def make_arm(name: str, runs: list[Measured]) -> Arm:
    """The arm of one configuration."""
    precision, results = runs[0].run.precision, [run.result for run in runs]
    figures, found = of_arm(results), peak(runs[0].run)
    return Arm(
        name=name,
        precision=precision.get("name", UNKNOWN),
        arithmetic=precision.get("arithmetic", "native"),
        emulator=precision.get("emulator") or "",
        bf16_head_layers=precision.get("bf16_head_layers"),
        bf16_tail_layers=precision.get("bf16_tail_layers"),
        ingredients=precision.get("ingredients") or {},
        runs=results,
        mfu_peak=found[1] if found and figures["mfu"] else "",
        peak_memory_kind=runs[0].memory_kind or next(iter(runs[0].memory), ""),
        figures=figures,
    )


def told_apart(arms: list[Arm]) -> list[Arm]:
    """The arms, those of one label with what they differ in: their recipes, and facts until none are alike.

    Arms that differ in no fact known of all keep their label, and are told apart by their letters.
    """
    facts = dict.fromkeys(name for arm in arms for name in arm.runs[0].facts)
    for told in (attrgetter("changed"), *(partial(_fact, name) for name in facts)):
        by_label: dict[str, dict[str, str | None]] = {}
        for arm in arms:
            by_label.setdefault(arm.label, {})[arm.name] = told(arm)
        differ = [said for said in by_label.values() if None not in said.values() and len({*said.values()}) > 1]
        more = {name: text for said in differ for name, text in said.items()}
        arms = [replace(arm, setting=f"{arm.setting} {more.get(arm.name, '')}".strip()) for arm in arms]
    return arms


def _fact(name: str, arm: Arm) -> str | None:
    """A parity fact of an arm, "learning_rate=0.003", a long one cut; None where it is not known of all its runs."""
    values = [run.facts.get(name, parity.USUAL.get(name)) for run in arm.runs]
    said = " ".join(sorted({_as_asked(name, value) for value in values}))
    return None if None in values else said if len(said) <= LONGEST else f"{said[: LONGEST - 3]}..."


def _as_asked(name: str, value: Any) -> str:
    """ "seed=1"; of overrides each that there is."""
    asked = value if isinstance(value, dict) else {name: value}
    return " ".join(f"{key}={inner}" for key, inner in asked.items())


def _verdict(arms: list[Arm], contrasts: list[Contrast], base: Arm, *, doubt: str, mock: bool, losses: bool) -> str:
    """What the comparison comes to.

    Args:
        doubt: what `parity.work` says, which comes first.
        mock: whether the data is, whose losses are no part of it.
        losses: whether the losses are of the same tokens, as far as the runs tell.
    """
    by_name = {arm.name: arm for arm in arms}
    said = [doubt]
    for contrast in contrasts:
        arm = by_name[contrast.candidate]
        if contrast.step_time:
            said.append(speedup.verdict(contrast.step_time, arm, base))
        elif labels := [*arm.unusable, *base.unusable]:
            said.append(f"Nothing is said of the speed of {arm.name}: step times of {', '.join(labels)} are unusable.")
        if losses and not mock:
            said.append(contrast.loss)
    if mock and any(arm.training_loss for arm in arms):
        said.append("The data is mock: its losses say nothing about accuracy.")
    return " ".join(filter(None, said))


def _measured(groups: Sequence[Sequence[Run]]) -> dict[str, list[Measured]]:
    """The runs of each arm by its name, made alike."""
    found = iter(alike([measure(run) for runs in groups for run in runs]))
    return {name: [next(found) for _ in runs] for name, runs in named(groups).items()}


def _baseline(built: list[Arm], wanted: str) -> Arm:
    """The arm asked for, else the least novel: BF16, then what is not NVFP4; native before emulated; the first."""
    if not wanted:
        return min(built, key=lambda arm: ({"bf16": 0, "nvfp4": 2}.get(arm.precision, 1), arm.arithmetic != "native"))
    path = str(Path(wanted).absolute())
    for matches in (
        lambda arm: arm.name == wanted.upper(),
        lambda arm: wanted in (arm.label, label(arm.precision, "", setting=arm.setting)),
        lambda arm: arm.precision == wanted,
        lambda arm: any(run.path == path or Path(run.path).name == wanted for run in arm.runs),
    ):
        if found := [arm for arm in built if matches(arm)]:
            return found[0]
    known = ", ".join(f"{arm.name} ({arm.label})" for arm in built)
    raise UsageError(f"BASE={wanted} names none of what is compared: {known}")


def _contrasts(
    built: list[Arm], base: Arm, measured: dict[str, list[Measured]], margin: float | None,
    speed_up: published.SpeedUp | None, *, judged: bool,
) -> list[Contrast]:  # fmt: skip
    """Every other arm against the baseline; `judged` is whether their losses may be, which did the same work."""
    others = [arm for arm in built if arm is not base]
    margin = margin if judged else None
    curves = judged and not loss_gap.on_mock([run for runs in measured.values() for run in runs])
    found = [loss_gap.training(measured[arm.name], measured[base.name]) for arm in others]
    called = loss_gap.called(found) if judged else [None] * len(found)
    tests = sum(each is not None for each in called)
    contrasts = []
    for arm, gap, differs in zip(others, found, called, strict=True):
        runs, base_runs = measured[arm.name], measured[base.name]
        validation = loss_gap.validation(runs, base_runs)
        over = gap.over_seeds if gap and judged else None
        ratio = speedup.step_time(arm, base, runs, base_runs)
        contrasts.append(
            Contrast(
                candidate=arm.name,
                step_time=ratio,
                figures=of_contrast(arm, base),
                training_loss_gap=gap and gap.figure,
                validation_loss_gap=validation and validation.figure,
                gap_by_seed={str(seed): value for seed, value in gap.by_seed.items()} if gap else {},
                gap_iterations=loss_gap.iterations_of(runs[0], base_runs[0]) if gap else 0,
                loss_differs=differs,
                loss_within_margin=bool(over.within(margin)) if over and margin is not None else None,
                loss=loss_gap.verdict(gap, arm, base, differs=differs, tests=tests, margin=margin) if gap else "",
                published_gap=loss_gap.published_gaps(runs[0], base_runs[0]) if gap or validation else "",
                equal_loss=equal_loss.between((arm, base), runs, base_runs, ratio, speed_up) if curves else None,
            )
        )
    return contrasts


def _bigram_entropy(runs: list[Measured]) -> Figure | None:
    for each in runs:
        entropy = (each.run.environment.get("text") or {}).get("bigram_entropy")
        if isinstance(entropy, int | float) and math.isfinite(entropy):
            return Figure(float(entropy), "nats a byte")
    return None


def _warnings(built: list[Arm], runs: dict[str, Measured], unchecked: list[str]) -> list[str]:
    """What a reader has to know of the comparison as a whole."""
    warnings = []
    for arm in built:
        if arm.recipe not in ("", "full"):
            warnings.append(f"{arm.name}: {'not the full NVFP4 recipe: ' * (arm.precision == 'nvfp4')}{arm.recipe}")
    paths: dict[str, list[str]] = {}
    for name, each in runs.items():
        paths.setdefault(each.result.path, []).append(name)
    warnings += [f"{' and '.join(same)} are the same run" for same in paths.values() if len(same) > 1]
    if len({arm.peak_memory_kind for arm in built if arm.peak_memory}) > 1:
        warnings.append("the peak memories are different things and cannot be compared")
    if any(arm.peak_memory_kind in (Peak.RESIDENT, Peak.RESIDENT_OF_ALL) for arm in built if arm.peak_memory):
        warnings.append("the peak memory is the host's, a first run's compilation included")
    at = {name: each.result.validated_at for name, each in runs.items() if each.result.validation_loss}
    if len(set(at.values())) > 1:
        where = ", ".join(f"{name} {iteration}" for name, iteration in at.items())
        warnings.append(f"validated at different iterations: {where}")
    derived = any("FLOPs" in warning for arm in built for run in arm.runs for warning in run.warnings)
    if unknown := [name for name in unchecked if not (name == "flops_per_token" and derived)]:
        warnings.append(f"not known of all, so not checked: {', '.join(unknown)}")
    return warnings
