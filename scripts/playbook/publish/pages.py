"""A published comparison as the project's own pages show it: what it ran on, its figures, and a line of a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from playbook.campaign import ablation, ablation_report
from playbook.campaign.ablation import Ablation
from playbook.compare import soundness
from playbook.compare.figures import measure
from playbook.compare.model import Comparison
from playbook.profile import breakdown
from playbook.report import export, wording
from playbook.report.canvas import Runs
from playbook.report.wording import joined
from pretraining.record import run_folder
from pretraining.record.run_folder import Run, Verdict

_PRODUCTS = {
    "torch": "PyTorch",
    "megatron-bridge": "Megatron-Bridge",
    "megatron-core": "Megatron-Core",
    "transformer-engine": "Transformer Engine",
    "triton": "Triton",
}


def section(comparison: Comparison, runs: Runs, *, records: str, pictures: Sequence[tuple[str, str]]) -> str:
    """The comparison for a page, without a heading.

    Args:
        runs: of each arm by name.
        records: the folder of its records, as the page says it.
        pictures: title and path of each, the path relative to the page.
    """
    everything = [run for arm in comparison.arms for run in runs[arm.name]]
    timed = dict.fromkeys(f"{run.timed.first} to {run.timed.last}" for arm in comparison.arms for run in arm.runs)
    counts = ", ".join(f"{arm.name} {len(arm.runs)}" for arm in comparison.arms)
    parts = [
        export.wrapped(
            f"{export.escaped(machine(everything))}. {export.escaped(work(everything))}; timed: iterations "
            f"{joined(list(timed))}; runs: {counts}. Records: `{records}`."
        ),
        export.wrapped(f"**{export.escaped(comparison.verdict)}**"),
        export.figures(comparison, wording.allocator_rows(comparison)),
        *map(export.escaped, wording.mfu_peaks(comparison)),
    ]
    for contrast in comparison.contrasts:
        parts += [f"{export.against(comparison, contrast)}:", *export.contrasted(contrast)]
    parts += [export.wrapped(export.escaped(wording.sentence(each))) for each in (comparison.scope, *comparison.bands)]
    if warnings := wording.warnings(comparison):
        parts.append("\n".join(f"- {export.escaped(warning)}" for warning in warnings))
    parts += [f"![{export.escaped(name)}]({path})" for name, path in pictures]
    if comparison.reproduce:
        parts += ["To repeat it:", f"    {export.on_one_line(comparison.reproduce)}"]
    return "\n\n".join(parts)


def ablated(of: Ablation, runs: Sequence[Run], *, records: str, pictures: Sequence[tuple[str, str]]) -> str:
    """An ablation for a page, without a heading; arguments as of `section`."""
    what = export.escaped(f"{machine(runs)}. {ablation.about(of)}")
    return ablation_report.section(of, f"{what}. Records: `{records}`.", pictures)


def profiled(run: Run, *, records: str, command: str) -> str:
    """Where the time of a profiled run's steps goes, for a page, without a heading; `command` made the run."""
    found = breakdown.load(run.folder)
    titles = ("where the time goes", "ms a step", "%", "calls", "most of it")
    parts = [
        export.wrapped(f"{export.escaped(machine([run]))}. {export.escaped(work([run]))}. Records: `{records}`."),
        export.as_table([titles, *breakdown.table(found)]),
        export.wrapped(breakdown.beside(run, found)),
    ]
    if command:
        parts += ["To repeat it:", f"    {command}"]
    return "\n\n".join(parts)


def listing(published: Sequence[tuple[str, Sequence[Run], Comparison | Ablation | None, str]]) -> str:
    """A table with a row for each folder of records, and below it the commands that repeat them.

    Of each folder its name, its runs in order, what they come to, and the command that made them, "" where not known.
    """
    rows, commands = [["folder", "on", "what", "runs", "result"]], []
    for name, runs, result, command in published:
        failed = [f"{run.folder.name}: {run.verdict}" for run in runs if run.verdict is not Verdict.SUCCEEDED]
        alone = [] if result else [run for run in runs if run.verdict is Verdict.SUCCEEDED]
        named = [f"{run.folder.name}: {_alone(run)}" if len(runs) > 1 else _alone(run) for run in alone]
        said = [result.verdict if result else "", "; ".join([*failed, *named])]
        rows.append([name, machine(runs), work(runs), len(runs), " ".join(filter(None, said))])
        if command:
            commands += [f"    # {name}", f"    {command}"]
    repeat = ["To repeat them:", "\n".join(commands)] if commands else []
    return "\n\n".join([export.as_table(rows, left=True), *repeat])


def _alone(run: Run) -> str:
    """The figures of a run that nothing is set against."""
    if (run.folder / run_folder.PROFILE).exists():  # its step times are no measurement
        found = breakdown.load(run.folder)
        most = sorted(found.rows, key=lambda row: -row.milliseconds)[:4]
        return "profile: " + ", ".join(f"{row.kind} {100 * row.milliseconds / found.step:.1f} %" for row in most)
    if watched := soundness.watched(run):
        how, (first, last) = watched
        return f"{how} in iterations {first} to {last}: its step times are no measurement"
    measured = measure(run)
    start = run.parity.get("start_iteration")
    resumed = [f"resumed at iteration {start}"] if start else []
    if measured.shared:
        return ", ".join([*resumed, "shared its GPU: its losses count, its step times do not"])
    result = measured.result
    figures = [result.step_time, result.tokens_per_second_per_gpu]
    if run.precision.get("arithmetic") == "native":  # an emulation's FLOP/s say nothing of the GPU
        figures.append(result.model_tflops_per_gpu)
    said = [(wording.value(each), wording.interval(each)) for each in figures if each]
    return ", ".join([*resumed, *(f"{value} ({ends})" if ends else value for value, ends in said)])


def machine(runs: Sequence[Run]) -> str:
    """Device, driver, versions, date and commit: "1x NVIDIA H200, driver 580.159.04, ..., 22 November 2026"."""
    return ", ".join(filter(None, (_each(runs, part) for part in (_device, _versions, _date, _commit))))


def work(runs: Sequence[Run]) -> str:
    """What was trained, in one clause."""
    return _each(runs, _work)


def _each(runs: Sequence[Run], part: Callable[[Run], str]) -> str:
    """What a function says of the runs, once where they are alike."""
    return " / ".join(filter(None, dict.fromkeys(map(part, runs))))


def _device(run: Run) -> str:
    device = run.environment.get("device") or {}
    words = {"driver": "driver {}", "cuda": "CUDA {}", "threads": "{} threads"}
    said = [word.format(device[name]) for name, word in words.items() if device.get(name)]
    count = run.parity.get("world_size") or 1
    name = device.get("name", "an unknown device")
    return ", ".join([f"{count}x {name}" if device.get("kind") == "gpu" else name, *said])


def _versions(run: Run) -> str:
    found = run.environment.get("versions") or {}
    said = [f"{name} {found[package]}" for package, name in _PRODUCTS.items() if package in found]
    return ", ".join([f"Python {found['python']}", *said] if "python" in found else said)


def _date(run: Run) -> str:
    started = run.environment.get("started")
    if not started:
        return ""
    day = datetime.fromisoformat(started)
    return f"{day.day} {day:%B %Y}"


def _commit(run: Run) -> str:
    commit, dirty, _ = run.commit.partition("-dirty")
    return f"commit {commit[:12]}{' and uncommitted changes' if dirty else ''}" if commit else ""


def _work(run: Run) -> str:
    facts = run.parity
    names = ("num_layers", "sequence_length", "global_batch_size", "micro_batch_size", "train_iters")
    if any(name not in facts for name in names):
        return str(run.environment.get("model") or "an unknown model")
    layers, sequence, batch, micro, iterations = (facts[name] for name in names)
    return (
        f"{run.environment.get('model')}, {layers} layers, sequence {sequence}, global batch {batch}, micro batch "
        f"{micro}, {iterations} iterations of {facts.get('data', 'unknown')} data"
    )
