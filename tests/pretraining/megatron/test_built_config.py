"""What Megatron-Bridge built is looked at before the first iteration."""

from types import SimpleNamespace

import pytest

from pretraining.errors import UsageError
from pretraining.megatron import bridge_config
from pretraining.request.models import find_model


@pytest.mark.parametrize(
    ("step", "last", "ways_out"), [(3, 3, True), (0, 3, False), (6, 6, False), (3, 6, False), (0, 0, False)]
)
@pytest.mark.parametrize("evaluate", [True, False])
def test_what_trains_nothing_is_refused_where_it_would(step: int, last: int, ways_out: bool, evaluate: bool) -> None:
    """A plugin may name another checkpoint, or more iterations: it is seen before the first one."""
    state = SimpleNamespace(
        train_state=SimpleNamespace(step=step),
        cfg=SimpleNamespace(
            train=SimpleNamespace(train_iters=last), dataset=SimpleNamespace(mock=False),
            model=SimpleNamespace(vocab_size=257),
        ),
    )  # fmt: skip
    chosen = SimpleNamespace(
        trains=False, evaluate=evaluate, iteration=3, finetune=None, data="text", model=find_model("tiny"),
        tensor_parallel=1,
    )  # fmt: skip
    if ways_out:
        bridge_config.check_built(state, chosen)
        return
    what = "--evaluate" if evaluate else "--export"
    with pytest.raises(UsageError, match=f"{what} is of iteration 3, .* at iteration {step} and train until {last}"):
        bridge_config.check_built(state, chosen)


GATHER, SHARED = "mixed_precision.fp8_param_gather", "mixed_precision.reuse_grad_buf_for_mxfp8_param_ag"
BF16_MXFP8 = f"{GATHER}=false {SHARED}=false"
ENDS = "FP8 but for the first 1 and the last 1 layers"
BACK = f"resume with {GATHER}=true, or begin anew"


@pytest.mark.parametrize(
    ("earlier", "continued", "kept", "would", "remedy"),
    [
        ("fp8", "fp8 --switch 6", ENDS, "BF16 for --switch 6:bf16", "leave --switch 6:bf16 out, or begin anew with it"),
        ("fp8", f"fp8 {GATHER}=false", ENDS, "BF16", BACK),
        ("fp8", "fp8 mixed_precision.fp8_param=false", ENDS, "BF16", BACK),
        ("fp8", "bf16", ENDS, "BF16", "resume in a precision that computes in FP8, or begin anew"),
        ("fp8", "nvfp4 --emulate", ENDS, "BF16 for --emulate", "resume in a precision that computes in FP8, or begin"),
        ("mxfp8", f"mxfp8 {BF16_MXFP8}", "FP8", "BF16", f"resume with {BF16_MXFP8.replace('false', 'true')}, or begin"),
        ("fp8 --switch 6", "fp8", "BF16", ENDS, f"resume with {GATHER}=false, or begin anew"),
        ("bf16", "fp8", "BF16", ENDS, f"resume with {GATHER}=false, or begin anew"),
        ("mxfp8 --switch 6", "mxfp8", "BF16", "FP8", f"resume with {BF16_MXFP8}, or begin anew"),
        (
            "fp8", "fp8 --bf16-tail-layers 3", ENDS, "FP8 but for the first 1 and the last 3 layers",
            "resume with --bf16-head-layers 1 --bf16-tail-layers 1, or begin anew",
        ),
        (
            "fp8 --bf16-head-layers 0 --bf16-tail-layers 0", "fp8", "FP8", ENDS,
            "resume with --bf16-head-layers 0 --bf16-tail-layers 0, or begin anew",
        ),
    ],
)  # fmt: skip
def test_an_optimizer_of_weights_in_another_format(megatron, earlier, continued, kept, would, remedy) -> None:
    said = megatron("resumed")[f"{earlier} | {continued}"]
    assert said.startswith(f"kept its weights in {kept}, and this run would in {would}: Megatron stores")
    assert f"; {remedy}" in said


@pytest.mark.parametrize(
    "accepted",
    [
        "fp8 | fp8",
        "fp8 --switch 6 | fp8 --switch 7 --bf16-tail-layers 3",
        f"fp8 --switch 6 | fp8 {GATHER}=false",
        f"mxfp8 --switch 6 | mxfp8 {BF16_MXFP8}",
        "fp8_blockwise | fp8_blockwise --switch 6",
        # By parameter, or no state at all.
        "nvfp4 --save 3 | nvfp4 --emulate",
        "nvfp4 --save 3 --emulate | nvfp4 --switch 6",
        "fp8 checkpoint.dist_ckpt_optim_fully_reshardable=true | fp8 --switch 6",
        "fp8 ddp.use_distributed_optimizer=false | fp8 --switch 6",
        "fp8 checkpoint.save_optim=false | fp8 --switch 6",
        "fp8 | fp8 --switch 6 checkpoint.load_optim=false",
        "evaluate",
        "export",
        "lora",
    ],
)
def test_an_optimizer_that_loads(megatron, accepted: str) -> None:
    assert megatron("resumed")[accepted] == "accepted"


def test_it_is_refused_before_the_model_is_built(megatron) -> None:
    assert megatron("resumed")["as a run"].endswith(megatron("resumed")["train"])
    assert megatron("resumed")["train"].startswith(f"kept its weights in {ENDS}, and this run would in BF16: ")
