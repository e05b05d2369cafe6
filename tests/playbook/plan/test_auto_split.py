"""TP=auto: the sizes it stands for, in the plan with their reason."""

import pytest

from playbook.cli import train
from playbook.plan import plan
from playbook.plan.gpus import Gpu
from playbook.plan.place import Place
from pretraining.errors import UsageError


def planned(*flags: str, memory: int | None = 80 * 10**9, precision: str = "bf16"):
    args = train.parser("x").parse_args(["--auto-split", *flags])
    where = Place("container", gpu=Gpu(0, "GPU-0", "NVIDIA H100", (9, 0), memory))
    return plan.planned(args, precision, where)


def test_the_smallest_split_that_fits_and_why() -> None:
    job = planned("--model", "llama31-70b", "--nproc", "32", "--micro-batch-size", "1")
    chosen = job.settings
    assert (chosen.tensor_parallel, chosen.pipeline_parallel) == (8, 2)
    assert "below 90% of the GPU's 80 GB" in job.choices["split"].reason
    shared = planned("--model", "llama32-1b", "--nproc", "4", "--context-parallel", "2").settings
    assert (shared.tensor_parallel, shared.pipeline_parallel, shared.context_parallel) == (1, 1, 2)  # CP as asked for
    small = planned("--model", "llama32-1b", "--nproc", "2").settings
    assert (small.tensor_parallel, small.pipeline_parallel) == (1, 1)


def test_a_model_that_fits_nowhere_and_a_gpu_of_unknown_memory() -> None:
    with pytest.raises(UsageError, match="llama31-70b does not fit 2 GPUs of 80 GB"):
        planned("--model", "llama31-70b", "--nproc", "2")
    with pytest.raises(UsageError, match="TP=auto needs a GPU whose memory is known"):
        planned("--nproc", "2", memory=None)


def test_a_late_switch_is_of_the_quantized_side_and_to_what_the_gpu_has() -> None:
    size = ("--model", "llama32-1b", "--nproc", "1", "--train-iters", "20")
    switched = planned(*size, "--switch", "0.5", precision="fp8")
    assert switched.request()["switch"] == switched.choices["late switch"].value == "0.5:bf16"
    assert switched.choices["late switch"].reason == "asked for" and switched.settings.switches_at == 10
    plain = planned(*size, "--switch", "0.5")  # BF16's of the same comparison
    assert "switch" not in plain.request() and "late switch" not in plain.choices
    assert "switch" not in planned(*size, "--switch", "never", precision="fp8").request()
    emulated = planned(*size, "--switch", "0.5:fp8", "--emulate", precision="nvfp4")
    assert emulated.request()["nvfp4"]["switch"] == "0.5:fp8" and "late switch" not in emulated.choices
    with pytest.raises(UsageError, match=r"mxfp8 needs .* has compute capability 9\.0: --switch 0\.5:bf16 works"):
        planned(*size, "--switch", "0.5:mxfp8", precision="fp8")
    with pytest.raises(UsageError, match=r"--precision fp8_blockwise --switch 0\.5:forward"):
        planned(*size, "--switch", "0.5:forward", precision="fp8")
