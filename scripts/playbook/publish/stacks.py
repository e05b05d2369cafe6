"""What ran with each stack on a GPU: Megatron-Bridge, Megatron-Core and Transformer Engine, beside the oldest one."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from playbook.compare import soundness
from playbook.compare.figures import measure
from playbook.report import export
from pretraining import nemo_images
from pretraining.record.run_folder import Run, Verdict

PACKAGES = ("megatron-bridge", "megatron-core", "transformer-engine")
TITLES = ("Megatron-Bridge", "Megatron-Core", "Transformer Engine", "NeMo image", "on", "runs", "make test-gpu",
          "losses beside the first's", "step beside the first's")  # fmt: skip
# What two stacks, or two machines, may differ in and have done the same work.
_MAY_DIFFER = {"megatron_bridge", "megatron_core", "transformer_engine", "torch", "device", "driver", "cuda", "threads"}
_COUNTED = re.compile(r"(\d+) (passed|failed|errors?|skipped)\b")

Stack = tuple[str, ...]


class _Beside(NamedTuple):
    """A run beside one of the same work with the first stack: `step` is None where it says nothing of the stack."""

    loss: float
    step: float | None


def table(runs: Iterable[Run], tested: Iterable[Path]) -> str:
    """A row for each stack, oldest first.

    Args:
        runs: everything published; those without Transformer Engine are no GPU's, and are left out.
        tested: what `make test-gpu` printed, a file each, whose first line names the stack's Transformer Engine.
    """
    stacks: dict[Stack, list[Run]] = defaultdict(list)
    for run in runs:
        versions = run.environment.get("versions") or {}
        if all(package in versions for package in PACKAGES):
            stacks[tuple(versions[package] for package in PACKAGES)].append(run)
    outputs = [path.read_text(encoding="utf-8") for path in tested]
    ordered = sorted(stacks, key=_numbers)
    rows: list[Sequence[str]] = [TITLES]
    for stack in ordered:
        mine = stacks[stack]
        devices = sorted({run.environment["device"]["name"] for run in mine})
        beside = ("is the first",) * 2 if stack == ordered[0] else _beside(mine, stacks[ordered[0]])
        image = nemo_images.with_bridge(stack[0]) or "none known"
        rows.append([*stack, image, ", ".join(devices), _ran(mine), _tests(stack[-1], outputs), *beside])
    return export.as_table(rows, left=True)


def _numbers(stack: Stack) -> list[list[int]]:
    return [[int(part) for part in re.findall(r"\d+", version)] for version in stack]


def _kind(run: Run) -> str:
    """The precision and how it was computed: "bf16", "nvfp4 emulated", "nvfp4 by the reference"."""
    emulator = run.precision.get("emulator")
    how = {None: "", "reference": " by the reference"}.get(emulator, " emulated")
    return f"{run.precision.get('name')}{how}"


def _ran(runs: Sequence[Run]) -> str:
    """How many of each kind succeeded, how many of these were resumed, and how the others ended."""
    good = [run for run in runs if run.verdict is Verdict.SUCCEEDED]
    said = [f"{name} {count}" for name, count in sorted(Counter(map(_kind, good)).items())]
    if resumed := sum((run.parity.get("start_iteration") or 0) > 0 for run in good):
        said.append(f"resumed {resumed} of these")
    ends = Counter(str(run.verdict) for run in runs if run.verdict is not Verdict.SUCCEEDED)
    return ", ".join([*said, *(f"{verdict} {count}" for verdict, count in sorted(ends.items()))])


def _tests(engine: str, outputs: Sequence[str]) -> str:
    """The sums of the tests' outcomes; the first line may give two parts of a version."""
    counts: Counter[str] = Counter()
    for output in outputs:
        heading, _, rest = output.partition("\n")
        named = re.search(r"Transformer Engine (\d+(?:\.\d+)+)", heading)
        if named and f"{engine}.".startswith(f"{named[1]}."):
            for line in re.findall(r"^=+ (.*) in [\d.]+s\b.*=$", rest, re.MULTILINE):
                for count, what in _COUNTED.findall(line):
                    counts[what] += int(count)
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or "no record"


def _work(run: Run) -> str:
    """All that two stacks must share to be set side by side, as a text."""
    facts = {name: value for name, value in run.parity.items() if name not in _MAY_DIFFER}
    return json.dumps([facts, run.precision], sort_keys=True)


def _beside(runs: Sequence[Run], first: Sequence[Run]) -> tuple[str, str]:
    """Of each kind the largest relative difference of two losses, and the ratio of the steps."""
    found: dict[str, list[_Beside]] = defaultdict(list)
    theirs: dict[str, Run] = {}
    for run in filter(_comparable, first):
        theirs.setdefault(_work(run), run)
    for run in filter(_comparable, runs):
        if (other := theirs.get(_work(run))) is not None:
            found[_kind(run)].append(_pair(run, other))
    if not found:
        return ("no run of the same work",) * 2
    losses = [f"{kind} {max(pair.loss for pair in pairs):.1e}" for kind, pairs in sorted(found.items())]
    steps = {kind: [pair.step for pair in pairs if pair.step is not None] for kind, pairs in sorted(found.items())}
    timed = [f"{kind} {median(ratios):.3f}" for kind, ratios in steps.items() if ratios]
    return ", ".join(losses), ", ".join(timed) or "not alone on one kind of GPU"


def _comparable(run: Run) -> bool:
    return run.verdict is Verdict.SUCCEEDED and soundness.watched(run) is None and bool(run.train)


def _pair(run: Run, other: Run) -> _Beside:
    losses = {line["iteration"]: line["loss"] for line in other.train}
    gaps = [abs(line["loss"] / losses[line["iteration"]] - 1) for line in run.train if losses.get(line["iteration"])]
    mine, theirs = measure(run), measure(other)
    alike = run.environment["device"]["name"] == other.environment["device"]["name"]
    alone = not (mine.shared or theirs.shared)  # else other processes had memory of the GPU, and may have had its time
    ratio = mine.step.value / theirs.step.value if alike and alone and mine.step and theirs.step else None
    return _Beside(max(gaps, default=float("nan")), ratio)
