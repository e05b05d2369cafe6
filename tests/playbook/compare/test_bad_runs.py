"""What cannot be compared is recognised from a record and from a raw log alone, in a sentence."""

import json
from pathlib import Path

import pytest

from playbook.compare import comparison
from playbook.compare.comparison import NotComparable
from playbook.record import loading
from playbook.record.megatron_log import read_log
from pretraining.errors import UsageError

SUMMARY = """Configuration Summary (Non-Default Values vs Megatron Core)
[model] Non-default values (vs Mcore TransformerConfig):
  bf16: True  (Mcore default: False)
{precision}  ffn_hidden_size: 14336  (Mcore default: None)
  first_last_layers_bf16: True  (Mcore default: False)
  hidden_size: 4096  (Mcore default: 0)
  num_attention_heads: 32  (Mcore default: 0)
  num_layers: 32  (Mcore default: 0)
  num_layers_at_end_in_bf16: 4  (Mcore default: 1)
  num_layers_at_start_in_bf16: 0  (Mcore default: 1)
  num_query_groups: 8  (Mcore default: None)
[train]:
  global_batch_size: 64
  micro_batch_size: 4
[dataset]:
  data_parallel_size: 1
  sequence_length: 4096
======================================================================
> initialized tensor model parallel with size 1
> initialized pipeline model parallel with size 1
Using preset vocab_size: 128256
"""
NVFP4 = "  fp4: 'e2m1'  (Mcore default: None)\n"


def line(iteration: int, ms: float = 9050.0, loss: str = "2.0E+00", norm: str = "1.000", skipped: int = 0) -> str:
    return (
        f" [2026-11-22 06:58:39] iteration {iteration:8d}/      50 | consumed samples: {64 * iteration:12d} |"
        f" elapsed time per iteration (ms): {ms:.1f} | learning rate: 3.000000E-04 | global batch size:    64 |"
        f" lm loss: {loss} | loss scale: 1.0 | grad norm: {norm} | number of skipped iterations:   {skipped} |"
        " number of nan iterations:   0 |\n"
    )


@pytest.fixture
def log(tmp_path: Path):
    """`log("name", ms=5390.0, start=0, changed={50: line(50, norm="nan")})`: the path of a log of 50 iterations."""

    def make(name: str, *, precision: str = "", ms: float = 9050.0, start: int = 0, changed=(), every: int = 1) -> Path:
        lines = [dict(changed).get(number, line(number, ms)) for number in range(start + every, 51, every)]
        begins = f"Starting training loop at iteration {start}\n"
        text = SUMMARY.format(precision=precision) + begins + "".join(lines) + "[after training is done]\n"
        path = tmp_path / f"{name}.log"
        path.write_text(text)
        return path

    return make


def compare(*paths: Path, force: bool = False):
    return comparison.compare([[loading.load(path)] for path in paths], force=force)


def refused(*paths: Path) -> list[str]:
    with pytest.raises(NotComparable) as refusal:
        compare(*paths)
    assert all(found.way_out for found in refusal.value.differences)
    return [str(found) for found in refusal.value.differences]


def test_the_figures_of_the_published_playbook(log) -> None:
    result = compare(log("bf16"), log("nvfp4", precision=NVFP4, ms=5390.0))
    bf16, nvfp4 = result.arms
    assert result.contrasts[0].step_time.sentence == "1.68x, nvfp4 over bf16"
    assert [round(arm.tokens_per_second_per_gpu.value) for arm in (nvfp4, bf16)] == [48635, 28966]
    assert [round(arm.model_tflops_per_gpu.value) for arm in (nvfp4, bf16)] == [2347, 1398]
    assert read_log(log("again")).environment["flops_per_token"] == pytest.approx(48.25e9, rel=1e-4)


@pytest.mark.parametrize("every", [1, 10])
def test_a_resumed_log_is_told_by_where_its_loop_started(log, every: int) -> None:
    assert refused(log("whole", every=every), log("resumed", start=20, every=every)) == [
        "start_iteration: A 0, B 20", *(["timed lines of 10 iterations: A 4, B 2"] if every == 10 else []),
    ]  # fmt: skip


def test_a_gradient_norm_that_is_not_finite_at_the_end_is_divergence(log) -> None:
    bad = log("bad", changed={number: line(number, norm="nan") for number in (12, 49, 50)})
    assert refused(log("good"), bad) == [
        "verdict: A succeeded, B diverged (the grad norm is not finite from iteration 49 to the end)"
    ]


def test_a_log_of_a_loss_that_is_not_finite(log) -> None:
    assert refused(log("good"), log("bad", changed={50: line(50, loss="NAN")}))[0].startswith(
        "verdict: A succeeded, B diverged"
    )


def test_skipped_iterations_are_no_work(log) -> None:
    assert refused(log("good"), log("bad", changed={30: line(30, skipped=1)})) == ["skipped iterations: A 0, B 1"]


@pytest.mark.parametrize("ms", [0.0, -5.0])
def test_zero_and_negative_times(log, ms: float) -> None:
    bad = log("bad", changed={30: line(30, ms=ms)})
    assert refused(log("good"), bad) == ["zero or negative step times: A 0, B 1"]
    forced = compare(log("good"), bad, force=True)
    assert forced.arms[1].runs[0].step_times.count == 30  # without it
    assert any("were left out" in warning for warning in forced.arms[1].runs[0].warnings)


def test_a_cut_log_is_incomplete(log) -> None:
    cut = log("cut")
    cut.write_bytes(cut.read_bytes()[:-4000])
    assert refused(log("good"), cut)[0].startswith("verdict: A succeeded, B incomplete (the log ends after iteration")


def test_runs_of_different_length(make_run) -> None:
    assert refused(make_run("bf16"), make_run("nvfp4", iterations=50, parity={"train_iters": 50})) == [
        "train_iters: A 60, B 50"
    ]


def test_a_record_that_ends_early_has_not_succeeded(make_run) -> None:
    assert refused(make_run("bf16"), make_run("nvfp4", iterations=50)) == [
        "verdict: A succeeded, B incomplete (the metrics end at iteration 50 of 60)"
    ]


def test_a_record_whose_gradients_end_as_nan(make_run) -> None:
    bad = make_run("nvfp4")
    lines = [json.loads(text) for text in (bad / "metrics.jsonl").read_text().splitlines()]
    lines[59]["grad_norm"] = None
    (bad / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert refused(make_run("bf16"), bad)[0].endswith(
        "B diverged (the grad norm is not finite from iteration 60 to the end)"
    )


@pytest.mark.parametrize("name", ["environment.json", "outcome.json"])
def test_a_record_of_a_newer_schema(make_run, name: str) -> None:
    folder = make_run("bf16")
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | {"schema": 99}))
    with pytest.raises(UsageError, match=r"schema 99, and this playbook reads up to 1: .*update this one"):
        loading.load(folder)


def test_large_files_are_read_side_by_side_with_the_same_result(log, make_run, monkeypatch, tmp_path: Path) -> None:
    paths = [log("a"), make_run("bf16")]
    one_by_one = loading.load_all(paths)
    monkeypatch.setattr(loading, "LARGE", 1)
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda process: {0, 1})
    assert [run.train for run in loading.load_all(paths)] == [run.train for run in one_by_one]
    with pytest.raises(UsageError, match="does not exist"):
        loading.load_all([paths[0], tmp_path / "nowhere"])
