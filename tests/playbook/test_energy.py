from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from playbook import energy
from playbook.lines import Lines
from pretraining.record import Run

START = 1000.0
LINES = Lines.of([{"iteration": number, "time": START + 2.0 * number} for number in range(1, 51)])


def samples(watts: float, device: Any = 0, until: float = 110.0) -> list[dict[str, Any]]:
    """One a second from 5 s before the training, the energy since then."""
    return [
        {"time": START + second, "device": device, "energy_j": watts * (second + 5)} for second in range(-5, int(until))
    ]


def run(*of: list[dict[str, Any]], evaluations: list[dict[str, Any]] | None = None) -> Run:
    return Run(Path("x"), samples=[line for each in of for line in each], evaluations=evaluations or [])


def test_energy_is_read_between_the_ends_of_the_window() -> None:
    joules, seconds = energy.used(run(samples(600.0)), LINES, first=19)
    assert seconds == pytest.approx(62.0)  # iterations 20 to 50 of 2 s
    assert joules == pytest.approx(600.0 * 62)


def test_devices_are_summed_and_resident_memory_is_none() -> None:
    no_power = [{"time": START, "device": "cpu", "process_bytes": 5, "energy_j": None}]
    joules, _ = energy.used(run(samples(600.0), samples(200.0, 1), no_power), LINES, first=19)
    assert joules == pytest.approx(800.0 * 62)


def test_an_evaluation_in_the_window_is_left_out() -> None:
    at_30 = {"kind": "eval", "iteration": 30, "time": START + 61.5}
    at_the_end = {"kind": "eval", "iteration": 50, "time": START + 105}
    joules, seconds = energy.used(run(samples(600.0), evaluations=[at_30, at_the_end]), LINES, first=19)
    assert (joules, seconds) == pytest.approx((600.0 * 60.5, 60.5))


@pytest.mark.parametrize(
    "unknown",
    [
        run(),
        run(samples(600.0, until=90)),  # the sampler died
        run(samples(600.0), [{"time": START, "device": 1, "energy_j": None}]),  # one device does not tell
    ],
)
def test_what_is_not_known_is_not_guessed(unknown: Run) -> None:
    assert energy.used(unknown, LINES, first=19) is None


def test_lines_without_a_time_have_no_energy() -> None:
    timeless = Lines.of([{"iteration": number} for number in range(1, 51)])
    assert energy.used(run(samples(600.0)), timeless, first=19) is None
    assert energy.used(replace(run(samples(600.0))), LINES, first=50) is None
