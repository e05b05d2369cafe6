"""GPU listing against recorded NVML answers, the gate, and which GPU a job gets."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import pynvml
import pytest

from playbook.cli import train
from playbook.common import pci
from playbook.plan import gpus, local_python, place
from pretraining.errors import UsageError
from pretraining.request.precisions import PRECISIONS

_spec = importlib.util.spec_from_file_location("recorded_nvml", Path(__file__).parents[1] / "recorded_nvml.py")
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
    assert gb300.precisions() == ["bf16", "fp8", "fp8_delayed", "mxfp8", "nvfp4"]
    assert workstation.precisions() == ["bf16", "fp8", "fp8_delayed", "nvfp4 (to be probed)"]


def test_a_gb10_has_no_memory_of_its_own() -> None:
    (gpu,) = read(recorded.GB10).gpus
    assert gpu.memory is None and "memory not reported" in str(gpu)
    assert gpu.users[0].memory is None
    assert gpus.choose((gpu,), [NVFP4], None) == (gpu, "the only GPU")
    assert gpu.probed([NVFP4, FP8]) == ["nvfp4"] and gpu.probed([NVFP4], emulate=True) == []
    with pytest.raises(UsageError, match="NVIDIA GB10"):
        gpus.choose((gpu,), [PRECISIONS["mxfp8"]], None)


def test_the_station_gives_nvfp4_the_gb300() -> None:
    gpu, why = gpus.choose(read(recorded.STATION).gpus, [NVFP4], None)
    assert gpu.index == 1 and why == "the only one of 2 GPUs that trains in nvfp4 without a probe"


def test_the_station_gives_bf16_the_largest() -> None:
    gpu, why = gpus.choose(read(recorded.STATION).gpus, [BF16], None)
    assert gpu.index == 1 and why == "the largest of 2 GPUs that train in bf16"


def test_an_h200_is_refused_nvfp4_with_the_commands_that_would_work() -> None:
    with pytest.raises(UsageError) as refusal:
        gpus.choose(read(recorded.H200).gpus, [NVFP4], None)
    said = str(refusal.value)
    assert "GPU 0 NVIDIA H200 (151 GB, compute capability 9.0)" in said
    assert "compute capability 10.0 or 10.3" in said
    assert "make train PRECISION=fp8" in said and "make nvfp4 EMULATE=1" in said
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
    monkeypatch.setattr(local_python, "check", lambda: None)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inventory.gpus[0].uuid if visible == "GPU-" else visible)
    with pytest.raises(UsageError, match=refused):
        train.run([*job, "--runtime", "local", "--runs", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_a_gpu_that_is_to_be_probed_is_told_before_the_start(monkeypatch) -> None:
    inventory = read(recorded.GB10)
    monkeypatch.setattr(gpus, "read", lambda: inventory)
    said = [place.choose(place.Wanted(emulate=emulate), NVFP4, BF16).choices["GPU"].reason for emulate in (False, True)]
    assert "nvfp4 to be probed at the start" in said[0] and "probed" not in said[1]


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
    with pytest.raises(UsageError, match=r"would work: make train PRECISION=mxfp8 GPU=1 \(NVIDIA GB300\)"):
        gpus.choose(read(recorded.STATION).gpus, [PRECISIONS["mxfp8"]], "0")
    workstation = read(recorded.STATION).gpus[0]
    assert gpus.choose(read(recorded.STATION).gpus, [NVFP4], "0") == (workstation, "asked for"), "a probe decides"


@pytest.mark.parametrize("asked", ["7", "GPU-ffff", "", "gpu"])
def test_a_gpu_that_is_not_there(asked: str) -> None:
    with pytest.raises(UsageError, match="GPU-1b7e90aa"):
        gpus.choose(read(recorded.STATION).gpus, [BF16], asked)


def test_one_gpu_off_the_bus_does_not_hide_the_other() -> None:
    found = read({**recorded.STATION, "gpus": [None, recorded.STATION["gpus"][1]]})
    assert [gpu.index for gpu in found.gpus] == [1]
    ((said, remedy),) = found.notes
    assert said.startswith("GPU 0 does not answer: it fell off the bus") and "restart the machine" in remedy
    assert found.problem == ""


def test_the_only_gpu_off_the_bus_is_a_problem_and_never_a_cpu_run() -> None:
    found = read({**recorded.STATION, "gpus": [None]})
    assert found.gpus == () and "GPU 0 does not answer: it fell off the bus" in found.problem


def test_no_driver_and_no_gpu_is_no_problem(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pci, "PCI_DEVICES", tmp_path)
    assert read(fails=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND) == gpus.Inventory()


@pytest.fixture
def on_the_bus(tmp_path, monkeypatch) -> None:
    """An NVIDIA GPU sits in the machine, whatever its driver says."""
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    monkeypatch.setattr(pci, "PCI_DEVICES", tmp_path)


@pytest.mark.parametrize(
    ("code", "cause", "remedy"),
    [
        (pynvml.NVML_ERROR_NO_PERMISSION, "this user may not open its devices", "usermod -aG"),
        (pynvml.NVML_ERROR_INSUFFICIENT_POWER, "too little power", "power cables"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "its driver is not loaded", "modprobe nvidia"),
        (pynvml.NVML_ERROR_IRQ_ISSUE, "interrupts", "dmesg"),
        (pynvml.NVML_ERROR_TIMEOUT, "did not answer in time", "dmesg"),
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "its driver is not installed", "ubuntu-drivers install"),
        (pynvml.NVML_ERROR_CORRUPTED_INFOROM, "infoROM", "nvidia-smi -q"),
        (pynvml.NVML_ERROR_GPU_IS_LOST, "fell off the bus", "seat, power and cooling"),
        (pynvml.NVML_ERROR_RESET_REQUIRED, "has to be reset", "nvidia-smi --gpu-reset"),
        (pynvml.NVML_ERROR_OPERATING_SYSTEM, "operating system", "started again with the GPU"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "old kernel module is still loaded", "restart the machine"),
        (pynvml.NVML_ERROR_UNKNOWN, "unknown error", "in a container, restart that"),
        (pynvml.NVML_ERROR_MEMORY, "does not answer", "dmesg"),
    ],
)
def test_every_error_of_the_driver_has_its_own_remedy(on_the_bus, code: int, cause: str, remedy: str) -> None:
    problem = read(fails=code).problem
    assert problem.startswith("an NVIDIA GPU is in this machine") and cause in problem and remedy in problem
    installs = code in (
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_MEMORY,
    )
    assert ("install the driver" in problem) is installs, "the driver is there already"


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, pynvml.NVML_ERROR_GPU_IS_LOST])
def test_errors_that_only_a_gpu_gives_need_no_other_proof(tmp_path, monkeypatch, code: int) -> None:
    monkeypatch.setattr(pci, "PCI_DEVICES", tmp_path)
    assert read(fails=code).problem
    assert not read(fails=pynvml.NVML_ERROR_UNKNOWN).problem


def test_in_mig_mode_the_instances_are_the_gpus() -> None:
    small, large = read(recorded.DIVIDED).gpus
    assert str(small) == "GPU 0:0 NVIDIA GB300 MIG 1g.35gb (35 GB, compute capability 10.3)"
    assert (large.label, large.memory, large.users[0].pid) == ("0:2", 149_250_179_072, 4410)
    assert gpus.choose((small, large), [NVFP4], None) == (large, "the largest of 2 GPUs that train in nvfp4")


@pytest.mark.parametrize("asked", ["MIG-3f0c7d11-52aa-5b1e-9c40-8d2e6a7b1c90", "mig-3f0c", "3f0c7d", "0:0"])
def test_an_instance_is_asked_for_by_uuid_or_place(asked: str) -> None:
    assert gpus.choose(read(recorded.DIVIDED).gpus, [NVFP4], asked)[0].instance == 0


@pytest.mark.parametrize("asked", ["0", "GPU-7c1d2e3f", "0:1"])
def test_a_divided_gpu_is_no_gpu_to_cuda(asked: str) -> None:
    with pytest.raises(UsageError, match=r"GPU 0:2 NVIDIA GB300 MIG 4g\.139gb .*, MIG-b8e21a6c"):
        gpus.choose(read(recorded.DIVIDED).gpus, [NVFP4], asked)


def test_instances_do_not_train_together() -> None:
    with pytest.raises(UsageError, match="NPROC=2: MIG instances do not train together"):
        gpus.for_job(read(recorded.DIVIDED).gpus, [NVFP4], None, count=2)


def test_mig_mode_without_an_instance_says_how_to_make_one() -> None:
    machine = {**recorded.DIVIDED, "gpus": [{**recorded.DIVIDED["gpus"][0], "mig": {}}]}
    found = read(machine)
    assert found.gpus == () and "GPU 0 is in MIG mode and has no instance: sudo nvidia-smi mig -i 0" in found.problem
    beside = read({**machine, "gpus": [*machine["gpus"], recorded.STATION["gpus"][0]]})
    assert [gpu.index for gpu in beside.gpus] == [1] and beside.problem == "" and "-mig 0" in beside.notes[0][1]


def test_gpus_of_one_kind_train_together() -> None:
    def gpu(index: int, name: str) -> gpus.Gpu:
        return gpus.Gpu(index, f"GPU-{index}", name, (10, 3), 288 * 10**9)

    station = (gpu(0, "NVIDIA RTX PRO 6000"), gpu(1, "NVIDIA GB300"), gpu(2, "NVIDIA GB300"))
    assert gpus.alike(station, station[2], 2) == (station[2], station[1])
    with pytest.raises(UsageError, match=r"NPROC=3: this machine has 2 x NVIDIA GB300 \(of 3 GPUs; unlike ones"):
        gpus.alike(station, station[1], 3)
