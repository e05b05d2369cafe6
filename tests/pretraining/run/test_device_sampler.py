"""The device sampler: what boards tell and what they do not, and that it is quick, cheap and never left behind."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pretraining.record import run_folder
from pretraining.record.run_folder import Peak
from pretraining.run import device_monitor, device_sampler

FAKES = Path(__file__).parents[1] / "fakes"
LINE = {"time", "device", "samples", "used_bytes", "process_bytes", "power_w"}
OURS = 4242
NOWHERE = 4_190_000  # no process of this machine has such a number


@pytest.fixture
def nvml() -> ModuleType:
    """The fake library, its boards as new."""
    spec = importlib.util.spec_from_file_location("fake_nvml", FAKES / "pynvml.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_process(monkeypatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def gpu(nvml: ModuleType, name: str) -> device_sampler.Gpu:
    return device_sampler.Gpu(nvml, 0, name, lambda: [OURS])


def line_of(device: device_sampler.Gpu) -> dict[str, Any]:
    second = device_sampler.Second(device)
    for _ in range(3):
        second.add()
    return second.line(at=1763806530.2)


def test_a_board_that_tells_everything(nvml) -> None:
    board = nvml.BOARDS["GPU-h200"]
    board.processes = [(OURS, 70 * 10**9), (17, 10**9)]
    second = device_sampler.Second(gpu(nvml, "h200"))  # torch says UUIDs without "GPU-"
    second.add()
    board.used, board.milliwatts = 72 * 10**9, 700_000
    second.add()
    board.used = 70 * 10**9
    second.add()
    assert second.line(at=1763806530.2) == {
        "time": 1763806530.2, "device": 0, "samples": 3, "used_bytes": 72 * 10**9, "process_bytes": 70 * 10**9,
        "power_w": 600.0,
    }  # fmt: skip
    second.add()
    assert second.line(at=1763806531.2)["used_bytes"] == 70 * 10**9  # of that second alone
    assert second.largest == {"used": 72 * 10**9, "process": 70 * 10**9}


def test_a_gb10_has_no_memory_of_its_own_to_tell(nvml) -> None:
    nvml.BOARDS["GPU-gb10"].processes = [(OURS, 30 * 10**9)]
    line = line_of(gpu(nvml, "GPU-gb10"))
    assert (line["used_bytes"], line["process_bytes"], line["power_w"]) == (None, 30 * 10**9, 400.0)


def test_a_driver_without_the_second_version_of_the_memory_call(nvml) -> None:
    assert line_of(gpu(nvml, "GPU-old"))["used_bytes"] == 71 * 10**9 + nvml.RESERVED
    assert line_of(gpu(nvml, "GPU-h200"))["used_bytes"] == 71 * 10**9


def test_a_board_that_tells_nothing_gives_nulls(nvml) -> None:
    line = line_of(gpu(nvml, "GPU-mute"))
    assert [line[name] for name in ("used_bytes", "process_bytes", "power_w")] == [None] * 3


def test_a_board_that_falls_off_the_bus_gives_nulls_from_then_on(nvml) -> None:
    second = device_sampler.Second(gpu(nvml, "GPU-h200"))
    second.add()
    assert second.line(0.0)["used_bytes"] == 71 * 10**9
    nvml.BOARDS["GPU-h200"].lacks |= {"memory", "power", "processes"}
    second.add()
    assert [second.line(1.0)[name] for name in ("used_bytes", "power_w")] == [None] * 2
    assert second.largest == {"used": 71 * 10**9}


@pytest.mark.parametrize(
    ("found", "held"),
    [
        ([(OURS, 5), (17, 9)], 5),
        ([(NOWHERE, 5)], 5),  # in a container: the host's number for what can only be the training
        ([(NOWHERE, 5), (NOWHERE + 1, 9)], None),  # or for one of two
        ([(os.getpid(), 5)], None),  # a process of this machine that is not the training
        ([(OURS, None)], None),
        ([], None),
    ],
    ids=["by number", "the only one in a container", "two in a container", "another", "not told", "none yet"],
)
def test_whose_memory_it_is(nvml, found: list[tuple[int, int | None]], held: int | None) -> None:
    nvml.BOARDS["GPU-h200"].processes = found
    assert gpu(nvml, "GPU-h200").sample().process == held


def test_whose_memory_it_is_is_asked_where_the_devices_own_figure_moved(nvml, monkeypatch) -> None:
    board = nvml.BOARDS["GPU-h200"]
    device, clock = gpu(nvml, "GPU-h200"), 100.0
    monkeypatch.setattr(device_sampler.time, "monotonic", lambda: clock)
    board.processes = [(OURS, 5)]
    assert device.sample().process == 5
    board.processes = [(OURS, 7)]
    assert device.sample().process == 5  # the same bytes are in use: not asked
    board.used += 2
    assert device.sample().process == 7
    board.processes, clock = [(OURS, 9)], clock + device_sampler.LINE
    assert device.sample().process == 9  # another's went as this came: seen within a second


@pytest.fixture
def started(tmp_path: Path) -> Iterator[device_monitor.Sampler]:
    """A sampler of this process's resident memory."""
    sampler_of_this = device_monitor.start(tmp_path, on_gpu=False)
    yield sampler_of_this
    sampler_of_this.stop()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / run_folder.SAMPLES).read_text().splitlines()]


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_it_looks_ten_times_a_second_for_a_hundredth_of_a_core(started, until, tmp_path: Path) -> None:
    until(lambda: "rate_hz" in started.describe(), 20)
    process, before, began = started._process.pid, processor_seconds(started._process.pid), time.time()
    time.sleep(4)
    used, seconds = processor_seconds(process) - before, time.time() - began
    largest = started.stop()
    assert used < 0.01 * seconds
    assert 0 < started.core_share < 0.01 and abs(started.core_share * seconds - used) < 0.03  # /proc counts in 0.01 s
    written = lines(tmp_path)
    assert all(set(line) == LINE and line["device"] == "cpu" for line in written)
    assert len(written) in (4, 5, 6)
    assert sum(line["samples"] for line in written) >= 10 * seconds
    whole = [later["time"] - earlier["time"] for earlier, later in pairwise(written[:-1])]
    assert all(0.8 < span < 1.3 for span in whole)
    resident = [line["process_bytes"] for line in written]
    assert largest == {Peak.RESIDENT_OF_ALL: max(resident)}
    assert 0.5 < max(resident) / int(Path("/proc/self/statm").read_text().split()[1]) / os.sysconf("SC_PAGE_SIZE") < 2
    assert started._process.returncode == 0


def test_a_stop_waits_for_nothing_and_may_come_twice(started, until) -> None:
    until(lambda: "rate_hz" in started.describe(), 20)
    began = time.monotonic()
    assert started.stop() and time.monotonic() - began < 1
    assert started.stop()


TRAINING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
from pathlib import Path
from pretraining.run import device_monitor as sampling
sampler = sampling.start(Path(sys.argv[1]), on_gpu=False)
held = b"x" * 150_000_000
print(sampler._process.pid, flush=True)
time.sleep(60)
"""


def exists(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_ends_with_a_training_that_is_killed_and_leaves_its_last_line(environment, until, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(tmp_path)],
        env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as training:  # fmt: skip
        process = int(training.stdout.readline())
        until(lambda: (tmp_path / run_folder.SAMPLES).exists() and len(lines(tmp_path)) >= 1, 20)
        os.killpg(training.pid, signal.SIGINT)  # Ctrl-C is for the training, which here takes its time
        time.sleep(0.2)
        assert exists(process)
        before = len(lines(tmp_path))
        training.kill()
        until(lambda: not exists(process), 5)
    assert len(lines(tmp_path)) > before
    assert max(line["process_bytes"] for line in lines(tmp_path)) > 150_000_000


@pytest.fixture
def on_fake_gpus(monkeypatch, tmp_path: Path):
    """`on_fake_gpus({0: "GPU-h200"})` starts the real process with the fake library."""
    begun = []

    def start(devices: dict[int, str], library: Path = FAKES, **more: str) -> device_monitor.Sampler:
        monkeypatch.setenv("PYTHONPATH", str(library))
        for name, value in more.items():
            monkeypatch.setenv(name, value)
        begun.append(device_monitor.Sampler(tmp_path / run_folder.SAMPLES, devices))
        return begun[-1]

    yield start
    for each in begun:
        each.stop()


def test_every_gpu_of_a_machine_has_a_line_a_second(on_fake_gpus, until, tmp_path: Path) -> None:
    both = on_fake_gpus({8: "GPU-h200", 9: "GPU-gb10"})
    until(lambda: (tmp_path / run_folder.SAMPLES).exists() and len(lines(tmp_path)) >= 4, 20)
    assert both.describe() == {"rate_hz": 12.5}
    assert both.stop() == {Peak.USED: 71 * 10**9}
    written = lines(tmp_path)
    assert [line["device"] for line in written[:4]] == [8, 9, 8, 9]
    assert all(line["samples"] >= 10 for line in written[2:4])
    assert {line["power_w"] for line in written} == {400.0}


@pytest.mark.parametrize(
    ("library", "devices", "more", "problem"),
    [
        ("fakes", {0: "GPU-h200"}, {"FAKE_NVML": "no-driver"}, "NVML does not answer: Driver Not Loaded"),
        ("fakes", {0: "GPU-away"}, {}, "NVML does not answer: Not Found"),
        ("none", {0: "GPU-h200"}, {}, "-m pip install nvidia-ml-py"),
    ],
    ids=["no driver", "no such device", "no bindings"],
)
def test_what_keeps_it_from_sampling_is_said(
    on_fake_gpus, until, tmp_path: Path, library: str, devices: dict[int, str], more: dict[str, str], problem: str
) -> None:
    if library == "none":
        (tmp_path / "pynvml.py").write_text("raise ImportError")
    refused = on_fake_gpus(devices, FAKES if library == "fakes" else tmp_path, **more)
    until(lambda: problem in refused.describe()["problem"], 20)
    assert refused.stop() == {}
    assert not (tmp_path / run_folder.SAMPLES).exists()


def test_a_file_that_cannot_be_written_ends_the_sampler_alone(until, tmp_path: Path) -> None:
    refused = device_monitor.Sampler(tmp_path / "nowhere" / run_folder.SAMPLES, {})
    until(lambda: "No such file" in refused.describe()["problem"], 20)
    assert refused.stop() == {}


def test_a_disk_that_fills_ends_the_sampler_and_not_the_training(until) -> None:
    full = device_monitor.Sampler(Path("/dev/full"), {})
    until(lambda: full._process.poll() is not None, 20)
    assert "rate_hz" in full.describe() and full.stop() == {}


def test_only_the_first_process_of_a_machine_samples(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_monitor.start(tmp_path, on_gpu=False) is None


def test_a_record_has_the_samples_of_all_its_machines(tmp_path: Path) -> None:
    for rank in (0, 8):
        (tmp_path / run_folder.samples_of(rank)).write_text(f'{{"device": {rank}, "samples": 12}}\n{{"device": ')
    (tmp_path / run_folder.METRICS).touch()
    assert [line["device"] for line in run_folder.read_run(tmp_path).samples] == [0, 8]
    assert (tmp_path / "device.jsonl").exists() and (tmp_path / "device-8.jsonl").exists()


@pytest.mark.parametrize("devices", [1, 8])
def test_of_months_of_samples_some_of_every_device_are_read(monkeypatch, tmp_path: Path, devices: int) -> None:
    monkeypatch.setattr(run_folder, "_PIECES", 8)
    monkeypatch.setattr(run_folder, "_PIECE", 1024)
    whole = [{"time": 1000.0 + second, "device": each} for second in range(4000 // devices) for each in range(devices)]
    (tmp_path / run_folder.SAMPLES).write_text("".join(json.dumps(line) + "\n" for line in whole))
    found = run_folder.read_samples(tmp_path)
    assert (found[0], found[-1]) == (whole[0], whole[-1])
    assert 8 * devices <= len(found) <= len(whole) / 10
    assert found == [line for line in whole if line in found]  # in order, none twice
    assert {line["device"] for line in found} == set(range(devices))
    gaps = [later["time"] - earlier["time"] for earlier, later in pairwise(found)]
    assert max(gaps) < (whole[-1]["time"] - whole[0]["time"]) / 6
