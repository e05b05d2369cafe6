"""`make estimate`: what it says of a training, and what it refuses."""

import json
from pathlib import Path

import pytest

from playbook.plan import estimate, step_time
from pretraining.errors import UsageError
from pretraining.request import parallel
from pretraining.request.models import find_model
from pretraining.request.precisions import find_precision
from pretraining.request.recipe.kept_in_bf16 import PROJECTIONS, KeptInBf16


def asked(model="llama31-405b", precision="nvfp4", kind="gb300", gpus=512, **more):
    sizes = {"sequence": 8192} | more
    return estimate.plan(find_model(model), find_precision(precision), estimate.KINDS[kind], gpus, **sizes)[0]


def said(capsys, *arguments: str) -> str:
    assert estimate.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_a_published_configuration_is_recognized(capsys) -> None:
    """405B in NVFP4 on 256 GB300, NeMo 26.06: 1.41k tokens/s and 3575 TFLOP/s a GPU, gradients in BF16."""
    sizes = "--gpus 256 --tensor-parallel 4 --pipeline-parallel 8 --virtual-pipeline 4 --global-batch-size 1536"
    told = said(capsys, *sizes.split(), "--bf16-tail-layers", "0")
    assert "the nearest, Megatron-Bridge 26" in told and "256 x gb300, TP 4 PP 8 VP 4 CP 1, batch 1536" in told
    assert "NOT KNOWN" not in told and "DOES NOT FIT" not in told
    rate = step_time.tokens_per_second(
        asked(gpus=256, tensor=4, pipeline=8, virtual=4, batch=1536),
    )
    assert rate == pytest.approx(1413, rel=0.12)


def test_everything_is_said(capsys) -> None:
    told = said(capsys)
    for words in ("days (", "GPU-hours", "GWh", "tokens/s", "a GPU: fits", "resuming", "products in nvfp4", "attention",
                  "vocabulary", "tensor parallel", "pipeline bubble", "products in bf16", "nine of ten", "the nearest",
                  "last 15 of 126 layers"):  # fmt: skip
        assert words in told, words


def test_days_follow_from_the_step(capsys) -> None:
    told = said(capsys, "--tokens", "1e12")
    step = float(told.partition("step ")[2].split()[0])
    days = float(told.partition("training ")[2].split()[0])
    assert days == pytest.approx(1e12 / (256 * 8192) * step / 86_400, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--gpus 102400 --gpu-kind h100 --precision bf16", "NOT KNOWN: 102,400 GPUs: published are 1 to 16,384"),
        ("--gpus 102400 --gpu-kind h100 --precision bf16", "NOT KNOWN: 419,430,400 tokens a step"),
        ("--gpus 102400 --gpu-kind h100 --precision bf16", "days (how far off is not known)"),
        ("--model tiny --gpus 1 --seq-length 128", "NOT KNOWN: 128 tokens a sequence"),
        ("--gpu-kind b300 --precision bf16 --gpus 256", "NOT KNOWN: bf16 on b300"),
        ("--context-parallel 2", "Megatron-Bridge issues 1865 and 2051"),
        ("--gpus 1 --model llama32-1b --gpu-kind h100 --precision bf16 --tokens 1", "kWh: the GPUs alone"),
        ("--gpus 8 --model llama31-8b --gpu-kind h100 --precision bf16 --tensor-parallel 1", "DOES NOT FIT"),
    ],
)
def test_what_is_not_known_is_said(capsys, arguments, words) -> None:
    more = ["--micro-batch-size", "4"] if "DOES NOT FIT" in words else []
    assert words in said(capsys, *arguments.split(), *more)


def test_gradients_are_in_bf16_where_only_so_it_fits() -> None:
    model = {"model": "llama3-70b", "gpus": 64, "tensor": 1, "pipeline": 4, "batch": 256}
    found, how = estimate.memory(asked(**model))
    assert "grad_reduce_in_fp32=false" in how and found.total < estimate.KINDS["gb300"].memory_bytes
    assert "FP32" in estimate.memory(asked(**model | {"gpus": 128, "tensor": 2, "batch": 512}))[1]


def test_memory_is_megatrons_own_figure() -> None:
    """`theoretical_memory_utils`: 6 bytes a parameter of the most loaded stage, and 12 shared by the replicas."""
    model = find_model("llama31-405b")
    config = model.hf_config
    hidden, ratio = config["hidden_size"], config["num_key_value_heads"] / config["num_attention_heads"]
    layers = 2 * 126 * hidden**2 * (1 + ratio + 1.5 * config["intermediate_size"] / hidden + 2 / hidden)
    loaded = (layers / 8 + hidden * config["vocab_size"]) / 8
    expected = loaded * (6 + 12 / 8)
    found = asked(precision="bf16", tensor=8, pipeline=8).memory(4)
    assert found.weights + found.gradients + found.optimizer == pytest.approx(expected, rel=0.01)
    shared = asked(precision="bf16", tensor=8, pipeline=4, context=2).memory(4)  # those of a sequence share it too
    assert shared.optimizer == pytest.approx(12 / 16 * (shared.weights / 2))


def test_a_resumed_run_takes_as_much_memory() -> None:
    """As this project's records have it, and what is said names them."""
    records = Path(__file__).parents[3] / "assets/results"
    peaks = [
        json.loads((records / run / "outcome.json").read_text(encoding="utf-8"))["peak_memory"]["bytes"]
        for run in ("h200-resumed/nvfp4-emulated-2", "h200-uninterrupted/nvfp4-emulated")
    ]
    assert 0 <= peaks[0] - peaks[1] <= 0.01e9


def test_recomputation_takes_activations_and_time() -> None:
    kept, again = (asked(tensor=8, pipeline=8, recomputed=layers) for layers in (0, 63))
    assert again.memory(4).activations == pytest.approx(kept.memory(4).activations / 2, rel=0.1)
    assert sum(step_time.parts(again).values()) > sum(step_time.parts(kept).values())


def test_products_kept_in_bf16_take_their_time_and_memory() -> None:
    """What each product takes adds up to all of them, and layers are the same however they are named."""

    def cost(words: str = "", **more) -> tuple[float, float, float]:
        kept = KeptInBf16.read(words) if words else None
        training = asked(tensor=8, pipeline=1, **more, in_bf16=kept)
        found = training.memory(4)
        return sum(step_time.parts(training).values()), found.weights, found.activations

    assert cost("layers:111-125") == cost(kept=(0, 15))
    one_by_one = zip(*(cost(name) for name in PROJECTIONS), strict=True)
    for none, whole, each in zip(cost(), cost(precision="bf16"), one_by_one, strict=True):
        assert sum(each) - 4 * none == pytest.approx(whole - none)
    assert cost()[0] < cost("proj")[0] < cost("proj,fc1")[0] < cost(precision="bf16")[0]


def test_the_words_of_a_training(capsys, monkeypatch) -> None:
    monkeypatch.setenv("NVFP4_STOCHASTIC", "0")
    told = said(capsys, "--nvfp4", "rht=off bf16=qkv,proj scale=4over6")
    assert "layers, and bf16=qkv,proj\n" in told
    assert "  recipe          rht=off stochastic=off scale=4over6: without effect here" in told
    assert "  recipe  " not in said(capsys, "--precision", "mxfp8")


def test_a_late_switch_adds_slower_steps_and_the_memory_of_both(capsys) -> None:
    def days(*words: str) -> float:
        return float(said(capsys, *words, "--tokens", "1e12").partition("training ")[2].split()[0])

    tail = ("--bf16-tail-layers", "0")
    nvfp4, bf16 = days(*tail), days("--precision", "bf16")
    assert days(*tail, "--switch", "0.75") == pytest.approx(0.75 * nvfp4 + 0.25 * bf16, rel=0.01)
    for to in ("forward", "fp8"):
        assert nvfp4 < days(*tail, "--nvfp4", f"switch=0.75:{to}") < days(*tail, "--switch", "0.75")
    told = said(capsys, "--switch", "0.75")
    assert "; after the switch 0.75:bf16 " in told and told.count("of them") == 2
    assert "MODEL_TFLOP/s before the switch\n" in told and "time goes before the switch, on" in told
    assert float(told.partition("activations ")[2].split()[0]) > float(
        said(capsys).partition("activations ")[2].split()[0]
    )


def test_a_switch_at_an_end_leaves_steps_of_one_kind(capsys) -> None:
    first, last = (said(capsys, "--switch", at) for at in ("0", "1.0"))
    assert first.count("of them") == last.count("of them") == 1
    assert "after the switch 0:bf16 " in first and "after the switch" not in last
    assert "products in nvfp4" not in first and "products in nvfp4" in last and "before the switch" not in first + last


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
        ("--gpu-kind gb30", "did you mean gb300"),
        ("--gpu-kind gh200", "GPU kind"),
        ("--model llama31-405", "did you mean llama31-405b"),
        ("--gpus 0", "at least 1"),
        ("--gpus -8", "at least 1"),
        ("--tensor-parallel -1", "at least 1"),
        ("--tensor-parallel 0", "at least 1"),
        ("--pipeline-parallel 0", "at least 1"),
        ("--context-parallel 0", "at least 1"),
        ("--virtual-pipeline 0", "at least 1"),
        ("--global-batch-size 0", "at least 1"),
        ("--micro-batch-size -2", "at least 1"),
        ("--seq-length 0", "at least 1"),
        ("--tokens nan", "at least 1"),
        ("--tokens inf", "at least 1"),
        ("--tokens=-inf", "at least 1"),
        ("--tokens 0", "at least 1"),
        ("--bf16-tail-layers -1", "at least 0"),
        ("--bf16-tail-layers 127", "has 126 layers, and 127"),
        ("--recompute-layers 127", "has 126 layers, and 127"),
        ("--gpus 4", "does not fit 4 GPUs"),
        ("--nvfp4 bf16=qvk", "did you mean qkv"),
        ("--nvfp4 rth=off", "did you mean rht"),
        ("--nvfp4 scale=4over6", "choose no scale of a tensor with a Hadamard transform"),
        ("--nvfp4 bf16=layers:126", "the model has 126, 0 to 125"),
        ("--nvfp4 bf16=layers:0-110", "leaves nothing in NVFP4"),
        ("--nvfp4 rht=off,activations=rows,bf16=proj --tensor-parallel 8", "--tensor-parallel 1 works"),
        ("--nvfp4 rht=off --precision fp8", "does nothing for fp8"),
        ("--switch 0.8 --nvfp4 switch=0.7", "one setting with two values"),
        ("--switch 0.8:fp9", "did you mean 0.8:fp8"),
        ("--switch 0.8:fp8_blockwise", "needs a Hopper GPU"),
        ("--switch 0.8 --precision bf16", "bf16 is the highest"),
        ("--switch 999 --tokens 1e6", "comes after the last of 1 iterations"),
        ("--gpu-kind h200", "has no peak in nvfp4"),
        ("--gpu-kind h100 --precision mxfp8", "needs a Blackwell"),
        ("--precision fp8_blockwise", "needs a Hopper"),
        ("--model nemotron3-nano", "only that of dense Llamas"),
        ("--tensor-parallel 3", "TP=3 does not divide"),
        ("--pipeline-parallel 5", "PP=5 does not divide"),
        ("--tensor-parallel 8 --gpus 12", "GPUS=12 is not divisible"),
        ("--context-parallel 3", "GPUS=512 is not divisible by CP=3"),
        ("--seq-length 8193 --context-parallel 2 --tensor-parallel 8", "SEQ=8193 is not divisible"),
        ("--tensor-parallel 8 --pipeline-parallel 8 --global-batch-size 9", "GBS=9 is not divisible"),
        ("--tensor-parallel 8 --virtual-pipeline 2", "VP=2 does not divide the 126 layers of each of 1 stages"),
        ("--tensor-parallel 8 --pipeline-parallel 8 --virtual-pipeline 3", "VP=3 does not divide the 16 layers"),
        (
            "--tensor-parallel 8 --pipeline-parallel 8 --virtual-pipeline 2 --global-batch-size 72",
            "9 micro batches are not divisible by PP=8",
        ),
    ],
)
def test_a_wrong_size_is_refused(arguments, words) -> None:
    with pytest.raises(UsageError, match=words):
        estimate.main(arguments.split())
