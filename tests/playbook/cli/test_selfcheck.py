"""`make selfcheck` on the host: where it runs, what its container gets, and what it says without such a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from playbook.cli import entry, selfcheck, train
from playbook.launch import start
from playbook.plan import gpus, place
from playbook.plan.place import Image, Place
from pretraining.record import run_folder
from pretraining.selfcheck import FAST_MATH

_spec = importlib.util.spec_from_file_location("recorded_nvml", Path(__file__).parents[1] / "recorded_nvml.py")
recorded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recorded)


@pytest.fixture
def check(monkeypatch, tmp_path: Path, capsys):
    """`check(machine, "--dry-run")`: exit code and what was said."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.setenv("HF_TOKEN", "hush")
    monkeypatch.setattr(place.local_python, "inside_container", lambda: False)
    read = gpus.read

    def run(machine, *flags: str) -> tuple[int, str, str]:
        inventory = read(recorded.RecordedNvml(machine)) if machine else gpus.Inventory()
        monkeypatch.setattr(gpus, "read", lambda: inventory)
        words = ["selfcheck", "--runs", str(tmp_path / "runs"), "--cache-dir", str(tmp_path / "cache"), *flags]
        code = entry.run("run", lambda: train.run(words))
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("machine", "found"),
    [(None, "no NVIDIA GPU"), (recorded.H200, "NVIDIA H200")],
)
def test_without_fp4_tensor_cores_it_says_what_is_needed_and_what_can_be_done(check, tmp_path, machine, found) -> None:
    code, out, said = check(machine)
    assert (code, out) == (2, "") and not (tmp_path / "runs").exists()
    assert "compute capability 10.0 or 10.3" in said and found in said.split("found: ")[1].splitlines()[0]
    assert "make test " in said and "make test-gpu " in said


@pytest.mark.parametrize("flags", [(), ("--tag", "26.08")])
def test_a_gpu_that_is_to_be_probed_needs_a_newer_image(check, tmp_path, flags) -> None:
    code, out, said = check(recorded.GB10, *flags)
    assert (code, out) == (2, "") and not (tmp_path / "runs").exists()
    assert "GB10 is to be probed first" in said and "2.19 or newer" in said and "EMULATE=1" in said and "TAG=" in said


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
@pytest.mark.parametrize("machine", [None, recorded.STATION])
def test_the_cpu_is_refused_printed_or_not(check, machine, flags) -> None:
    code, out, said = check(machine, "--runtime", "cpu", *flags)
    assert (code, out) == (2, "") and "compute capability 10.0 or 10.3" in said


def test_it_runs_in_the_container_on_the_gpu_that_can(check, monkeypatch, tmp_path) -> None:
    station = gpus.read(recorded.RecordedNvml(recorded.STATION)).gpus
    where = Place("container", gpu=station[1], image="nvcr.io/nvidia/nemo:26.04")
    chosen = []
    monkeypatch.setattr(start, "find_place", lambda *asked: chosen.append(asked) or where)
    code, out, _ = check(recorded.STATION, "--dry-run")
    assert code == 0 and chosen[0][1].name == "nvfp4" and not (tmp_path / "runs").exists()
    assert station[1].uuid in out and station[0].uuid not in out
    assert f"source={selfcheck.VECTORS},target={selfcheck.VECTORS},readonly" in out
    assert "-nvfp4-selfcheck" in out and "HF_TOKEN" not in out and FAST_MATH not in out
    monkeypatch.setenv(FAST_MATH, "0")
    assert f"-e {FAST_MATH}=0" in check(recorded.STATION, "--dry-run")[1]


@pytest.mark.parametrize("written", [True, False])
def test_its_exit_code_is_the_scripts_and_no_empty_folder_stays(check, monkeypatch, tmp_path, written) -> None:
    station = gpus.read(recorded.RecordedNvml(recorded.STATION)).gpus
    where = Place("container", gpu=station[1], image="x", found=Image("x", "sha256:1", "/bin", 1))
    monkeypatch.setattr(start, "find_place", lambda *asked: where)
    monkeypatch.setattr(start, "ready", lambda place, runs: place)
    monkeypatch.setattr("shutil.which", lambda name: name)

    def foreground(command: list[str]) -> int:
        folder = Path(command[command.index("--folder") + 1])
        assert folder.is_dir() and command[:2] == ["docker", "run"]
        if written:
            (folder / run_folder.SELFCHECK).write_text("{}")
        return 1 if written else 2

    monkeypatch.setattr(selfcheck.local, "in_foreground", foreground)
    assert check(recorded.STATION)[0] == (1 if written else 2)
    assert len(list((tmp_path / "runs").glob(f"*/{run_folder.SELFCHECK}"))) == written
    assert len(list((tmp_path / "runs").iterdir())) == written


def test_the_script_alone_says_what_is_missing(project: Path, tmp_path: Path, environment) -> None:
    ended = subprocess.run(
        [sys.executable, str(project / "assets" / "selfcheck.py"), "--folder", str(tmp_path / "x")],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and not (tmp_path / "x").exists()
    assert "selfcheck: this Python has no " in ended.stderr and "NeMo image" in ended.stderr
