import csv
import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playbook.record import loading, sampled
from playbook.record.columns import Lines
from pretraining.record.run_folder import Run

START = 1000.0
LINES = Lines.of([{"iteration": number, "time": START + 2.0 * number} for number in range(1, 51)])


def samples(watts: float, device: Any = 0, until: float = 110.0) -> list[dict[str, Any]]:
    """One a second from 5 s before the training."""
    return [{"time": START + second, "device": device, "power_w": watts} for second in range(-5, int(until))]


def run(*of: list[dict[str, Any]]) -> Run:
    return Run(Path("x"), samples=[line for each in of for line in each])


def test_energy_is_read_between_the_ends_of_the_window() -> None:
    joules, seconds = sampled.energy(run(samples(600.0)), LINES, first=19)
    assert seconds == pytest.approx(62.0)  # iterations 20 to 50 of 2 s
    assert joules == pytest.approx(600.0 * 62)


def test_devices_are_summed_and_resident_memory_is_none() -> None:
    no_power = [{"time": START, "device": "cpu", "process_bytes": 5, "power_w": None}]
    joules, _ = sampled.energy(run(samples(600.0), samples(200.0, 1), no_power), LINES, first=19)
    assert joules == pytest.approx(800.0 * 62)


def test_a_machine_whose_file_is_missing_leaves_no_half_of_the_energy() -> None:
    two = Run(Path("x"), environment={"parity": {"world_size": 2}}, samples=samples(600.0))
    assert sampled.energy(two, LINES, first=19) is None
    both = replace(two, samples=[*samples(600.0), *samples(600.0, 1)])
    assert sampled.energy(both, LINES, first=19) is not None


def test_an_evaluation_or_checkpoint_in_the_window_is_left_out() -> None:
    late = [0.0] * 30 + [7.5] * 20  # before iteration 31
    lines = [
        {"iteration": number, "time": START + 2.0 * number + late[number - 1], "step_time_s": 1.99}
        for number in range(1, 51)
    ]
    idle = [{**line, "power_w": 60.0 if 60 < line["time"] - START <= 67 else 600.0} for line in samples(0.0)]
    joules, seconds = sampled.energy(run(idle), Lines.of(lines), first=19)
    assert seconds == pytest.approx(62.0, abs=0.02)
    assert joules == pytest.approx(600.0 * 62, rel=0.01)


def test_a_short_window_between_idle_seconds() -> None:
    lines = Lines.of([{"iteration": number, "time": START + 10 + 0.1 * number} for number in range(1, 52)])
    power = [{**line, "power_w": 600.0 if 8 < line["time"] - START < 18 else 80.0} for line in samples(0.0)]
    joules, seconds = sampled.energy(run(power), lines, first=19)
    assert joules / seconds == pytest.approx(600.0)


@pytest.mark.parametrize(
    "unknown",
    [
        run(),
        run(samples(600.0, until=90)),  # the sampler died
        run(samples(600.0), [{"time": START, "device": 1, "power_w": None}]),  # one device does not tell
    ],
)
def test_what_is_not_known_is_not_guessed(unknown: Run) -> None:
    assert sampled.energy(unknown, LINES, first=19) is None


def test_lines_without_a_time_have_no_energy() -> None:
    timeless = Lines.of([{"iteration": number} for number in range(1, 51)])
    assert sampled.energy(run(samples(600.0)), timeless, first=19) is None
    assert sampled.energy(replace(run(samples(600.0))), LINES, first=50) is None


def test_two_gpus_used_what_nvidia_smi_saw(project: Path) -> None:
    """Its own log of the same run, twice a second, beside the samples of a published run."""
    folder = project / "assets/results/h200x2-llama31-8b"
    with gzip.open(folder / "nvidia-smi.csv.gz", "rt") as file:
        seen = np.array([[float(cell) for cell in row] for row in list(csv.reader(file))[1:]])
    of_run = loading.load(folder / "bf16")
    lines = Lines.of(of_run.train)
    first = 12
    joules, seconds = sampled.energy(of_run, lines, first)
    start, end = lines.column("time")[[first - 1, -1]]
    expected = 0.0
    for device in (0, 1):
        at, memory, watts = seen[seen[:, 1] == device][:, [0, 2, 3]].T
        peak = max(sample["used_bytes"] for sample in of_run.samples if sample["device"] == device)
        assert abs(peak / 2**20 - memory.max()) < 1  # nvidia-smi rounds to the MiB
        expected += np.interp(np.linspace(start, end, 10_000), at, watts).mean()
    assert seconds == pytest.approx(end - start)
    assert joules / seconds == pytest.approx(expected, rel=0.01)
    print(f"{joules / seconds:.1f} W by the samples, {expected:.1f} W by nvidia-smi, over {seconds:.0f} s")
