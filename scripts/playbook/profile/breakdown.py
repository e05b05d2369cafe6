"""Where the time of a profiled step goes, from the run's `trace.json.gz`; kept beside it in `profile.json`.

On a GPU by its kernels: each instant counts once, for what is computed rather than for communication that runs at the
same time, and what no kernel covers is idle. The vocabulary projection is the product before a loss and the two after
it, its gradients; where the loss has no kernel of its own it stays among the products. On the CPU by its operators,
each without those that it calls; what no operator covers is Python, Megatron's own and this project's.
"""

import gzip
import json
import textwrap
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from playbook.common.tables import empty_table
from playbook.compare.figures import measure
from playbook.profile import kernels
from playbook.profile.kernels import Kind
from playbook.record import loading
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.record.run_folder import Run

_ON_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}
_ON_CPU = {"cpu_op", "user_annotation"}
_STEP = "ProfilerStep#"
IDLE, OUTSIDE = "idle: no kernel runs", "outside operators: Python"


@dataclass(frozen=True)
class Row:
    kind: str
    milliseconds: float  # a step
    calls: float = 0.0  # a step
    largest: str = ""  # the name that most of it goes to; "" for idle time
    of_it: float = 0.0  # that name's part of it, 0 to 1


@dataclass(frozen=True)
class Breakdown:
    step: float  # ms, the mean of the profiled ones
    steps: int  # how many were profiled
    rows: list[Row]  # they add up to `step`
    on_gpu: bool  # whether they are kernels


@dataclass(frozen=True)
class _Event:
    name: str
    start: float  # microseconds
    end: float
    thread: Any


def read(trace: Path) -> Breakdown:
    """Take a trace apart. Raises UsageError where it is not there, is none, or has no step in it."""
    try:
        with gzip.open(trace, "rt", encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
    except FileNotFoundError as error:
        raise UsageError(f"{trace} does not exist: the run was not profiled, or broke off; `make profile`") from error
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{trace} cannot be read as a trace ({error}); `make profile` makes a new one") from error
    steps = [event for event in _of(events, {"user_annotation"}) if event.name.startswith(_STEP)]
    if not steps:
        raise UsageError(f"{trace} has no training step in it; `make profile` makes one that has")
    first, last = min(step.start for step in steps), max(step.end for step in steps)
    inside = [event for event in _of(events, _ON_GPU) if event.start < last and event.end > first]
    whole = (last - first) / 1000 / len(steps)
    if inside:
        rows, left = _by_kernel(inside, first, last, len(steps)), IDLE
    else:
        operators = [event for event in _of(events, _ON_CPU) if event.thread == steps[0].thread]
        rows, left = _by_operator(operators, first, last, len(steps)), OUTSIDE
    rest = whole - sum(row.milliseconds for row in rows)
    return Breakdown(whole, len(steps), [*rows, Row(left, rest)], bool(inside))


def _of(events: Iterable[dict[str, Any]], categories: set[str]) -> Iterator[_Event]:
    for event in events:
        if event.get("cat") in categories and event.get("ph") == "X":
            start = float(event["ts"])
            yield _Event(event["name"], start, start + float(event["dur"]), event.get("tid"))


def _by_kernel(events: list[_Event], first: float, last: float, steps: int) -> list[Row]:
    kind_of = lru_cache(maxsize=None)(kernels.of_kernel)
    of_kind: dict[Kind, list[_Event]] = defaultdict(list)
    vocabulary = _around_losses(events, kind_of)
    for event in events:
        of_kind[Kind.VOCABULARY if id(event) in vocabulary else kind_of(event.name)].append(event)
    rows, covered = [], np.empty((0, 2))
    for kind in Kind:
        if not of_kind[kind]:
            continue
        spans = np.array([[max(event.start, first), min(event.end, last)] for event in of_kind[kind]])
        together = _merged(np.concatenate([covered, spans]))
        own = _length(together) - _length(covered)
        covered = together
        by_name: Counter[str] = Counter()
        for event in of_kind[kind]:
            by_name[event.name] += event.end - event.start
        rows.append(_row(kind, own, len(of_kind[kind]), by_name, steps))
    return rows


def _around_losses(events: list[_Event], kind_of: Callable[[str], Kind]) -> set[int]:
    """The products of the vocabulary projection, by identity."""
    is_loss = lru_cache(maxsize=None)(kernels.is_of_loss)
    found: set[int] = set()
    before: _Event | None = None
    gradients = 0  # of the last loss, that are to come
    for event in sorted(events, key=lambda event: event.start):
        if is_loss(event.name):
            found |= {id(before)} if before else set()
            gradients = 2
        elif kind_of(event.name) is Kind.PRODUCTS:
            if gradients:
                found.add(id(event))
                gradients -= 1
            before = event
    return found


def _merged(spans: np.ndarray) -> np.ndarray:
    """Intervals, as rows of start and end, as the fewest that cover the same."""
    spans = spans[np.argsort(spans[:, 0])]
    reached = np.maximum.accumulate(spans[:, 1])
    begins = np.concatenate([[True], spans[1:, 0] > reached[:-1]])
    ends = np.concatenate([begins[1:], [True]])
    return np.stack([spans[begins, 0], reached[ends]], axis=1)


def _length(spans: np.ndarray) -> float:
    return float((spans[:, 1] - spans[:, 0]).sum())


def _by_operator(events: list[_Event], first: float, last: float, steps: int) -> list[Row]:
    """Self times: an operator's own, without those inside it."""
    own: dict[Kind, Counter[str]] = defaultdict(Counter)
    calls: Counter[Kind] = Counter()
    inside: list[tuple[_Event, Kind | None]] = []  # the operators that are open, the innermost last
    kind_of = lru_cache(maxsize=None)(kernels.of_operator)
    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        if event.name.startswith(_STEP) or event.start < first or event.end > last:
            continue
        while inside and inside[-1][0].end <= event.start:
            inside.pop()
        outer, within = inside[-1] if inside else (None, None)
        kind = within if within in kernels.WHOLE else kind_of(event.name)
        own[kind][event.name] += event.end - event.start
        calls[kind] += 1
        if outer is not None:
            own[within][outer.name] -= min(event.end, outer.end) - event.start
        inside.append((event, kind))
    return [_row(kind, sum(own[kind].values()), calls[kind], own[kind], steps) for kind in Kind if own[kind]]


def _row(kind: Kind, microseconds: float, calls: int, by_name: Counter[str], steps: int) -> Row:
    name, most = by_name.most_common(1)[0]
    whole = sum(by_name.values())
    return Row(kind, microseconds / 1000 / steps, calls / steps, name, most / whole if whole else 0.0)


def keep(folder: Path) -> None:
    """Write `profile.json` beside a run's trace. Raises UsageError where it is no profiled run."""
    run_folder.write_json(folder / run_folder.PROFILE, asdict(read(folder / run_folder.TRACE)))


def load(folder: Path) -> Breakdown:
    """What was kept of a run's trace, which is large; or of the trace itself. Raises UsageError as `read`."""
    kept = folder / run_folder.PROFILE
    if not kept.is_file():
        return read(folder / run_folder.TRACE)
    try:
        content = json.loads(kept.read_text(encoding="utf-8"))
        return Breakdown(**content | {"rows": [Row(**row) for row in content["rows"]]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{kept} cannot be read as a profile ({error}); remove it to read the trace again") from error


def table(found: Breakdown) -> list[list[str]]:
    """Its rows, the last of them the whole step: kind, ms a step, per cent, calls, most of it."""
    rows = []
    for row in found.rows:
        most = f"{row.of_it:.0%} {_short(row.largest)}" if row.largest else ""
        share = 100 * row.milliseconds / found.step
        rows.append([row.kind, f"{row.milliseconds:,.2f}", f"{share:.1f}", f"{row.calls:,.0f}" if most else "", most])
    return [*rows, [f"a step, mean of {found.steps}", f"{found.step:,.2f}", "100.0", "", ""]]


def show(folder: Path) -> None:
    """Print where a run's time goes, and how to open its trace. Raises UsageError where it is no profiled run."""
    found = load(folder)
    rows = table(found)
    titles = ("where the time goes", "ms a step", "%", "calls", f"most of it{'' if found.on_gpu else ', on its own'}")
    console = Console(highlight=False)
    shown = empty_table()
    room = console.width
    for at, title in enumerate(titles[:4]):
        least = max(len(cell) for cell in (title, *(row[at] for row in rows)))
        shown.add_column(title, justify="right" if at else "left", no_wrap=True, min_width=least)
        room -= least + 2 + (at > 0)  # the padding
    shown.add_column(titles[4], no_wrap=True, max_width=max(len(titles[4]), room))  # the only one that gives way
    for row in rows:
        shown.add_row(*row)
    console.print()
    console.print(shown)
    if words := beside(loading.load(folder), found):
        print(f"\n{textwrap.fill(words, console.width)}")
    if (folder / run_folder.TRACE).is_file():
        print(f"\nThe trace: {folder / run_folder.TRACE}\nOpen it at https://ui.perfetto.dev or in chrome://tracing.")


def _short(name: str) -> str:
    """A kernel's name without its namespaces and template arguments, in some 40 characters."""
    plain = name.removeprefix("void ").split("<")[0].split("(")[0] if not name.startswith("<") else name
    plain = plain.split("::")[-1] if plain.count("::") > 1 else plain
    return plain if len(plain) <= 40 else f"{plain[:37]}..."


def beside(run: Run, found: Breakdown) -> str:
    """How much slower the profiled steps were than those before them; "" where there are none."""
    profiled = run.environment.get("profiled")
    if not profiled:
        return ""
    lines = measure(run).lines
    settled = (lines.iterations > 2) & (lines.iterations < profiled[0] - 1)  # the one before warms the profiler up
    before = lines.column("step_time_s")[settled]
    if not len(before):
        return ""
    plain = 1000 * float(np.median(before))
    return (
        f"The steps before, without the profiler: {plain:,.1f} ms (median of {len(before)}); profiled "
        f"{100 * (found.step / plain - 1):+.1f} %. Shares are to be read, not the step time."
    )
