"""Lines that stand for several iterations, and batches that grow: paired and weighed by what each line holds."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from playbook.compare import comparison
from playbook.compare.comparison import NotComparable
from playbook.compare.figures import measure
from playbook.compare.model import Comparison
from playbook.record import loading
from playbook.record.columns import Lines

SETTINGS = """Configuration Summary (Non-Default Values vs Megatron Core)
[optimizer] Non-default values (vs Mcore OptimizerConfig):
  lr: 0.0003  (Mcore default: None)
[model] Non-default values (vs Mcore TransformerConfig):
  bf16: True  (Mcore default: False)
{}  ffn_hidden_size: 256
  hidden_size: 128
  num_attention_heads: 4
  num_layers: 2
[train]:
  global_batch_size: 32
  micro_batch_size: 4
[dataset]:
  blend: (['/data/text'], None)
  data_parallel_size: 1
  sequence_length: 128
[rng]:
  seed: 1
======================================================================
> initialized tensor model parallel with size 1
> initialized pipeline model parallel with size 1
Using preset vocab_size: 512
Starting training loop at iteration 0
"""
FP8 = "  fp8: 'hybrid'\n"
END = "[after training is done]\n"


def constant(iteration: int) -> int:
    return 32


def growing(iteration: int) -> int:
    """8, 16, 24 and from iteration 61 on 32 sequences."""
    return min(32, 8 * (1 + (iteration - 1) // 20))


def a_log(
    path: Path,
    precision: str = "",
    *,
    every: int = 1,
    offset: int = 0,
    total: int = 200,
    batch: Callable[[int], int] = constant,
    scale: float = 1.0,
) -> Path:
    """Iterations of 10 ms a sequence and a loss of 2 + 10 / iteration, printed as means of `every`."""
    at = np.arange(1, total + 1)
    batches = np.array([batch(each) for each in at])
    ms, loss, samples = 10 * batches * scale * (1 + 0.001 * (at % 3)), 2 + 10 / at, np.cumsum(batches)
    text = SETTINGS.format(precision)
    first = 0
    for last in range(every + offset, total + 1, every):
        mean = slice(first, last)
        text += (
            f" [2026-11-22 06:58:39] iteration {last:8d}/{total:8d} | consumed samples: {samples[last - 1]:12d} |"
            f" elapsed time per iteration (ms): {ms[mean].mean():.4f} | learning rate: 1.500000E-04 |"
            f" global batch size: {batches[last - 1]:5d} | lm loss: {loss[mean].mean():.6E} | loss scale: 1.0 |"
            " grad norm: 6.896 | number of skipped iterations:   0 | number of nan iterations:   0 |\n"
        )
        first = last
    path.write_text(text + END)
    return path


def compare(*paths: Path, force: bool = False) -> Comparison:
    return comparison.compare([[loading.load(path)] for path in paths], force=force)


@pytest.mark.parametrize(("of_a", "of_b"), [(1, 10), (10, 1), (5, 2), (10, 10), (4, 6)])
def test_logs_printed_at_other_intervals_are_paired_over_the_same_iterations(
    tmp_path: Path, of_a: int, of_b: int
) -> None:
    result = compare(a_log(tmp_path / "a", every=of_a), a_log(tmp_path / "b", FP8, every=of_b, scale=0.5))
    contrast = result.contrasts[0]
    assert contrast.training_loss_gap.value == pytest.approx(0, abs=1e-4)  # the same curve
    assert contrast.step_time.figure.value == pytest.approx(2, rel=2e-3)
    counts = {arm.runs[0].step_times.count for arm in result.arms}
    assert len(counts) == 1
    common = math.lcm(of_a, of_b)
    assert contrast.gap_iterations == common * math.ceil(200 // common / 10)
    for every, arm in zip((of_a, of_b), result.arms, strict=True):
        said = " ".join(arm.runs[0].warnings)
        assert (f"by means over {common} iterations" in said) is (every != common)
        assert (f"printed every {every} iterations" in said) is (every > 1)


def test_lines_without_a_common_end_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotComparable) as refusal:
        compare(a_log(tmp_path / "a"), a_log(tmp_path / "b", FP8, every=10, offset=3))
    assert [str(found) for found in refusal.value.differences] == ["log_interval: A 1, B 10"]
    assert "no common iterations" in refusal.value.differences[0].way_out


def test_coarse_lines_are_means_and_sums_of_what_is_known() -> None:
    lines = Lines(
        {
            "iteration": np.arange(1.0, 9),
            "loss": np.array([1.0, 3, np.nan, 5, np.nan, np.nan, 7, 8]),
            "skipped": np.array([1.0, 1, 0, 0, 0, 1, 0, 0]),
        }
    )
    assert list(lines.coarse(2)) == [
        {"iteration": 2, "loss": 2.0, "skipped": 2},
        {"iteration": 4, "loss": 5.0, "skipped": 0},
        {"iteration": 6, "loss": None, "skipped": 1},
        {"iteration": 8, "loss": 7.5, "skipped": 0},
    ]
    assert list(lines.coarse(3).iterations) == [3, 6]
    assert len(lines.coarse(10)) == 0


@pytest.mark.parametrize("every", [1, 10])
def test_a_batch_that_grows_counts_each_lines_own_tokens(tmp_path: Path, every: int) -> None:
    run = measure(loading.load(a_log(tmp_path / "a", every=every, batch=growing)))
    samples = 20 * (8 + 16 + 24) + 140 * 32
    assert run.tokens_at(np.array([20, 60, 200])) == pytest.approx([20 * 8 * 128, 60 * 16 * 128, samples * 128])
    # 10 ms a sequence whatever the batch is: the rate does not change with it
    assert run.result.tokens_per_second.value == pytest.approx(128 / 0.010, rel=2e-3)
    assert run.result.facts["global_batch_size"] == 32


def test_a_batch_that_grows_otherwise_is_other_work(tmp_path: Path) -> None:
    both = a_log(tmp_path / "a", batch=growing), a_log(tmp_path / "b", FP8, batch=growing, scale=0.5)
    assert compare(*both).contrasts[0].step_time.figure.value == pytest.approx(2, rel=2e-3)
    with pytest.raises(NotComparable) as refusal:
        compare(both[0], a_log(tmp_path / "c", FP8))
    assert str(refusal.value.differences[0]) == "batch as it grows: A 8 at iteration 1, B 32 at iteration 1"


def test_a_record_gives_each_iterations_batch(make_run) -> None:
    path = make_run("bf16")
    metrics = path / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train":
            line |= {"global_batch_size": 8 if line["iteration"] <= 30 else 16}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = measure(loading.load(path))
    each = run.tokens_per_step / run.run.parity["global_batch_size"]
    assert run.tokens_at(np.array([30, 60])) == pytest.approx([240 * each, 720 * each])
    assert not any("contradicts" in said for said in run.result.warnings)
