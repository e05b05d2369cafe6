"""All runs there are, newest first, with how each ended."""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from playbook import PROJECT
from playbook.common.tables import print_table
from playbook.compare import model, soundness
from playbook.compare.figures import measure, of_run
from playbook.record import loading
from pretraining.errors import UsageError
from pretraining.record import lock, run_folder
from pretraining.request.flags import RUNS

UNREADABLE = "unreadable"
RUNNING = "running"


@dataclass(frozen=True)
class Entry:
    name: str
    path: str
    started: str  # UTC
    precision: str
    arithmetic: str
    model: str
    verdict: str  # "unreadable" where the folder is damaged, "running" while its lock is held; `cause` then says more
    cause: str
    iterations: int | None = None  # done; this and the next with those of the run that it goes on from
    of: int | None = None  # wanted
    step_time: float | None = None  # s, the median of the timed iterations; None of a run whose steps were watched
    tokens_per_second: float | None = None
    loss: float | None = None  # nats a token, the mean of the last tenth
    profiled: bool = False  # by `make profile`
    measured: bool = False  # by `make sensitivity`


def entries(runs: Path) -> list[Entry]:
    """The runs in a folder, newest first; a damaged one is among them."""
    found = []
    for folder in runs.glob("*/"):
        try:
            if run_folder.holds_run(folder) or (folder / run_folder.PLAN).exists():
                found.append(_entry(folder))
        except (UsageError, OSError) as error:
            if not folder.is_dir():  # removed meanwhile
                continue
            written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(folder.stat().st_mtime))
            found.append(Entry(folder.name, str(folder.absolute()), written, "", "", "", UNREADABLE, str(error)))
    return sorted(found, key=lambda entry: (entry.started, entry.name), reverse=True)


def _entry(folder: Path) -> Entry:
    run = loading.load(folder, samples=False)
    measured = measure(run)
    figures = of_run(measured, ("step_time", "tokens_per_second", "training_loss"))
    step_time, rate, loss = (each and each.value for each in figures.values())
    request = run.plan.get("request") or {}
    how, _ = soundness.watched(run) or ("", [])
    verdict, cause = soundness.verdict(run, measured.lines)
    if verdict == run_folder.Verdict.INCOMPLETE and lock.processes(folder) and (used := lock.in_use(folder)):
        verdict, cause = RUNNING, used
    return Entry(
        name=folder.name,
        path=str(folder.absolute()),
        started=run.environment.get("started") or run.plan.get("created") or "",
        precision=run.precision.get("name") or request.get("precision") or "",
        arithmetic=run.precision.get("arithmetic") or "",
        model=run.environment.get("model") or request.get("model") or "",
        verdict=verdict,
        cause=cause,
        iterations=measured.window.last,
        of=run.parity.get("train_iters") or request.get("train_iters"),
        step_time=None if how else step_time,
        tokens_per_second=None if how else rate,
        loss=loss,
        profiled=how == "profiled",
        measured=how == "measured",
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="List all runs, newest first.")
    parser.add_argument("--json", action="store_true", help="as a JSON array")
    parser.add_argument("--runs", type=Path, default=PROJECT / RUNS, help="the folder that holds them")
    given = parser.parse_args(arguments)
    found = entries(given.runs) if given.runs.is_dir() else []
    if given.json:
        json.dump([asdict(entry) for entry in found], sys.stdout, indent=2)
        print()
    elif found:
        _show(found)
    else:
        print(f"There is no run in {given.runs} yet: make compare, make nvfp4 or make bf16 makes one.")
    return 0


def _show(found: list[Entry]) -> None:
    rows = [["run", "precision", "verdict", "done", "step", "loss"]]
    for entry in found:
        done = f"{entry.iterations}/{entry.of}" if entry.of is not None else "-"
        watched = "profiled" * entry.profiled or "measured" * entry.measured
        step = watched or _seconds(entry.step_time)
        loss = f"{entry.loss:.4f}" if entry.loss is not None else "-"
        precision = model.label(entry.precision, entry.arithmetic) or "-"
        rows.append([entry.name, precision, entry.verdict, done, step, loss])
    styles = ["" if entry.verdict == run_folder.Verdict.SUCCEEDED else "yellow" for entry in found]
    print_table(rows, left=3, styles=styles)
    for entry in found:
        if entry.verdict == UNREADABLE:
            print(f"{UNREADABLE}: {entry.cause}")


def _seconds(step: float | None) -> str:
    if step is None:
        return "-"
    return f"{step:.2f} s" if step >= 10 else f"{step * 1000:.1f} ms" if step < 1 else f"{step * 1000:,.0f} ms"
