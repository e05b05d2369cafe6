"""Where the time goes, from traces whose answer is known."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from playbook.compare import comparison
from playbook.compare.model import Difference
from playbook.profile import breakdown
from playbook.profile.kernels import Kind
from playbook.record import loading
from pretraining.errors import UsageError
from pretraining.record import run_folder


def event(name: str, start: float, length: float, category: str = "cpu_op", thread: int = 1) -> dict[str, Any]:
    """Microseconds."""
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "tid": thread}


def steps(*lengths: float) -> list[dict[str, Any]]:
    starts = [sum(lengths[:at]) for at in range(len(lengths))]
    return [
        event(f"ProfilerStep#{at}", start, length, "user_annotation")
        for at, (start, length) in enumerate(zip(starts, lengths, strict=True), 1)
    ]


@pytest.fixture
def broken_down(tmp_path: Path):
    """`broken_down([event, ...])`: the breakdown, and the milliseconds of each kind."""

    def read(events: list[dict[str, Any]]) -> tuple[breakdown.Breakdown, dict[str, float]]:
        path = tmp_path / run_folder.TRACE
        path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
        found = breakdown.read(path)
        assert sum(row.milliseconds for row in found.rows) == pytest.approx(found.step)
        return found, {row.kind: pytest.approx(row.milliseconds) for row in found.rows}

    return read


def test_kernels_that_overlap_count_once_and_gaps_are_idle(broken_down) -> None:
    found, rows = broken_down(
        [
            *steps(10_000, 10_000),
            event("aten::mm", 0, 9_000),
            event("nvjet_tst_128x256", 1_000, 6_000, "kernel", 7),
            event("_quantize_kernel", 6_000, 2_000, "kernel", 7),  # half of it beside the product
            event("ncclDevKernel_AllReduce_Sum_f32", 2_000, 10_000, "kernel", 9),  # 4 ms beside nothing
            event("Memcpy DtoD (Device -> Device)", 19_500, 1_500, "gpu_memcpy", 7),  # ends after the step
            event("nvjet_of_the_warm_up", -3_000, 2_000, "kernel", 7),
        ]
    )
    assert (found.step, found.steps, found.on_gpu) == (10.0, 2, True)
    assert rows == {
        Kind.PRODUCTS: 3.0,
        Kind.QUANTIZATION: 0.5,
        Kind.COPIES: 0.25,
        Kind.COMMUNICATION: 2.0,
        breakdown.IDLE: 4.25,
    }
    assert next(row for row in found.rows if row.kind == Kind.PRODUCTS).largest == "nvjet_tst_128x256"


def test_the_products_around_a_loss_are_the_vocabularys(broken_down) -> None:
    products = [("nvjet_layer", 0, 1_000), ("nvjet_vocabulary", 1_000, 3_000)]
    losses = [("online_softmax_kernel", 4_000, 500), ("cross_entropy_kernel", 4_500, 500)]
    gradients = [("nvjet_vocabulary", 5_000, 3_000), ("nvjet_other", 8_000, 3_000), ("nvjet_layer", 11_000, 1_000)]
    names = [*products, *losses, *gradients]
    twice = [(name, start + later, length) for later in (0, 12_000) for name, start, length in names]
    found, rows = broken_down([*steps(24_000), *(event(*each, "kernel", 7) for each in twice)])
    assert rows == {Kind.PRODUCTS: 4.0, Kind.VOCABULARY: 18.0, Kind.NORMS: 2.0, breakdown.IDLE: 0.0}
    assert [row.calls for row in found.rows if row.kind == Kind.VOCABULARY] == [6]


def test_an_operator_is_told_without_those_it_calls(broken_down) -> None:
    found, rows = broken_down(
        [
            *steps(10_000),
            event("_Linear", 1_000, 4_000),
            event("aten::matmul", 1_500, 2_500),
            event("aten::mm", 2_000, 2_000),
            event("Optimizer.step#AdamW.step", 6_000, 3_000, "user_annotation"),
            event("aten::mul", 6_500, 1_000),
            event("aten::mm", 0, 10_000, thread=2),  # of another thread
        ]
    )
    assert not found.on_gpu
    assert rows == {
        Kind.PRODUCTS: 2.0,
        Kind.QUANTIZATION: 1.5,
        Kind.OPTIMIZER: 3.0,
        Kind.COPIES: 0.5,
        breakdown.OUTSIDE: 3.0,
    }
    assert [row.calls for row in found.rows if row.kind == Kind.OPTIMIZER] == [2]


def test_what_is_no_trace_is_told(tmp_path: Path, broken_down) -> None:
    with pytest.raises(UsageError, match="the run was not profiled"):
        breakdown.read(tmp_path / run_folder.TRACE)
    with pytest.raises(UsageError, match="no training step"):
        broken_down([event("aten::mm", 0, 1)])
    for content in (b"no gzip", gzip.compress(b"{"), gzip.compress(b'{"traceEvents": []}')[:20], gzip.compress(b"[]")):
        (tmp_path / run_folder.TRACE).write_bytes(content)
        with pytest.raises(UsageError, match="cannot be read as a trace"):
            breakdown.read(tmp_path / run_folder.TRACE)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_says_what_the_profiler_cost_and_where_to_look(make_run, capsys, monkeypatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    folder = make_run("nvfp4", step=0.01, environment={"profiled": [56, 60]})
    longest = "aten::" + 60 * "m"
    trace = {"traceEvents": [*steps(*[12_000] * 5), event("aten::mm", 0, 30_000), event(longest, 40_000, 9)]}
    (folder / run_folder.TRACE).write_bytes(gzip.compress(json.dumps(trace).encode()))
    breakdown.show(folder)
    told = capsys.readouterr().out
    assert "where the time goes" in told and "ms a step" in told and "calls" in told
    assert "matrix products" in told and "50.0" in told and "a step, mean of 5" in told and "12.00" in told
    assert "10.0 ms (median of 52); profiled +20.0 %" in " ".join(told.split())
    assert str(folder / run_folder.TRACE) in told and "ui.perfetto.dev" in told
    assert max(len(line) for line in told.splitlines() if "trace" not in line) <= columns

    breakdown.keep(folder)
    (folder / run_folder.TRACE).unlink()
    breakdown.show(folder)
    assert capsys.readouterr().out == told[: told.index("\nThe trace: ")]
    (folder / run_folder.PROFILE).write_text('{"step": 1}')
    with pytest.raises(UsageError, match="cannot be read as a profile"):
        breakdown.show(folder)


@pytest.mark.parametrize("how", ["profiled", "measured"])
@pytest.mark.parametrize("both", [True, False])
def test_a_watched_run_is_not_compared(make_run, both: bool, how: str) -> None:
    watched = {how: [56, 60]}
    runs = [make_run("bf16", environment=watched if both else {}), make_run("nvfp4", environment=watched)]
    groups = [[loading.load(run)] for run in runs]
    with pytest.raises(comparison.NotComparable) as refused:
        comparison.compare(groups)
    way_out = "train again with neither make profile nor make sensitivity, which slow the steps they watch"
    said = f"{how} 56 to 60"
    assert refused.value.differences == [Difference("watched iterations", said if both else "no", said, way_out)]
    forced = comparison.compare(groups, force=True)
    assert forced.forced
    assert forced.arms[1].runs[0].warnings == [f"iterations 56 to 60 were {how}: their step times tell nothing"]
