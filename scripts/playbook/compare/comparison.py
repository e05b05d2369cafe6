"""Compares two or more configurations, each with one run or several repeats; refuses unequal work.

A run is a run folder or a raw log. The result is a `model.Comparison`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from playbook.compare import arms, conclusions, equal_loss, loss_gap, parity, speedup
from playbook.compare.arms import make_arm
from playbook.compare.figures import Measured, alike, measure, of_contrast
from playbook.compare.model import Arm, Comparison, Contrast, Difference
from playbook.compare.projected import SpeedUp
from playbook.compare.stats import Figure
from pretraining.errors import UsageError
from pretraining.record.run_folder import Peak, Run, utc_now


class NotComparable(Exception):
    """The runs did not do the same work, or one did not finish it. Exit code 1.

    Attributes:
        differences: what is in the way, each with both values and the way out.
    """

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
    speed_up: SpeedUp | None = None,
) -> Comparison:
    """Compare configurations.

    Args:
        groups: for each configuration its runs, from `loading.load`, in the order in which they ran; two or more.
        baseline: what to set the others against: an arm's name, a precision or a run's path, or "" for the least novel.
        force: compare although they differ; the result says so.
        reproduce: the command that makes this comparison again.
        loss_margin: the smallest difference in training loss that matters, per cent; None where none was asked for.
        speed_up: to project the time to equal loss with, in place of the runs' own.

    Raises:
        NotComparable: without `force`, where anything is in the way; with it, where one has no iteration at all.
        UsageError: no arm is called `baseline`.
    """
    runs_alike = iter(alike([measure(run) for runs in groups for run in runs]))
    measured = {
        name: [next(runs_alike) for _ in runs] for name, runs in zip(arms.names(len(groups)), groups, strict=True)
    }
    called = {
        f"{name}{index}" if len(runs) > 1 else name: run
        for name, runs in measured.items()
        for index, run in enumerate(runs, 1)
    }
    differences, unchecked = parity.check(called)
    void = [found for found in differences if found.void]
    if void and not force:
        raise NotComparable(void)
    if empty := [found for found in void if found.name == parity.NO_ITERATIONS]:
        raise NotComparable(empty)
    not_known = [name for name in parity.MUST_BE_KNOWN if name in unchecked]
    doubt = conclusions.work(void, not_known)
    everything = list(called.values())
    built = [make_arm(name, runs) for name, runs in measured.items()]
    base = _baseline(built, baseline)
    contrasts = _contrasts(built, base, measured, None if doubt else loss_margin, judged=not doubt)
    if not (doubt or loss_gap.on_mock(everything)):
        contrasts = [_with_equal_loss(each, built, base, measured, speed_up) for each in contrasts]
    scope, mock = loss_gap.scope(everything), loss_gap.on_mock(everything)
    return Comparison(
        created=utc_now(),
        forced=bool(void),
        verdict=conclusions.verdict(built, contrasts, base, doubt=doubt, mock=mock, losses=not not_known),
        arms=built,
        baseline=base.name,
        contrasts=contrasts,
        scope=scope,
        bigram_entropy=_bigram_entropy(everything),
        differences=differences,
        unchecked=unchecked,
        not_known=not_known,
        doubt=doubt,
        warnings=_warnings(built, called, [name for name in unchecked if name not in not_known]),
        bands=conclusions.against_published(built, contrasts, base),
        reproduce=reproduce,
    )


def _baseline(built: list[Arm], wanted: str) -> Arm:
    """The arm asked for, else the least novel: BF16, then what is not NVFP4; native before emulated; the first."""
    if not wanted:
        return min(built, key=lambda arm: ({"bf16": 0, "nvfp4": 2}.get(arm.precision, 1), arm.arithmetic != "native"))
    path = str(Path(wanted).absolute())
    for matches in (
        lambda arm: arm.name == wanted.upper(),
        lambda arm: wanted in (arm.precision, arm.label),
        lambda arm: any(run.path == path or Path(run.path).name == wanted for run in arm.runs),
    ):
        if found := [arm for arm in built if matches(arm)]:
            return found[0]
    known = ", ".join(f"{arm.name} ({arm.label})" for arm in built)
    raise UsageError(f"BASE={wanted} names none of what is compared: {known}")


def _contrasts(
    built: list[Arm], base: Arm, measured: dict[str, list[Measured]], margin: float | None, *, judged: bool
) -> list[Contrast]:
    """Every other arm against the baseline; `judged` is whether their losses may be, which did the same work."""
    others = [arm for arm in built if arm is not base]
    found = [loss_gap.training(measured[arm.name], measured[base.name]) for arm in others]
    called = loss_gap.called(found) if judged else [None] * len(found)
    contrasts = []
    for arm, gap, differs in zip(others, found, called, strict=True):
        runs, base_runs = measured[arm.name], measured[base.name]
        validation = loss_gap.validation(runs, base_runs)
        over = gap.over_seeds if gap and judged else None
        contrasts.append(
            Contrast(
                candidate=arm.name,
                step_time=speedup.step_time(arm, base, runs, base_runs),
                figures=of_contrast(arm, base),
                training_loss_gap=gap and gap.figure,
                validation_loss_gap=validation and validation.figure,
                gap_by_seed={str(seed): value for seed, value in gap.by_seed.items()} if gap else {},
                gap_iterations=loss_gap.iterations_of(runs[0], base_runs[0]) if gap else 0,
                loss_differs=differs,
                loss_within_margin=bool(over.within(margin)) if over and margin is not None else None,
                loss=conclusions.loss(gap, arm, base, differs=differs, margin=margin) if gap else "",
                published_gap=loss_gap.published_gaps(runs[0], base_runs[0]) if gap or validation else "",
            )
        )
    return contrasts


def _with_equal_loss(
    contrast: Contrast, built: list[Arm], base: Arm, measured: dict[str, list[Measured]], speed_up: SpeedUp | None
) -> Contrast:
    arm = next(each for each in built if each.name == contrast.candidate)
    runs = measured[arm.name], measured[base.name]
    return replace(contrast, equal_loss=equal_loss.between((arm, base), *runs, contrast.step_time, speed_up))


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
        if arm.precision == "nvfp4" and arm.recipe not in ("", "full"):
            warnings.append(f"{arm.name}: not the full NVFP4 recipe: {arm.recipe}")
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
