"""GPU listing against recorded NVML answers, the gate, and which GPU a job gets."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import pynvml
import pytest

from playbook import gpus, jobs
from playbook.runtimes import local
from pretraining.errors import UsageError
from pretraining.precision import PRECISIONS

_spec = importlib.util.spec_from_file_location("recorded_nvml", Path(__file__).with_name("recorded_nvml.py"))
recorded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recorded)

NVFP4, FP8, BF16 = PRECISIONS["nvfp4"], PRECISIONS["fp8"], PRECISIONS["bf16"]


def read(machine=None, **more) -> gpus.Inventory:
    return gpus.read(recorded.RecordedNvml(machine, **more))


def test_a_dgx_station_lists_both_of_its_unlike_gpus() -> None:
    found = read(recorded.STATION)
    assert (found.driver, found.cuda, found.problem) == ("580.95.05", "13.0", "")
    workstation, gb300 = found.gpus
    assert (gb300.index, gb300.name, gb300.capability, gb300.memory) == (1, "NVIDIA GB300", (10, 3), 301_989_888_000)
    assert "302 GB" in str(gb300) and "10.3" in str(gb300)
    assert str(workstation.users[0]) == "Xorg (process 2211, 0.4 GB)"
    assert gb300.precisions() == ["bf16", "fp8", "mxfp8", "nvfp4"]
    assert workstation.precisions() == ["bf16", "fp8"]


def test_a_gb10_has_no_memory_of_its_own() -> None:
    (gpu,) = read(recorded.GB10).gpus
    assert gpu.memory is None and "memory not reported" in str(gpu)
    assert gpu.users[0].memory is None
    with pytest.raises(UsageError, match="NVIDIA GB10"):
        gpus.choose((gpu,), [NVFP4], None)


def test_the_station_gives_nvfp4_the_gb300() -> None:
    gpu, why = gpus.choose(read(recorded.STATION).gpus, [NVFP4], None)
    assert gpu.index == 1 and why == "the only one of 2 GPUs that trains in nvfp4"


def test_the_station_gives_bf16_the_largest() -> None:
    gpu, why = gpus.choose(read(recorded.STATION).gpus, [BF16], None)
    assert gpu.index == 1 and why == "the largest of 2 GPUs that train in bf16"


def test_an_h200_is_refused_nvfp4_with_the_commands_that_would_work() -> None:
    with pytest.raises(UsageError) as refusal:
        gpus.choose(read(recorded.H200).gpus, [NVFP4], None)
    said = str(refusal.value)
    assert "GPU 0 NVIDIA H200 (151 GB, compute capability 9.0)" in said
    assert "compute capability 10.0 or 10.3" in said
    assert "make nvfp4 PRECISION=fp8" in said and "make nvfp4 EMULATE=1" in said
    assert "mxfp8" not in said


EVERY = ("bf16", "fp8", "fp8_blockwise", "mxfp8", "nvfp4")
TRAINS = {  # what each of the recorded machines has a GPU for, of two at a time
    "STATION": {("bf16", "fp8"), ("bf16", "mxfp8"), ("bf16", "nvfp4"), ("fp8", "mxfp8"), ("fp8", "nvfp4"),
                ("mxfp8", "nvfp4")},
    "H200": {("bf16", "fp8"), ("bf16", "fp8_blockwise"), ("fp8", "fp8_blockwise")},
}  # fmt: skip


@pytest.mark.parametrize("machine", TRAINS)
@pytest.mark.parametrize("pair", list(itertools.combinations(EVERY, 2)), ids="-".join)
def test_a_job_of_two_precisions_gets_a_gpu_that_trains_in_both_or_none(machine: str, pair: tuple[str, str]) -> None:
    found = read(getattr(recorded, machine)).gpus
    for names in (pair, pair[::-1]):
        wanted = [PRECISIONS[name] for name in names]
        if pair in TRAINS[machine]:
            gpu, _ = gpus.choose(found, wanted, None)
            assert all(gpu.trains_in(each) for each in wanted)
        else:
            with pytest.raises(UsageError, match=r"(needs|no GPU here trains in all of)[\s\S]*found: GPU"):
                gpus.choose(found, wanted, None)


@pytest.mark.parametrize(
    ("names", "emulate", "words", "missing"),
    [
        (("fp8", "nvfp4"), False, "^nvfp4 needs FP4[^\n]*\n  found: GPU 0 NVIDIA H200", "fp8 needs"),
        (("mxfp8", "nvfp4"), True, "^mxfp8 needs a Blackwell", "nvfp4 needs"),
        (("nvfp4", "mxfp8"), False, "^nvfp4 needs[^\n]*\nmxfp8 needs", "EMULATE=1"),
        (("bf16", "nvfp4"), False, "compare A=bf16 B=fp8\n  would work: the same with EMULATE=1", "make nvfp4"),
    ],
)  # fmt: skip
def test_a_refusal_names_each_precision_that_is_missing_and_what_would_work(names, emulate, words, missing) -> None:
    with pytest.raises(UsageError, match=words) as refusal:
        gpus.choose(read(recorded.H200).gpus, [PRECISIONS[name] for name in names], None, emulate=emulate)
    assert missing not in str(refusal.value)


def test_emulation_stands_in_for_nvfp4_beside_what_is_native() -> None:
    assert gpus.choose(read(recorded.H200).gpus, [FP8, NVFP4], None, emulate=True)[1] == "the only GPU"


@pytest.mark.parametrize(
    ("job", "refused"),
    [
        (("compare", "--a", "fp8"), "nvfp4 needs FP4"),
        (("compare", "--b", "fp8", "--a", "nvfp4"), "nvfp4 needs FP4"),
        (("compare", "--a", "fp8", "--b", "mxfp8"), "mxfp8 needs"),
        (("compare", "--a", "mxfp8", "--emulate"), "mxfp8 needs"),
        (("ablate",), "nvfp4 needs FP4"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("visible", ["", "0", "GPU-"], ids=["chosen", "numbered", "named"])
def test_every_precision_is_checked_before_anything_trains(monkeypatch, tmp_path, job, refused, visible) -> None:
    inventory = read(recorded.H200)
    monkeypatch.setattr(gpus, "read", lambda: inventory)
    monkeypatch.setattr(local, "check", lambda: None)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inventory.gpus[0].uuid if visible == "GPU-" else visible)
    with pytest.raises(UsageError, match=refused):
        jobs.run([*job, "--runtime", "local", "--runs", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_of_unlike_gpus_the_visible_one_counts(monkeypatch) -> None:
    inventory = read(recorded.STATION)
    assert gpus.named(inventory.gpus, [inventory.gpus[0].uuid]) == inventory.gpus[:1]
    assert gpus.named(inventory.gpus, ["0"]) == gpus.named(inventory.gpus, [""]) == inventory.gpus


def test_an_h200_trains_in_fp8_and_emulates_nvfp4() -> None:
    h200 = read(recorded.H200).gpus
    assert gpus.choose(h200, [FP8], None)[1] == "the only GPU"
    assert gpus.choose(h200, [NVFP4], None, emulate=True)[0].name == "NVIDIA H200"


@pytest.mark.parametrize("asked", ["0", "GPU-0a6f1c52-7d55-8e0a-0d4e-51c9be3f7a10", "gpu-0a6f", "0a6f1c52"])
def test_a_gpu_is_asked_for_by_index_or_uuid(asked: str) -> None:
    assert gpus.choose(read(recorded.STATION).gpus, [BF16], asked) == (read(recorded.STATION).gpus[0], "asked for")


def test_asking_for_the_wrong_one_of_two_names_the_right_one() -> None:
    with pytest.raises(UsageError, match=r"would work: make nvfp4 GPU=1 \(NVIDIA GB300\)"):
        gpus.choose(read(recorded.STATION).gpus, [NVFP4], "0")


@pytest.mark.parametrize("asked", ["7", "GPU-ffff", "", "gpu"])
def test_a_gpu_that_is_not_there(asked: str) -> None:
    with pytest.raises(UsageError, match="GPU-1b7e90aa"):
        gpus.choose(read(recorded.STATION).gpus, [BF16], asked)


def test_one_gpu_off_the_bus_does_not_hide_the_other() -> None:
    found = read({**recorded.STATION, "gpus": [None, recorded.STATION["gpus"][1]]})
    assert [gpu.index for gpu in found.gpus] == [1]
    assert "GPU 0 does not answer" in found.notes[0]


def test_no_driver_and_no_gpu_is_no_problem(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpus, "PCI_DEVICES", tmp_path)
    assert read(fails=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND) == gpus.Inventory()


def test_a_gpu_without_a_driver_is_a_problem_and_never_a_cpu_run(tmp_path, monkeypatch) -> None:
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    monkeypatch.setattr(gpus, "PCI_DEVICES", tmp_path)
    assert "install the driver" in read(fails=pynvml.NVML_ERROR_DRIVER_NOT_LOADED).problem


def test_an_updated_driver_needs_a_restart() -> None:
    assert "restart the machine" in read(fails=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH).problem


def test_gpus_of_one_kind_train_together() -> None:
    def gpu(index: int, name: str) -> gpus.Gpu:
        return gpus.Gpu(index, f"GPU-{index}", name, (10, 3), 288 * 10**9)

    station = (gpu(0, "NVIDIA RTX PRO 6000"), gpu(1, "NVIDIA GB300"), gpu(2, "NVIDIA GB300"))
    assert gpus.alike(station, station[2], 2) == (station[2], station[1])
    with pytest.raises(UsageError, match=r"NPROC=3: this machine has 2 x NVIDIA GB300 \(of 3 GPUs; unlike ones"):
        gpus.alike(station, station[1], 3)
