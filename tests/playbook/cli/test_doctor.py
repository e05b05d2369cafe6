"""`make doctor` on recorded machines without an engine: what is a cross, what only a fact, and the exit code."""

from __future__ import annotations

import importlib.util
import json
import resource
from pathlib import Path

import pytest

from playbook.cli import doctor
from playbook.plan import gpus, local_python
from pretraining.errors import UsageError
from pretraining.record import lock
from pretraining.request import footprint
from pretraining.request.models import MODELS

_spec = importlib.util.spec_from_file_location("recorded_nvml", Path(__file__).parents[1] / "recorded_nvml.py")
recorded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recorded)


@pytest.fixture
def examine(monkeypatch, tmp_path, capsys):
    """`examine(machine, flags...)`: exit code and the checks by name."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(doctor.local_python, "inside_container", lambda: False)

    read = gpus.read

    def run(machine, *flags: str) -> tuple[int, dict[str, dict]]:
        inventory = read(recorded.RecordedNvml(machine)) if machine else gpus.Inventory()
        monkeypatch.setattr(gpus, "read", lambda: inventory)
        code = doctor.main(["--json", "--runs", str(tmp_path / "runs"), "--cache-dir", str(tmp_path / "c"), *flags])
        shown = json.loads(capsys.readouterr().out)
        assert shown["ok"] == (code == 0)
        return code, {each["name"]: each for each in shown["checks"]}

    return run


def test_without_a_gpu_the_cpu_runtime_is_ready(examine) -> None:
    code, checks = examine(None)
    assert code == 0
    assert checks["runtime"]["found"] == "cpu" and checks["GPU"]["ok"] is None


def test_a_training_whose_launcher_is_gone_is_told(examine, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    with lock.hold(folder, "one", "training"):
        code, checks = examine(None)
    assert code == 0 and checks["training"]["found"] == "run one (its launcher is gone) trains on this machine"
    assert "make stop" in checks["training"]["remedy"]


def test_a_station_without_an_engine_is_not_ready_and_says_what_to_do(examine) -> None:
    code, checks = examine(recorded.STATION)
    assert code == 1
    assert checks["Docker engine"]["ok"] is False and "DOCKER_HOST" in checks["Docker engine"]["found"]
    assert checks["Docker engine"]["remedy"]
    assert checks["nvfp4"]["ok"] and "GB300" in checks["nvfp4"]["found"]
    assert "nvfp4 (to be probed)" in checks["GPU 0"]["found"] and "Xorg" in checks["GPU 0"]["found"]
    assert "to be probed" not in checks["nvfp4"]["found"] + checks["GPU 1"]["found"]
    assert "nvfp4" in checks["GPU 1"]["found"] and "idle" in checks["GPU 1"]["found"]
    assert checks["NVIDIA driver"]["found"] == "580.95.05, CUDA up to 13.0"


def test_the_gate_is_a_cross_with_the_commands_that_would_work(examine) -> None:
    _, checks = examine(recorded.H200)
    assert checks["nvfp4"]["ok"] is False and "EMULATE=1" in checks["nvfp4"]["remedy"]
    _, checks = examine(recorded.H200, "--emulate")
    assert checks["nvfp4"]["ok"]
    _, checks = examine(recorded.H200, "--precision", "fp8")
    assert checks["fp8"]["ok"]


def test_a_gb10_says_that_its_memory_is_not_reported(examine) -> None:
    _, checks = examine(recorded.GB10)
    assert "memory not reported" in checks["GPU 0"]["found"]


def test_a_gb10s_nvfp4_is_to_be_probed(examine) -> None:
    _, checks = examine(recorded.GB10)
    assert checks["nvfp4"]["ok"] and checks["nvfp4"]["found"].endswith("the only GPU; to be probed at the start")
    _, checks = examine(recorded.GB10, "--emulate")
    assert "to be probed" not in checks["nvfp4"]["found"]


def test_a_checkpoint_needs_about_105_gb(examine, monkeypatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(0, 0, 50 * 10**9))
    _, checks = examine(recorded.STATION, "--model", "llama31-8b", "--save", "50")
    check = checks["disk for runs and a checkpoint"]
    assert check["ok"] is False and "about 106 GB needed" in check["found"]
    _, checks = examine(recorded.STATION, "--model", "llama31-8b")
    assert checks["disk for runs"]["ok"]


def test_parameters_are_the_published_ones() -> None:
    assert footprint.parameters(footprint.shape_of(MODELS["llama31-8b"].hf_config)) == 8_030_261_248


@pytest.fixture
def bare_metal(examine, monkeypatch, tmp_path):
    """`bare_metal({"torch": "2.8"}, flags...)`: what doctor says where python3 has these versions."""

    def run(versions: dict[str, str] | None, *flags: str) -> tuple[int, dict[str, dict]]:
        python = tmp_path / "python3"
        if versions is not None:
            python.write_text(f"#!/bin/sh\necho '{json.dumps(versions)}'\n")
            python.chmod(0o755)
        monkeypatch.setattr(doctor.local_python, "python", lambda: str(python))
        return examine(recorded.STATION, "--runtime", "local", *flags)

    return run


WHOLE = {
    "python": "3.12.3", "torch": "2.11.0+cu130", "cuda": "13.0", "cudnn": "9.10", "megatron-bridge": "0.4.0",
    "transformer-engine": "2.14.0",
}  # fmt: skip


def test_bare_metal_that_has_all(bare_metal) -> None:
    code, checks = bare_metal(WHOLE)
    assert code == 0, checks
    assert all(checks[name]["ok"] for name in ("Python", *list(WHOLE)[1:]))
    assert "GB" in checks["memory"]["found"]
    assert checks["shared memory"]["remedy"] == "" or "--ipc=host" in checks["shared memory"]["remedy"]


@pytest.mark.parametrize(("engine", "ok"), [("2.18.0", False), ("2.19.0", True), ("2.20.2", True)])
def test_bare_metal_needs_a_newer_engine_for_a_gpu_that_is_probed(bare_metal, engine, ok) -> None:
    _, checks = bare_metal({**WHOLE, "transformer-engine": engine}, "--gpu", "0")
    assert checks["transformer-engine"]["ok"] is ok and "needs 2.19 or newer" in checks["transformer-engine"]["found"]


def test_bare_metal_lists_what_is_missing(bare_metal) -> None:
    code, checks = bare_metal({"python": "3.12.3", "torch": "2.6.1+cu124", "cuda": "12.4", "cudnn": "9.10"})
    assert code == 1
    assert checks["torch"]["ok"] is False and checks["cuda"]["ok"] is False and checks["cudnn"]["ok"]
    assert "pip install" in checks["megatron-bridge"]["remedy"]


def test_nvfp4_needs_a_newer_transformer_engine_than_fp8(bare_metal) -> None:
    old = {**WHOLE, "transformer-engine": "2.7.0"}
    code, checks = bare_metal(old)
    assert code == 1 and "needs 2.8" in checks["transformer-engine"]["found"]
    assert bare_metal(old, "--precision", "fp8")[0] == 0


@pytest.mark.parametrize(
    ("flags", "least"),
    [
        (["--nvfp4", "switch=0.82:forward"], "2.19"),
        (["--nvfp4", "switch=0.82:bf16"], "2.8"),
        (["--nvfp4", "scale=4over6:weights"], "2.18"),
        (["--nvfp4", "scale=4over6:weights switch=0.82:forward"], "2.19"),
        (["--precision", "mxfp8", "--switch", "9:forward"], "2.19"),
        (["--precision", "mxfp8", "--switch", "9:bf16"], ""),
        (["--nvfp4", "switch=0.82:forward", "--emulate"], "2.10"),
    ],
)
def test_the_engine_is_as_new_as_the_recipe_and_the_switch_need(bare_metal, flags: list[str], least: str) -> None:
    _, checks = bare_metal({**WHOLE, "transformer-engine": "2.7.0"}, *flags)
    check = checks["transformer-engine"]
    assert check["ok"] is (not least) and (not least or f"needs {least} or newer" in check["found"])


@pytest.mark.parametrize("flags", [["--disable-fp4"], ["--precision", "bf16"]])
def test_bf16_needs_no_fp4_however_it_is_asked_for(bare_metal, flags: list[str]) -> None:
    code, checks = bare_metal({**WHOLE, "transformer-engine": "2.7.0"}, *flags)
    assert code == 0 and checks["bf16"]["ok"] and "nvfp4" not in checks


def test_no_shared_memory_is_a_cross(bare_metal, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "none")
    _, checks = bare_metal(WHOLE)
    assert checks["shared memory"]["ok"] is False and checks["shared memory"]["found"] == "0.00 GB"


@pytest.mark.parametrize("content", [None, "no program"])
def test_a_python_that_is_none_has_no_bridge(monkeypatch, tmp_path, content: str | None) -> None:
    python = tmp_path / "python3"
    if content:
        python.write_text(content)
        python.chmod(0o755)
    monkeypatch.setattr(local_python, "python", lambda: str(python))
    local_python.has_bridge.cache_clear()
    with pytest.raises(UsageError, match=r"has no megatron\.bridge"):
        local_python.check()
    local_python.has_bridge.cache_clear()


def test_a_python_that_does_not_start(bare_metal) -> None:
    code, checks = bare_metal(None)
    assert code == 1
    assert checks["Python"]["ok"] is False and "first on PATH" in checks["Python"]["remedy"]


@pytest.mark.parametrize(("limit", "ok"), [(resource.RLIM_INFINITY, True), (8 << 20, False)])
def test_locked_memory_is_a_limit_of_this_user(limit, ok, monkeypatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    check = doctor._locked_memory(needed=True)
    assert check.ok is ok and ("0.01 GB" in check.found) is not ok


def test_a_wrong_runtime_is_wrong_usage(examine) -> None:
    with pytest.raises(UsageError, match="RUNTIME=gpu"):
        examine(None, "--runtime", "gpu")


def test_for_people_each_cross_has_its_remedy_below(capsys) -> None:
    checks = [
        doctor.Check("one", True, "fine"),
        doctor.Check("two", False, "broken", "mend it"),
        doctor.Check("three", False, "old", "update", needed=False),
        doctor.Check("four", None, "a fact"),
    ]
    assert doctor.report(checks, as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "✓ one    fine" and lines[1] == "✗ two    broken" and lines[2].endswith("→ mend it")
    assert lines[-1] == "not ready: two"
    assert doctor.report(checks[:1] + checks[2:], as_json=False) == 0


def test_what_does_not_fit_goes_below_and_commands_stay_whole(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    doctor.report([doctor.Check("one", False, "word " * 20, "sudo " + "x" * 80)], as_json=False)
    first, second, *_, remedy, _, _ = capsys.readouterr().out.splitlines()
    assert len(first) <= 60 and second.startswith(" " * 7 + "word") and remedy.endswith("x" * 80)


def test_weights_of_hugging_face_are_asked_for(examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.hub, "access", lambda name: (False, f"{name} is gated", "accept its licence"))
    code, checks = examine(None, "--from", "hf:meta-llama/Llama-3.2-1B")
    assert code == 1 and checks["Hugging Face"]["found"] == "meta-llama/Llama-3.2-1B is gated"
    assert "Hugging Face" not in examine(None)[1]


def test_processes_beyond_the_gpus_of_one_kind_are_not_ready(examine) -> None:
    two = {**recorded.STATION, "gpus": [recorded.STATION["gpus"][1], {**recorded.STATION["gpus"][1], "uuid": "GPU-2"}]}
    _, checks = examine(two, "--nproc", "2")
    assert checks["nvfp4"]["ok"] and "on GPU 0 NVIDIA GB300 and GPU 1 NVIDIA GB300" in checks["nvfp4"]["found"]
    code, checks = examine(two, "--nproc", "8")
    assert code == 1 and "NPROC=8: this machine has 2 x NVIDIA GB300" in checks["nvfp4"]["found"]


def test_instances_are_listed_with_their_own_memory(examine) -> None:
    _, checks = examine(recorded.DIVIDED)
    assert "35 GB" in checks["GPU 0:0"]["found"] and "MIG-3f0c7d11" in checks["GPU 0:0"]["found"]
    assert "on GPU 0:2" in checks["nvfp4"]["found"] and "GPU 0" not in checks


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_on_several_gpus_holds_each_of_them(monkeypatch, processes: int) -> None:
    from playbook.launch.container.underway import Underway
    from playbook.plan.place import Wanted
    from pretraining.request.precisions import PRECISIONS

    one, two = ({**recorded.STATION["gpus"][1], "uuid": f"GPU-{number}"} for number in (1, 2))
    found = gpus.read(recorded.RecordedNvml({**recorded.STATION, "gpus": [one, two]}))
    held = Underway(Path("r"), None, gpu="GPU-2,GPU-1")
    monkeypatch.setattr(doctor, "in_containers", lambda _: [held])
    (check,) = doctor._container_checks(None, found, Wanted(processes=processes), PRECISIONS["nvfp4"])
    assert check.ok is False and check.needed
