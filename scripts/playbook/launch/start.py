"""One training, from its plan to the word on how it ended."""

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from playbook.common.venvs import ensure
from playbook.launch import local
from playbook.launch.process import LocalProcess
from playbook.launch.progress import Progress
from playbook.launch.watch import Started, launch
from playbook.plan import place, plan
from playbook.plan.place import Place, Wanted
from pretraining.errors import UsageError
from pretraining.record import lock, run_folder
from pretraining.record.run_folder import Run, Verdict
from pretraining.request import settings
from pretraining.request.precisions import Precision
from pretraining.run import signals


def find_place(wanted: Wanted, *precisions: Precision) -> Place:
    """The place for a job in all of `precisions`, and of a container the engine.

    Raises as `place.choose`, and EngineError where a GPU is there, but no engine that can hand it over.
    """
    found = place.choose(wanted, *precisions)
    if found.runtime != "container":
        return found
    from playbook.launch.container import image
    from playbook.launch.container.prepare import on_engine

    probed = found.gpu.probed(precisions, emulate=wanted.emulate) if found.gpu else []
    if probed and (old := image.too_old_to_probe(image.named(wanted.tag))):
        raise UsageError(f"{probed[0]} on GPU {found.gpu.label} {found.gpu.name} is to be probed first. {old}")
    return on_engine(found, wanted)


def prepare(job: plan.Plan, folder: Path, flags: list[str]) -> tuple[list[str], str, Callable[[str], Started]]:
    """The command that trains in `folder`, its words and the same for a shell, and what starts it.

    That is given the name of the run that holds the folder. Raises UsageError where a container cannot mount it.
    """
    where, saves = job.place, job.grace_seconds is not None
    more = {signals.GRACE_VARIABLE: str(signals.GRACE_SECONDS)} if saves else {}
    if where.runtime == "container":
        from playbook.launch.container import container_process, engine, spec

        asked = spec.training(job.settings, where, folder, flags, processes=job.processes, more=more)
        words = asked.docker_run()
        typed = spec.script(asked, words)

        def start(run: str) -> Started:
            named = replace(asked, environment=asked.environment | {lock.VARIABLE: run})
            started = container_process.ContainerProcess.start(engine.connect(), named, folder)
            started.grace_seconds = job.grace_seconds or started.grace_seconds
            return started

    else:
        flags = [*flags, "--run-dir", str(folder)]
        words, environment = local.command(where.runtime, job.processes, flags, where.uuids)
        environment |= more
        set_here = [f"{name}={value}" for name, value in environment.items()]
        typed = shlex.join([*set_here, *job.settings.engine_switches, *words])

        def start(run: str) -> Started:
            return LocalProcess(words, environment | {lock.VARIABLE: run}, saves=saves)

    return words, typed, start


def ready(found: Place, runs: Path, *, alone: bool = True) -> Place:
    """Make a place from `find_place` ready for trainings: a container's as `prepare.ready` does, which can fail."""
    if found.runtime != "container":
        return found
    from playbook.launch.container import prepare

    return prepare.ready(found, runs, alone=alone)


def train(job: plan.Plan, runs: Path) -> Run:
    """Start it in a folder of its own and follow it to its end. Returns its record.

    Raises UsageError where its folder holds another run, or cannot be made or mounted; else as `watch.launch`.
    """
    chosen = job.settings
    folder = chosen.run_dir or new_folder(runs, chosen)
    lock.refuse_taken(folder)  # before anything is prepared for it
    if job.place.runtime == "cpu":
        ensure("cpu")
    words, _, start = prepare(job, folder, replace(chosen, run_dir=None).as_flags())
    try:
        folder.mkdir(parents=True, exist_ok=chosen.run_dir is not None)
    except OSError as error:
        if chosen.run_dir is None and folder.is_dir():  # another launcher was first, within the same second
            return train(job, runs)
        raise UsageError(f"the run folder {folder} cannot be made: {error.strerror}") from error
    with lock.hold(folder, lock.new_run(), "launcher") as held, lock.watch(folder):
        print(f"{chosen.precision.name}:")
        plan.show(job, folder)
        if held.problem:
            print(held.problem, file=sys.stderr)
        run_folder.write_json(folder / run_folder.PLAN, job.described(words))
        iterations = chosen.train_iters if chosen.trains else 0
        progress = Progress(folder, f"{chosen.precision.name} {chosen.model.name}", iterations)
        return launch(lambda: start(held.run), folder, progress)


def show_dry(job: plan.Plan, runs: Path) -> None:
    """Print the plan as comments, and the command that would start it: a shell script."""
    folder = job.settings.run_dir or new_folder(runs, job.settings)
    _, typed, _ = prepare(job, folder, replace(job.settings, run_dir=None).as_flags())
    print(f"# {job.settings.precision.name}, not started")
    plan.show(job, folder, margin="#   ")
    print(f"{typed}\n", flush=True)


def new_folder(runs: Path, chosen: settings.Settings) -> Path:
    """The path of a folder for a new run; it does not exist yet."""
    while True:
        folder = runs / run_folder.run_name(chosen.precision.name, chosen.model.name)
        if not folder.exists():
            return folder
        time.sleep(0.2)  # two runs within one second


def exit_code(ended: Run) -> int:
    """Say why a run did not succeed, where it did not, and which rank was slow. Returns the exit code."""
    if slowest := ended.outcome.get("slowest_rank"):
        print(f"  {run_folder.slowest_rank_sentence(slowest)}")
    if ended.verdict is Verdict.SUCCEEDED:
        return 0
    cause = ended.outcome.get("cause", "no outcome was written")
    precision = ended.plan.get("request", {}).get("precision", ended.folder.name)
    for line in ended.outcome.get("traceback", ()):  # of one rank among several
        print(f"  | {line}", file=sys.stderr)
    print(f"{precision}: {ended.verdict}: {cause}", file=sys.stderr)
    if (log := ended.folder / run_folder.LOG).exists():
        print(f"  all of it: {log}", file=sys.stderr)
    code = ended.outcome.get("exit_code", 1)
    return code if code in (2, 130) else 1
