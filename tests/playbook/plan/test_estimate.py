"""Estimates: against the published rows that they were not fitted on, and against their own inputs."""

import pytest

from playbook.plan import estimate
from pretraining.errors import UsageError
from pretraining.request import footprint, parallel
from pretraining.request.models import find_model
from pretraining.request.precisions import find_precision

HELD_OUT = [row for row in estimate.ROWS if not row.fits]


@pytest.mark.parametrize("row", HELD_OUT, ids=lambda row: f"{row.kind}-{row.precision}-{row.source[:12]}")
def test_rows_that_were_held_out(row) -> None:
    assert estimate.predicted(row) == pytest.approx(row.rate, rel=estimate.TOLERANCE)


def test_there_are_rows_of_every_kind_to_check() -> None:
    assert len(HELD_OUT) >= 5 and {row.precision for row in HELD_OUT} >= {"bf16", "nvfp4", "fp8"}
    assert {row.kind for row in HELD_OUT} >= {"gb200", "gb300", "h200"}


def asked(model="llama31-405b", precision="nvfp4", kind="gb300", gpus=512, split=(None, None), batch=None, **more):
    sizes = {"tokens": 1e12, "sequence": 8192, "micro": 1} | more
    return estimate.estimate(
        find_model(model), find_precision(precision), estimate.KINDS[kind], gpus, split=split, batch=batch, **sizes
    )


def test_time_follows_from_flops_and_rate() -> None:
    found = asked(split=(8, 1), gpus=64, batch=128)
    model, precision = find_model("llama31-405b"), find_precision("nvfp4")
    flops = footprint.flops_per_token(footprint.shape_of(model.hf_config), 8192) * 128 * 8192
    alone = estimate.rate(model, precision, estimate.KINDS["gb300"], 8192) * 1e12
    assert found.step_seconds == pytest.approx(flops / 64 / alone)
    assert found.days == pytest.approx(1e12 / (128 * 8192) * found.step_seconds / 86400)


def test_a_pipeline_waits_for_its_bubble() -> None:
    whole, staged = asked(split=(8, 1), gpus=64, batch=128), asked(split=(4, 2), gpus=64, batch=128)
    assert staged.step_seconds / whole.step_seconds == pytest.approx((16 + 1) / 16)


def test_memory_is_megatrons_own_figure() -> None:
    """`theoretical_memory_utils`: 6 bytes a parameter of the most loaded stage, and 12 shared by the replicas."""
    model = find_model("llama31-405b")
    config = model.hf_config
    hidden, ratio = config["hidden_size"], config["num_key_value_heads"] / config["num_attention_heads"]
    layers = 2 * 126 * hidden**2 * (1 + ratio + 1.5 * config["intermediate_size"] / hidden + 2 / hidden)
    loaded = (layers / 8 + hidden * config["vocab_size"]) / 8
    expected = loaded * (6 + 12 / 8)
    found = asked(precision="bf16", split=(8, 8)).memory
    assert found.weights + found.gradients + found.optimizer == pytest.approx(expected, rel=0.01)


def test_the_smallest_split_that_fits() -> None:
    model, bf16 = find_model("llama31-8b"), find_precision("bf16")
    sizes = {"micro_batch": 4, "sequence": 4096}
    one = parallel.smallest(model, bf16, processes=1, gpu_bytes=288e9, **sizes)
    assert (one.tensor, one.pipeline) == (1, 1) and "below 90%" in one.reason
    two = parallel.smallest(model, bf16, processes=2, gpu_bytes=141e9, **sizes)
    assert two.tensor * two.pipeline == 2 and two.memory < 0.9 * 141e9 and "TP 1 PP 1 would take" in two.reason
    with pytest.raises(UsageError, match=r"does not fit 1 GPUs of 80 GB.*at least \d+ GB each"):
        parallel.smallest(model, bf16, processes=1, gpu_bytes=80e9, **sizes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu-kind", "gb30"], "did you mean gb300"),
        (["--model", "llama31-405"], "did you mean llama31-405b"),
        (["--gpus", "0"], "at least 1"),
        (["--gpus", "4"], "does not fit 4 GPUs"),
        (["--gpu-kind", "h200"], "has no peak in nvfp4"),
        (["--tensor-parallel", "3"], "TP=3 does not divide"),
        (["--pipeline-parallel", "5"], "PP=5 does not divide"),
        (["--tensor-parallel", "8", "--gpus", "12"], "GPUS=12 is not divisible"),
        (["--tensor-parallel", "8", "--pipeline-parallel", "8", "--global-batch-size", "9"], "GBS=9 is not divisible"),
    ],
)
def test_a_wrong_size_is_refused(arguments, words) -> None:
    with pytest.raises(UsageError, match=words):
        estimate.main(arguments)


def test_everything_is_printed_with_its_source(capsys) -> None:
    assert estimate.main([]) == 0
    said = capsys.readouterr().out
    for words in ("memory a GPU", "step time", "days for 1.56e+13 tokens", "Assumed:", "dgxc-benchmarking", "held out"):
        assert words in said
