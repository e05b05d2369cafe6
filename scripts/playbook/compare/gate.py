"""Holds a comparison against an earlier one: whether speed, memory or loss left a stated tolerance, either way."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from playbook import PROJECT
from playbook.compare import model, saved, stats
from playbook.compare.parity import ABSENT
from playbook.compare.saved import FILE
from pretraining.errors import UsageError, unknown
from pretraining.request.flags import RUNS
from pretraining.request.models import MOCK

# Per cent, either way. Runs of the same on a well-kept GPU differ by half a per cent in speed and hardly in memory. A
# loss has no tolerance unless one is stated: how far seeds alone move it, each training knows for itself.
TOLERANCES = {"speed": 3.0, "memory": 2.0}
LOSS = "loss"
LOSSES = {"training loss": "training_loss", "validation loss": "validation_loss"}
# What a gate is there to let change: the same work by other software.
SOFTWARE = {"torch", "megatron_bridge", "megatron_core", "transformer_engine", "driver", "cuda"}


class Value(msgspec.Struct):
    """Of a `stats.Figure`."""

    value: float
    unit: str = ""


class StepTimes(msgspec.Struct):
    """Of a `model.Distribution` what says whether it spread too far."""

    median: float | None = None
    first_quartile: float | None = None
    third_quartile: float | None = None


class OfRun(msgspec.Struct):
    """One run of an arm."""

    facts: dict[str, Any]
    training_loss: Value | None = None
    validation_loss: Value | None = None
    step_times: StepTimes | None = None


class OfArm(msgspec.Struct):
    """One arm, as `model.Arm`; an earlier comparison does not name its emulator.

    Of a baseline whoever keeps it may leave out the figures that are not to be held.
    """

    name: str
    precision: str
    arithmetic: str
    bf16_head_layers: int | None
    bf16_tail_layers: int | None
    ingredients: dict[str, bool | str]
    runs: Annotated[list[OfRun], msgspec.Meta(min_length=1)]
    step_time: Value | None = None
    peak_memory: Value | None = None
    peak_memory_kind: str = ABSENT
    emulator: str | None = None
    setting: str = ""


class Held(msgspec.Struct):
    """What of a comparison.json is held against another's."""

    forced: bool
    arms: list[OfArm]


@dataclass(frozen=True)
class Check:
    """One figure of one arm, then and now.

    Attributes:
        kind: "speed", "memory" or "loss".
        change: per cent of `before`; of a loss the mean over seeds.
        interval: of a loss, 95 % over seeds, per cent.
        better: whether the change is for the better: less time, memory or loss.
        usable: not a step time that spread too far, then or now, for any statement of speed; such a one fails.
    """

    arm: str
    figure: str
    kind: str
    unit: str
    before: float
    now: float
    change: float
    tolerance: float
    passed: bool
    better: bool
    interval: tuple[float, float] | None = None
    usable: bool = True

    @property
    def undecided(self) -> bool:
        """Whether it passed, and may lie outside all the same: more seeds would tell."""
        return self.passed and bool(self.interval) and max(map(abs, self.interval)) >= self.tolerance


def check(before: Held, now: Held, tolerances: dict[str, float]) -> list[Check]:
    """Every figure that both comparisons have; losses where `tolerances`, per cent by kind, has one of theirs.

    Raises UsageError: they did not do the same work, one was forced, the baseline has a figure that is gone, or a loss
    is to be held that cannot be.
    """
    if before.forced or now.forced:
        raise UsageError("a comparison that was forced is held against nothing: its runs did not do the same work")
    checks = []
    for old, new in _pairs(before.arms, now.arms):
        _same_work(old, new)
        for name, figure, kind in (("step time", "step_time", "speed"), ("peak memory", "peak_memory", "memory")):
            then, today = getattr(old, figure), getattr(new, figure)
            if then and not today:
                raise UsageError(f"the baseline's {_label(old)} has a {name}, and the comparison held against it none")
            if then:
                usable = kind != "speed" or not (_is_unusable(old) or _is_unusable(new))
                change = 100 * (today.value / then.value - 1) if then.value else 0.0
                passed, of = usable and abs(change) <= tolerances[kind], (f"{old.name}: {_label(old)}", name, kind)
                figures = (today.unit, then.value, today.value, change, tolerances[kind])
                checks.append(Check(*of, *figures, passed, change < 0, usable=usable))
        if LOSS in tolerances:
            checks += _losses(old, new, tolerances[LOSS])
    if not checks:
        raise UsageError("the two comparisons have no figure in common; compare runs of the same work again")
    return checks


def _pairs(before: list[OfArm], now: list[OfArm]) -> list[tuple[OfArm, OfArm]]:
    """Arms of one configuration, in their order. Raises UsageError where one is missing."""
    left, pairs = list(now), []
    for arm in before:
        found = next((other for other in left if _are_alike(arm, other)), None)
        if found is None:
            there = ", ".join(_label(other) for other in now)
            raise UsageError(f"the baseline has {_label(arm)}, and the comparison held against it only {there}")
        left.remove(found)
        pairs.append((arm, found))
    return pairs


def _are_alike(a: OfArm, b: OfArm) -> bool:
    """Whether two arms are of one configuration."""
    names = ["precision", "arithmetic", "bf16_head_layers", "bf16_tail_layers", "ingredients"]
    if None not in (a.emulator, b.emulator):
        names.append("emulator")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def _label(arm: OfArm) -> str:
    return model.label(arm.precision, arm.arithmetic, arm.emulator or "", arm.setting)


def _same_work(old: OfArm, new: OfArm) -> None:
    facts = [{"memory": old.peak_memory and arm.peak_memory_kind, **arm.runs[0].facts} for arm in (old, new)]
    free = {*SOFTWARE, "seed"}  # which `_losses` pairs by
    then, today = ({name: fact for name, fact in those.items() if name not in free} for those in facts)
    if differing := [name for name in {**then, **today} if then.get(name, ABSENT) != today.get(name, ABSENT)]:
        values = {name: (then.get(name, ABSENT), today.get(name, ABSENT)) for name in differing}
        said = ", ".join(f"{name} {was} then and {value} now" for name, (was, value) in values.items())
        raise UsageError(f"the two comparisons of {_label(old)} did not do the same work: {said}")


def _is_unusable(arm: OfArm) -> bool:
    timed = (msgspec.structs.astuple(run.step_times) for run in arm.runs if run.step_times)
    return any(third - first > model.UNUSABLE * median for median, first, third in (t for t in timed if None not in t))


def _losses(old: OfArm, new: OfArm, tolerance: float) -> list[Check]:
    """The losses then and now, paired by seed. One fails where its interval over seeds lies wholly outside."""
    label = _label(old)
    if any(run.facts.get("data") == MOCK for run in old.runs):
        raise UsageError(f"TOLERANCE loss={tolerance:g}: {label} trained on mock data, whose losses mean nothing")
    checks = []
    for name, field in LOSSES.items():
        then, today = (_by_seed(arm, field) for arm in (old, new))
        if not any(then.values()):
            continue
        if None in then or set(then) != set(today) or len(then) < stats.FEWEST:
            said = [" ".join(sorted(map(str, each))) for each in (then, today)]
            raise UsageError(
                f"TOLERANCE loss={tolerance:g}: a loss is held over the same {stats.FEWEST} seeds or more, and "
                f"{label} has seeds {said[0]} then and {said[1]} now: make compare SEEDS="
            )
        if not all((*then.values(), *today.values())):
            raise UsageError(
                f"the baseline's {label} has a {name}, and the comparison held against it none, or not all"
            )
        changes = stats.over([100 * (today[seed] / then[seed] - 1) for seed in then])
        low, high = map(float, changes.ends())
        before, now = (sum(each.values()) / len(each) for each in (then, today))
        of = (f"{old.name}: {label}", name, LOSS, "nats")
        change, passed = float(changes.value), low <= tolerance and high >= -tolerance
        checks.append(Check(*of, before, now, change, tolerance, passed, change < 0, (low, high)))
    return checks


def _by_seed(arm: OfArm, field: str) -> dict[Any, float]:
    """A loss for each seed, the mean of those with it; 0 where one has none."""
    found: dict[Any, list[float]] = {}
    for run in arm.runs:
        value = getattr(run, field)
        found.setdefault(run.facts.get("seed"), []).append(value.value if value else 0.0)
    return {seed: sum(each) / len(each) if all(each) else 0.0 for seed, each in found.items()}


def newest(runs: Path, *, other_than: Path) -> Path:
    """The newest comparison in `runs` that is not the baseline. Raises UsageError where there is none."""
    found = []
    for path in (*runs.glob(f"*/{FILE}"), *runs.glob("*.json")):
        if saved.is_comparison(path) and path.resolve() != other_than.resolve():
            found.append((str(saved.read(path).get("created", "")), path))
    if not found:
        raise UsageError(f"{runs} has no other comparison to hold against the baseline: make compare, or CURRENT=")
    return max(found)[1]


def tolerances(text: str) -> dict[str, float]:
    """TOLERANCE="speed=5 loss=0.5" over the defaults, per cent; of a loss there is none. Raises UsageError."""
    found = dict(TOLERANCES)
    known = [*TOLERANCES, LOSS]
    for part in text.replace(",", " ").split():
        name, _, value = part.partition("=")
        if name not in known:
            raise unknown("tolerance", name, known)
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if not 0 <= found[name] < float("inf"):
            raise UsageError(f"TOLERANCE {part}: a percentage is needed, such as {name}={TOLERANCES.get(name, 0.5):g}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run `make gate`; returns its exit code: 0 within tolerance, 1 outside, 2 wrong usage."""
    parser = argparse.ArgumentParser(description="Hold a comparison against an earlier one.")
    parser.add_argument("baseline", nargs="?", default="", help=f"the earlier {FILE}, or its folder")
    parser.add_argument("--current", type=Path, help="the one to check (default: the newest in the runs' folder)")
    parser.add_argument("--tolerance", default="", help="per cent, such as 'speed=5 memory=2 loss=0.5'")
    parser.add_argument("--runs", type=Path, default=PROJECT / RUNS, help="where comparisons are")
    given = parser.parse_args(arguments)
    if not given.baseline:
        raise UsageError(f"what to hold against is not said: make gate BASELINE={RUNS}/NAME")
    allowed = tolerances(given.tolerance)
    baseline = Path(given.baseline)
    baseline = baseline / FILE if baseline.is_dir() else baseline
    before = saved.read(baseline, Held)
    current = given.current or newest(given.runs, other_than=baseline)
    checks = check(before, saved.read(current, Held), allowed)
    _show(checks, baseline, current)
    return 0 if all(each.passed for each in checks) else 1


def _show(checks: list[Check], baseline: Path, current: Path) -> None:
    print(f"baseline  {baseline}\ncurrent   {current}\n")
    widest = max(20, *(len(each.arm) for each in checks))
    for each in checks:
        scale, unit = (1000, "ms") if each.unit == "s" and each.before < 10 else (1, each.unit.partition(" ")[0])
        figures = f"{each.before * scale:,.4g} -> {each.now * scale:,.4g} {unit}"
        verdict = "ok" if each.passed else "UNUSABLE" if not each.usable else "BETTER" if each.better else "WORSE"
        change = f"{each.change:+.2f} % (±{each.tolerance:g})"
        if each.interval:
            low, high = each.interval
            change += f", {low:+.2f} to {high:+.2f} over seeds"
            verdict = "not shown" if each.undecided else verdict
        print(f"{each.arm:<{widest}} {each.figure:<16} {figures:<24} {change:<16} {verdict}")
    left = [each for each in checks if not each.passed]
    print()
    if not any(each.kind == LOSS for each in checks):
        print("Losses are not held: that takes real data, the same seeds and a stated TOLERANCE loss=.")
    if undecided := sum(each.undecided for each in checks):
        print(f"{undecided} losses are not shown to lie inside their tolerance, nor outside: more seeds tell.")
    if not left:
        print(f"Within tolerance: {len(checks) - undecided} of {len(checks)} figures.")
        return
    print(f"{len(left)} of {len(checks)} figures left their tolerance.")
    if any(not each.usable for each in left):
        print(f"Unusable: step times spread over {model.UNUSABLE:.0%} of their median, and say nothing of speed;")
        print("find what else uses the machine (nvidia-smi, top), then make compare FRESH=1.")
    left = [each for each in left if each.usable]
    if any(not each.better for each in left):
        print("Worse: repeat it (make compare FRESH=1 REPEAT=3) before you look for the cause.")
    if any(each.better for each in left):
        print("Better than before is a change too: if it is meant, make this comparison the baseline.")
