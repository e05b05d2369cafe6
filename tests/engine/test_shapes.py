"""Every shape that NVIDIA's image may have, as root and as an ordinary user of this machine: who works inside, that all
files are the user's, that no container is left, and that each cause is named.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import image_shapes
import pytest
import standin_image
from conftest import HERE, Host, Station, wait_for
from image_shapes import SHAPES, Shape

pytestmark = [pytest.mark.shapes, pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")]
ORDINARY = 12345  # nobody whom an image knows
# What may be read on the way to this Python and this project, root alone or not, an ordinary user reads here too.
READS = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
LONG = ("--train-iters", "100000")
SECONDS = 60


@pytest.fixture(scope="session")
def shapes(engine: Host) -> dict[str, str]:
    """An image of each shape, by its tag."""
    base, settled = engine.image("packages"), engine.image("settled")
    with contextlib.closing(engine.client(timeout=300)) as api, tempfile.TemporaryDirectory() as folder:
        standin_image.import_root(api, base, packages=image_shapes.packages(Path(folder)))
        image_shapes.build_settled(api, base, settled)
        for name, shape in SHAPES.items():
            image_shapes.build(api, settled, engine.image(shape.tag), name)
    return {name: shape.tag for name, shape in SHAPES.items()}


@pytest.fixture
def station(station: Station) -> Iterator[Station]:
    """A station whose home others can reach, with a blank in its path: pytest's own folders are root's alone."""
    with tempfile.TemporaryDirectory(prefix="a home ", ignore_cleanup_errors=True) as folder:
        station.home = Path(folder)
        yield station


class Person:
    """Somebody at a station, whose launcher really is theirs."""

    def __init__(self, station: Station, number: int) -> None:
        self.station, self.number = station, number
        words = (f"--reuid={number}", f"--regid={number}", "--clear-groups", *READS)
        self.before = ("setpriv", *words) if number else ()
        os.chown(station.home, number, number)
        if station.engine.own:
            station.engine.own.socket.chmod(0o666)  # as a member of the group docker has it

    def start(self, job: str, *flags: str, tag: str) -> subprocess.Popen[str]:
        own = {"HOME": str(self.station.home), "USER": "somebody"}
        return self.station.start(job, *flags, tag=tag, before=self.before, **own)

    def run(self, job: str, *flags: str, tag: str) -> tuple[int, str]:
        process = self.start(job, *flags, tag=tag)
        printed, _ = process.communicate(timeout=SECONDS)
        return process.returncode, printed

    def data(self, *flags: str, tag: str, lines: int = 1000) -> subprocess.Popen[str]:
        """`make data` of so many lines in the station's home."""
        text = self.station.home / "text"
        text.mkdir(exist_ok=True)
        (text / "a.txt").write_text("one line\n" * lines)
        words = [*self.before, sys.executable, str(HERE / "launcher.py"), "data", "--runtime", "container", "--tag"]
        words += [self.station.engine.image(tag), "--input", "text/a.txt", "--tokenizer", "bytes", "--out", "out/a"]
        process = subprocess.Popen(
            [*words, *flags], cwd=self.station.home, text=True, start_new_session=True,
            env=self.station.environment(HOME=str(self.station.home), USER="somebody"),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.station.started.append(process)
        return process

    def others_files(self) -> list[str]:
        """What in the home is not theirs."""
        inside = (path for path in self.station.home.rglob("*") if path.name != "text" and path.parent.name != "text")
        return [f"{path}: {path.lstat().st_uid}" for path in inside if path.lstat().st_uid != self.number]

    def leaves_nothing(self) -> None:
        assert self.others_files() == []
        assert self.station.api.containers(all=True) == []


@pytest.fixture(params=[0, ORDINARY], ids=["root", "ordinary"])
def person(request: pytest.FixtureRequest, station: Station) -> Iterator[Person]:
    if request.param and shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is not installed")
    yield Person(station, request.param)


@pytest.fixture(params=list(SHAPES))
def shape(request: pytest.FixtureRequest, shapes: dict[str, str]) -> Shape:
    return SHAPES[request.param]


def test_doctor_says_what_is_inside_and_who_works_there(shape: Shape, station: Station) -> None:
    code, printed = Person(station, ORDINARY).run("doctor", "--json", "--precision", "bf16", tag=shape.tag)
    checks = {each["name"]: each["found"] for each in json.loads(printed)["checks"]}
    assert code == 0, printed
    bridge, core = shape.versions
    assert f"megatron-bridge {bridge}, megatron-core {core}" in checks["inside the image"]
    who = f"{re.escape(shape.closed)}\\S* \\(mode 0700" if shape.closed else "me: all of it can be read"
    assert re.match(who, checks["user in the container"])


def test_training(person: Person, shape: Shape) -> None:
    closed = shape.closed if person.number else ""
    code, printed = person.run("bf16", tag=shape.tag)
    assert code == 0, printed
    assert ("files are handed to you" in printed) == bool(closed)
    assert person.station.outcome()["verdict"] == "succeeded"
    person.leaves_nothing()


def test_a_killed_launchers_files_are_handed_over_by_the_next_command(shapes, station: Station) -> None:
    person, tag = Person(station, ORDINARY), SHAPES["root-python"].tag
    running = person.start("bf16", *LONG, tag=tag)
    folder = station.training()
    running.kill()
    running.communicate()
    (container,) = station.containers()
    assert person.others_files(), "root works inside"
    station.api.kill(container["Id"])
    code, printed = person.run("bf16", tag=tag)
    assert code == 0 and f"run {folder.name} ended while nobody watched: killed" in printed, printed
    person.leaves_nothing()


def test_and_so_are_those_of_a_killed_make_data(shapes, station: Station) -> None:
    person, tag = Person(station, ORDINARY), SHAPES["editable-closed"].tag
    running = person.data("--workers", "1", tag=tag, lines=10**7)
    wait_for(lambda: list(station.home.glob("out/a.building/*")) or running.poll() is not None)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    (container,) = station.api.containers(all=True)
    assert person.others_files(), "root works inside"
    station.api.kill(container["Id"])
    code, printed = person.run("bf16", tag=tag)
    assert code == 0, printed
    person.leaves_nothing()


def test_who_works_inside_can_be_chosen(shapes, station: Station) -> None:
    person = Person(station, ORDINARY)
    code, printed = person.run("bf16", "--container-user", "me", tag=SHAPES["root-python"].tag)
    assert code == 1 and "/root (mode 0700, of user 0, group 0)" in printed and "CONTAINER_USER=root" in printed
    assert not station.runs.exists()
    running = person.start("bf16", *LONG, "--container-user", "root", tag=SHAPES["open-python"].tag)
    station.training()
    asked = station.api.inspect_container(station.containers()[0]["Id"])["Config"]
    assert asked["User"] == "0:0"
    running.send_signal(signal.SIGINT)
    printed, _ = running.communicate(timeout=SECONDS)
    assert running.returncode == 130, printed
    person.leaves_nothing()


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("/opt/Megatron-Bridge/src", "has no megatron.bridge where its Python (/opt/venv/bin/python) looks"),
        ("/opt/Megatron-Bridge", "has no megatron.core and no megatron.bridge where its Python"),
        ("/opt/venv", "is no NeMo image: it has no Python on its PATH (/opt/venv/bin:/root/.local/bin"),
    ],
)
def test_an_image_that_lacks_what_trains(shapes, station: Station, gone: str, says: str) -> None:
    name = station.engine.image("lacking")
    image_shapes.without(station.api, station.engine.image(SHAPES["editable"].tag), name, gone)
    for job in ("bf16", "doctor"):
        code, printed = station.run(job, tag="lacking")
        printed = " ".join(printed.split())
        assert code == 1 and f"{name} {says}" in printed and "TAG=26.04" in printed, printed
    if gone != "/opt/venv":
        assert "found: " in printed and "torch 2.11.0" in printed
    assert not station.runs.exists() and station.api.containers(all=True) == []


def test_data(person: Person, shape: Shape) -> None:
    process = person.data(tag=shape.tag)
    printed, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, printed
    assert {"a.bin", "a.idx"} <= {path.name for path in (person.station.home / "out").iterdir()}
    person.leaves_nothing()


def test_stopped_in_the_middle(person: Person, shape: Shape) -> None:
    running = person.start("bf16", *LONG, tag=shape.tag)
    person.station.training()
    (container,) = person.station.containers()
    inside = person.station.api.inspect_container(container["Id"])["Config"]["User"]
    assert inside == ("0:0" if shape.closed and person.number else f"{person.number}:{person.number}")
    running.send_signal(signal.SIGINT)
    printed, _ = running.communicate(timeout=SECONDS)
    assert running.returncode == 130, printed
    assert person.station.outcome()["verdict"] == "interrupted"
    person.leaves_nothing()
