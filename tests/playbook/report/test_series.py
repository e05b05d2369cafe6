"""What is drawn of a run loses no extreme, counts everything, and smooths as it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from playbook.report import series
from pretraining.record.run_folder import Run


def run(losses: list[float | None], *, first: int = 1, samples: list[dict] | None = None) -> Run:
    lines = [{"kind": "train", "iteration": first + at, "loss": loss} for at, loss in enumerate(losses)]
    return Run(Path("run"), train=lines, samples=samples or [])


def test_an_envelope_keeps_every_extreme_of_a_million_values() -> None:
    x = np.arange(1_000_000.0)
    y = np.sin(x / 5000)
    y[123_456], y[654_321] = 50.0, -50.0
    middle, low, high = series.envelope(x, y, 360)
    assert len(middle) == 360
    assert (high.max(), low.min()) == (50.0, -50.0)
    assert middle[high.argmax()] == pytest.approx(123_456, abs=1_000_000 / 360)
    assert np.all(low <= high) and np.all(np.diff(middle) > 0)
    assert np.count_nonzero(high == 50.0) == 1


def test_an_envelope_of_uneven_and_missing_values() -> None:
    x = np.array([1.0, 2.0, 3.0, 950.0, 1000.0])
    _, low, high = series.envelope(x, np.array([5.0, np.nan, 7.0, 1.0, 2.0]), 10)
    assert low.tolist() == [5.0, 1.0] and high.tolist() == [7.0, 2.0]
    assert len(series.envelope(x, np.full(5, np.nan))[0]) == 0


def test_smoothing_is_the_mean_of_what_is_known_around() -> None:
    values = np.random.default_rng(5).normal(size=60)
    values[[10, 11, 30]] = np.nan
    found = series.smooth(values, 7)
    for at in range(60):
        reach = min(3, at, 59 - at)
        assert found[at] == pytest.approx(np.nanmean(values[at - reach : at + reach + 1]))
    assert np.isnan(series.smooth(np.full(9, np.nan), 5)).all()


@pytest.mark.parametrize(("count", "window"), [(0, 1), (9, 1), (10, 5), (50, 5), (1000, 21), (1_000_000, 20_001)])
def test_the_smoothing_window_is_odd_and_a_fiftieth_of_the_run(count: int, window: int) -> None:
    assert series.smoothing_window(count) == window


def test_a_thinned_line_keeps_its_ends() -> None:
    assert series.thinned(0).tolist() == []
    assert series.thinned(3).tolist() == [0, 1, 2]
    kept = series.thinned(1_000_000)
    assert (kept[0], kept[-1], len(kept)) == (0, 999_999, series.PIXELS)


def test_a_histogram_counts_all_values_but_a_stall_that_would_squeeze_them() -> None:
    values = np.append(np.random.default_rng(1).normal(5.4, 0.02, 10_000), [300.0, 0.1])
    counts, edges = series.histogram(values)
    assert counts.sum() == len(values) - 2
    assert 5.3 < edges[0] < edges[-1] < 5.5
    assert len(counts) <= series.MOST_BINS


@pytest.mark.parametrize("values", [[5.4], [5.4] * 100, [0.0, 0.0]])
def test_a_histogram_of_equal_values(values: list[float]) -> None:
    counts, edges = series.histogram(np.array(values))
    assert counts.sum() == len(values)
    assert np.all(np.diff(edges) > 0)


def test_medians_of_parts() -> None:
    x, y = series.medians(np.arange(10.0), np.array([1, 1, 1, 9, 1, 2, 2, np.nan, 2, 2]), 2)
    assert x.tolist() == [2.0, 7.0] and y.tolist() == [1.0, 2.0]
    assert len(series.medians(np.arange(3.0), np.full(3, np.nan), 2)[0]) == 0


def test_the_loss_gap_pairs_iterations_and_averages_repeats() -> None:
    base = [run([2.0, 2.0, 4.0]), run([2.0, 2.0, 4.0])]
    new = [run([2.2, None, 4.0]), run([2.0, 2.0, 4.4])]
    iterations, gap = series.loss_gap(new, base)
    assert iterations.tolist() == [1, 2, 3]
    assert gap[[0, 2]].tolist() == pytest.approx([5.0, 5.0]) and np.isnan(gap[1])


def test_the_loss_gap_of_runs_of_different_length() -> None:
    iterations, gap = series.loss_gap([run([1.1, 1.1, 1.1], first=2)], [run([9.0, 1.0, 1.0])])
    assert iterations.tolist() == [2, 3]
    assert gap.tolist() == pytest.approx([10.0, 10.0])


def sample(
    time: float, device: int | str, used: float | None, watts: float | None, process: float | None = None
) -> dict:
    return {"time": time, "device": device, "used_bytes": used, "process_bytes": process, "power_w": watts}


def test_memory_is_the_fullest_gpu_s_and_power_all_gpus_together() -> None:
    both = [sample(10.0 + at, gpu, 1e9 * (gpu + at), 100.0 + gpu) for at in range(3) for gpu in (0, 1)]
    host = [sample(10.0 + at, "cpu", None, None, 9e11) for at in range(3)]
    found = run([1.0], samples=both + host + [sample(13.0, 0, 5.0, 1.0)])
    seconds, used = series.memory(found)
    assert seconds.tolist() == [0, 1, 2] and used.tolist() == [1, 2, 3]
    assert series.is_of_device(found)
    seconds, watts = series.power(found)
    assert seconds.tolist() == [0, 1, 2] and watts.tolist() == [201.0] * 3  # after second 2 one GPU is silent


def test_power_of_gpus_that_are_sampled_at_other_times() -> None:
    both = [sample(10.0 + at, 0, 1.0, 100.0) for at in range(5)] + [sample(10.4 + at, 1, 1.0, 50.0) for at in range(4)]
    seconds, watts = series.power(run([1.0], samples=both))
    assert seconds.tolist() == [0, 1, 2, 3]  # at 4 the other one ended 0.6 s ago
    assert watts.tolist() == [150.0] * 4


def test_memory_of_a_cpu_run_and_of_none() -> None:
    found = run([1.0], samples=[sample(5.0, "cpu", None, None, 7.0)])
    assert series.memory(found)[1].tolist() == [7e-9] and not series.is_of_device(found)
    assert len(series.power(found)[0]) == 0
    assert len(series.memory(replace(found, samples=[]))[0]) == 0
