"""A run whose launcher was killed: followed and stopped by another one."""

import os
import re
import signal
from pathlib import Path

import pytest

from pretraining.record import lock, run_folder
from pretraining.record.run_folder import Verdict


@pytest.fixture
def orphaned(launch, until):
    """A training whose launcher was killed."""
    launched = launch("nvfp4", FAKE="slow")
    until(lambda: launched.iterations() >= 2, 60)
    launched.process.kill()
    launched.process.wait()
    assert launched.trainings()
    return launched


@pytest.mark.parametrize("named", [True, False])
def test_a_run_whose_launcher_is_gone_can_be_stopped(launch, orphaned, named: bool) -> None:
    ended = launch("stop", *(("--run", orphaned.folder.name) if named else ()))
    said, errors = ended.process.communicate(timeout=60)
    assert ended.process.returncode == 0, errors
    assert said == f"stopped {orphaned.folder.name}: interrupted\n"
    assert orphaned.read().outcome["cause"] == "interrupted by SIGINT" and not orphaned.trainings()


@pytest.mark.parametrize(
    ("name", "runtime", "code", "words"),
    [
        ("nope", "cpu", 2, "RUN=nope is no run folder, here or in "),
        ("one", "cpu", 2, "no run of this project is running"),
        (None, "cpu", 2, "no run of this project is running"),
        (None, "container", 1, "run one is or was in a container, and no Docker engine answers at DOCKER_HOST="),
        ("one", "container", 1, "run one is or was in a container, and no Docker engine answers at DOCKER_HOST="),
    ],
)
def test_an_engine_is_missed_only_for_a_run_that_went_into_it(
    launch, tmp_path: Path, name: str | None, runtime: str, code: int, words: str
) -> None:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    plan = {"kind": run_folder.KIND, "schema": 1, "request": {"runtime": runtime}}
    run_folder.write_json(folder / run_folder.PLAN, plan)
    ended = launch("stop", *(("--run", name) if name else ()), DOCKER_HOST="unix:///nonexistent/docker.sock")
    _, errors = ended.process.communicate(timeout=60)
    assert ended.process.returncode == code and words in errors and errors.count("\n") == 1


def test_a_run_whose_plan_is_damaged_can_be_stopped(launch, orphaned) -> None:
    (orphaned.folder / run_folder.PLAN).write_text("{")
    ended = launch("stop")
    said, errors = ended.process.communicate(timeout=60)
    assert (ended.process.returncode, said) == (0, f"stopped {orphaned.folder.name}: interrupted\n"), errors
    assert not orphaned.trainings()


def test_a_run_whose_launcher_is_gone_can_be_followed_once_and_stopped_there(launch, orphaned, until) -> None:
    attached = launch("attach")
    until(lambda: lock.watcher(orphaned.folder) == attached.process.pid, 60)
    second = launch("attach", "--run", str(orphaned.folder))
    _, errors = second.process.communicate(timeout=60)
    assert second.process.returncode == 2 and f"watched already, by process {attached.process.pid}" in errors
    attached.process.send_signal(signal.SIGINT)
    said, _ = attached.process.communicate(timeout=60)
    assert attached.process.returncode == 130
    assert re.search(r"nvfp4 tiny: following, from iteration \d+ of 8", said)
    assert orphaned.read().verdict is Verdict.INTERRUPTED and not orphaned.trainings()


def test_an_end_that_attach_saw_and_training_could_not_tell(launch, orphaned, until) -> None:
    attached = launch("attach")
    until(lambda: lock.watcher(orphaned.folder) == attached.process.pid, 60)
    (number,) = orphaned.trainings()
    os.kill(number, signal.SIGKILL)
    _, errors = attached.process.communicate(timeout=60)
    assert attached.process.returncode == 1 and "while no launcher watched it" in errors
    assert orphaned.read().verdict is Verdict.KILLED


def test_a_watched_run_is_stopped_too_and_its_launcher_sees_it(launch, until) -> None:
    launched = launch("nvfp4", FAKE="slow")
    until(lambda: launched.iterations() >= 2, 60)
    ended = launch("stop")
    said, errors = ended.process.communicate(timeout=60)
    assert (ended.process.returncode, said) == (0, f"stopped {launched.folder.name}: interrupted\n"), errors
    assert launched.process.wait(timeout=60) == 130
    assert launched.read().outcome["cause"] == "interrupted by SIGINT"
