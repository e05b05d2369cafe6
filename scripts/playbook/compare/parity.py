"""Whether runs did the same work: the facts that differ, what could not be checked, and the way out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from playbook.compare import soundness
from playbook.compare.model import FEWEST_TIMED, Difference
from pretraining.record.run_folder import Verdict
from pretraining.request.precisions import PRECISIONS

if TYPE_CHECKING:
    from playbook.compare.figures import Measured

NO_ITERATIONS = "iterations"
SETTINGS = "settings"
MODEL_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "vocab_size")
# Two runs of which one of these is not known may have done other work, whatever else is equal.
MUST_BE_KNOWN = (*MODEL_SIZES, "sequence_length", "global_batch_size", "seed", "learning_rate", "data")
ABSENT = "not recorded"
NO_SIZE = "not in the log"
# What training records only where it is otherwise.
USUAL = {
    "finetune": "none: pretraining", "weights": "random", "tuned": False,
    **dict.fromkeys(("engine_switches", "overrides", "plugin"), "none"),
}  # fmt: skip
FLOPS_TOLERANCE = 0.01  # relative; a vocabulary of another size moves an 8B model by 5 %

WHOLE_LOG = "give the log from its start, of several nodes the first node's too in the same file, or the run folder"
SAME_SETTINGS = "run one of them again with the settings of the other"


def check(runs: dict[str, Measured]) -> tuple[list[Difference], list[str]]:
    """What differs between the first run and any other, and the facts that were not known of all.

    A fact missing from a run folder differs, because run folders record all of them; one missing from a raw log is
    not known, and only named. A log that does not give every size of its model is refused: another may have run there.
    Seeds differ within an arm, and not between arms: the letter of a run's name in `runs` is its arm.
    """
    (first, reference), *others = runs.items()
    found: dict[tuple[str, str, str], Difference] = {}
    unchecked: dict[str, None] = {}
    for name, run in others:
        differences, unknown = _between(reference, run)
        unchecked |= dict.fromkeys(unknown)
        for each in differences:
            found.setdefault((each.name, str(each.a), str(each.b)), replace(each, of=(first, name)))
    return [*_seeds(runs), *found.values()], list(unchecked)


def _seeds(runs: dict[str, Measured]) -> list[Difference]:
    """Arms with other seeds than the first arm's: other weights, and other text in another order."""
    arms: dict[str, set[Any]] = {}
    for name, each in runs.items():
        if not (each.is_log and "seed" not in each.run.parity):
            arms.setdefault(name[0], set()).add(each.run.parity.get("seed", ABSENT))
    said = {
        arm: next(iter(seeds)) if len(seeds) == 1 else " and ".join(sorted(map(str, seeds)))
        for arm, seeds in arms.items()
    }
    first = next(iter(said), "")
    way_out = (
        "a gap is found within one seed: train both with each seed (make compare SEEDS=), or leave the odd one out"
    )
    return [
        Difference("seed", said[first], seeds, way_out, (first, arm))
        for arm, seeds in said.items()
        if arms[arm] != arms[first]
    ]


def _between(a: Measured, b: Measured) -> tuple[list[Difference], list[str]]:
    facts, unchecked = _facts(a, b)
    found = (_not_succeeded, _watched, _unsound, _validation_set)
    differences = [*(each for of_kind in found for each in of_kind(a, b)), *facts]
    if (flops := _flops(a, b)) is None:
        unchecked.append("flops_per_token")
    return [*differences, *(flops or []), *_lines(a, b)], unchecked


def _not_succeeded(a: Measured, b: Measured) -> list[Difference]:
    ends = [soundness.verdict(each.run, each.lines) for each in (a, b)]
    bad = [each for each, (verdict, _) in zip((a, b), ends, strict=True) if verdict != Verdict.SUCCEEDED]
    if not bad:
        return []
    said = [f"{verdict} ({cause})" if cause else str(verdict) for verdict, cause in ends]
    again = dict.fromkeys(_command(each.run.precision.get("name")) for each in bad)
    return [Difference("verdict", *said, f"mend the cause, then {' and '.join(again)} again")]


def _watched(a: Measured, b: Measured) -> list[Difference]:
    """What watches a step slows it: no run that was profiled or measured is compared, not even with another such."""
    found = [soundness.watched(each.run) for each in (a, b)]
    if not any(found):
        return []
    said = ["{} {} to {}".format(each[0], *each[1]) if each else "no" for each in found]
    way_out = "train again with neither make profile nor make sensitivity, which slow the steps they watch"
    return [Difference("watched iterations", *said, way_out)]


def _unsound(a: Measured, b: Measured) -> list[Difference]:
    """Records that contradict themselves, and one that is a copy of the other."""
    found = [soundness.contradictions(each.run, each.lines) for each in (a, b)]
    way_out = "take the undamaged record, or train again"
    differences = [
        Difference(name, *(each.get(name, "as it should be") for each in found), way_out)
        for name in dict.fromkeys([*found[0], *found[1]])
    ]
    if soundness.are_copies(a.run, b.run, (a.lines, b.lines)):
        differences.append(Difference("metrics", "one training", "the same one", "one is a copy: give two runs"))
    return differences


def _command(precision: str | None) -> str:
    """The make target that trains in a precision."""
    if precision not in PRECISIONS:
        return "the run"
    return f"`make {precision}`" if precision in ("bf16", "nvfp4") else f"`make train PRECISION={precision}`"


def _facts(a: Measured, b: Measured) -> tuple[list[Difference], list[str]]:
    facts = [each.run.parity | _image(each) for each in (a, b)]
    differences, unchecked = [], []
    for name in dict.fromkeys([*facts[0], *facts[1]]):
        values = [each.get(name, USUAL.get(name, ABSENT)) for each in facts]
        if not all(name in each for each in facts) and (a.is_log or b.is_log):
            unchecked.append(name)
        elif name != "seed" and not _same(*values):  # see `_seeds`
            way_out = SAME_SETTINGS
            if name == "start_iteration":
                way_out = "one was resumed from a checkpoint; run it again from the start, in a folder of its own"
            differences.append(Difference(name, *values, way_out))
    if a.is_log or b.is_log:
        known = facts[0].keys() & facts[1].keys()
        also = {"data"} if "data_path" in known else set()  # a log names its files, and a record what they hold
        unchecked += [name for name in MUST_BE_KNOWN if name not in known | also]
        told = [_sizes(each) for each in facts]
        if told != ["known", "known"]:
            differences.append(Difference(SETTINGS, *told, WHOLE_LOG))
    contexts = [each.run.context for each in (a, b)]
    for name in contexts[0]:
        values = [each.get(name, ABSENT) for each in contexts]
        if ABSENT not in values and not _same(*values):
            if name == "code":  # which commit that was, a person can look up
                values = [f"{run.code} (commit {run.commit[:12] or ABSENT})" for run in (a.run, b.run)]
            differences.append(Difference(name, *values, "", void=False))
    if all(each.run.precision.get("arithmetic") == "emulated" for each in (a, b)):
        emulators = [each.run.precision.get("emulator", ABSENT) for each in (a, b)]
        if ABSENT in emulators and (a.is_log or b.is_log):
            unchecked.append("emulator")
        elif emulators[0] != emulators[1]:  # the same work, rounded otherwise and at another speed
            differences.append(Difference("emulator", *emulators, "", void=False))
    return differences, unchecked


def _sizes(facts: dict[str, Any]) -> str:
    """Whether a log gives every size of its model; where it gives some, which are not there."""
    missing = [name for name in MODEL_SIZES if name not in facts]
    if not missing:
        return "known"
    return NO_SIZE if len(missing) == len(MODEL_SIZES) else f"{', '.join(missing)} {NO_SIZE}"


def _image(of: Measured) -> dict[str, Any]:
    """The container's image, which the launcher knows and training does not; on a cluster its name alone."""
    image = of.run.plan.get("image") or {}
    known = image.get("digest") or image.get("name")
    return {"image": known} if known else {}


def _validation_set(a: Measured, b: Measured) -> list[Difference]:
    """Validation sets of other lengths, where those were recorded; the text itself is named by the fact `data`."""
    known = [((each.run.environment.get("text") or {}).get("tokens") or {}).get("validation") for each in (a, b)]
    if None in known or known[0] == known[1]:
        return []
    return [Difference("validation set", *(f"{tokens:,} tokens" for tokens in known), SAME_SETTINGS)]


def _same(a: Any, b: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    return math.isclose(a, b, rel_tol=1e-9) if numbers else a == b


def _flops(a: Measured, b: Measured) -> list[Difference] | None:
    """FLOPs a token differ by more than rounding: another model or sequence. None where one is not known."""
    values = [each.run.environment.get("flops_per_token") for each in (a, b)]
    if None in values:
        return None
    rounding = sum(each.run.environment.get("flops_resolution") or 0.0 for each in (a, b))
    if math.isclose(*values, rel_tol=FLOPS_TOLERANCE + rounding):
        return []
    return [Difference("flops_per_token", *(f"{value:.4g}" for value in values), SAME_SETTINGS)]


def _lines(a: Measured, b: Measured) -> list[Difference]:
    """What the recorded iterations themselves have against a comparison."""
    recorded = [len(each.lines) for each in (a, b)]
    if not all(recorded):
        way_out = "train again: without a finished iteration nothing can be compared"
        return [Difference(NO_ITERATIONS, *recorded, way_out)]
    found = []
    skipped = [soundness.skipped(each.lines) for each in (a, b)]
    if skipped[0] != skipped[1]:
        way_out = "a skipped iteration trains nothing: find what made its gradients infinite, and train again"
        found.append(Difference("skipped iterations", *skipped, way_out))
    impossible = [soundness.impossible_times(each.lines) for each in (a, b)]
    if any(impossible):
        way_out = "no clock gives these; take the undamaged record or log, or train again"
        found.append(Difference("zero or negative step times", *impossible, way_out))
    every = [each.paired.every for each in (a, b)]
    if every[0] != every[1]:
        way_out = "their lines end with no common iterations: print both alike"
        found.append(Difference("log_interval", *every, way_out))
    found += _batches(a, b)
    timed = [len(each.times) for each in (a, b)]
    if min(timed) < FEWEST_TIMED:
        name = "timed iterations" if every == [1, 1] else f"timed lines of {max(every)} iterations"
        way_out = f"train for at least {2 * FEWEST_TIMED * max(every)} iterations"
        found.append(Difference(name, *timed, way_out + ", or print more often" * (max(every) > 1)))
    return found


def _batches(a: Measured, b: Measured) -> list[Difference]:
    """The first iteration at which the batches differ, as they grow."""
    _, at_a, at_b = np.intersect1d(a.paired.iterations, b.paired.iterations, return_indices=True)
    sizes = [each.paired.column("global_batch_size")[at] for each, at in ((a, at_a), (b, at_b))]
    other = np.flatnonzero(np.abs(sizes[0] - sizes[1]) > 1e-6 * sizes[0])
    if not len(other) or a.run.parity.get("global_batch_size") != b.run.parity.get("global_batch_size"):
        return []
    said = (f"{size[other[0]]:g} at iteration {a.paired.iterations[at_a[other[0]]]:.0f}" for size in sizes)
    return [Difference("batch as it grows", *said, SAME_SETTINGS)]


def work(void: list[Difference], not_known: list[str]) -> str:
    """Whether the runs did the same work, "" where they did: from what differs, and `MUST_BE_KNOWN` that is unknown."""
    said = []
    if any(each.name != SETTINGS for each in void):
        said.append("Forced: these runs did not do the same work.")
    elif void:
        said.append("Forced: whether these runs did the same work is not known.")
    elif not_known:
        said.append("Whether these runs did the same work is not known.")
    if not_known:
        everything = any(NO_SIZE in (each.a, each.b) for each in void if each.name == SETTINGS)
        names = ", ".join(not_known)
        said.append(f"Not checked: all settings ({names})." if everything else f"Not checked: {names}.")
    return " ".join(said)
