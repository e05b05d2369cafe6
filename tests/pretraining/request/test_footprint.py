"""Parameters, FLOPs and memory against Megatron's own arithmetic, and against what was published."""

import pytest

from pretraining.request import footprint, models
from pretraining.request.precisions import PRECISIONS, find_precision

LLAMAS = [name for name, model in models.MODELS.items() if "hybrid_override_pattern" not in model.hf_config]


def memory(model: str, precision: str = "bf16", processes: int | None = None, micro: int | None = None):
    row = models.find_model(model)
    split = footprint.split_of(row, processes or row.tensor_parallel * row.pipeline_parallel)
    micro = micro or row.micro_batch_size
    return footprint.memory(row, find_precision(precision), split, micro_batch=micro, sequence=row.sequence_length)


@pytest.fixture
def theirs(megatron) -> dict[tuple[str, int], dict[str, float]]:
    """Megatron's counts, by model and processes."""
    found = megatron("megatrons_footprints")
    return {(name.split()[0], int(name.split()[1])): counts for name, counts in found.items()}


def test_flops_are_megatrons(theirs) -> None:
    for (name, _), counts in theirs.items():
        model = models.find_model(name)
        ours = footprint.flops_per_token(footprint.shape_of(model.hf_config), model.sequence_length)
        assert ours == pytest.approx(counts["flops"], rel=1e-4), name  # they pad the vocabulary


def test_weights_gradients_and_optimizer_are_megatrons(theirs) -> None:
    """ "Theoretical memory footprints: weight and optimizer=": it counts each norm twice, else to the byte."""
    for (name, processes), counts in theirs.items():
        if name in LLAMAS:
            ours = memory(name, processes=processes)
            assert ours.weights + ours.gradients + ours.optimizer == pytest.approx(counts["state"], rel=2e-3), name


def test_activations_are_near_megatrons(theirs) -> None:
    """ "activation=": the formula of arXiv 2205.05198, table 2, for another set of kernels."""
    for (name, processes), counts in theirs.items():
        if name in LLAMAS and not models.find_model(name).on_cpu:
            assert memory(name, processes=processes).activations == pytest.approx(counts["activations"], rel=0.2), name


def test_published_peaks() -> None:
    """NVIDIA's on a GB300, with the CUDA context in them: the estimate is a little over."""
    assert memory("llama3-8b").total / 1e9 == pytest.approx(221.6, rel=0.03)
    assert memory("llama3-8b", "nvfp4").total / 1e9 == pytest.approx(207.8, rel=0.06)


def test_published_sizes() -> None:
    nano = footprint.shape_of(models.find_model("nemotron3-nano").hf_config)
    assert footprint.parameters(nano) / 1e9 == pytest.approx(31.6, abs=0.05)  # NVIDIA's model card
    tiny = footprint.shape_of(models.find_model("tiny").hf_config)
    assert footprint.parameters(tiny) == 853_376


def test_what_a_precision_saves_is_activations() -> None:
    for name in ("fp8", "mxfp8", "nvfp4"):
        less, bf16 = memory("llama31-8b", name), memory("llama31-8b")
        assert less.activations < bf16.activations
        assert (less.gradients, less.optimizer) == (bf16.gradients, bf16.optimizer)
    assert memory("llama31-8b", "nvfp4").weights > memory("llama31-8b").weights  # quantized copies beside BF16


def test_the_distributed_optimizer_is_shared_among_replicas() -> None:
    one, four = memory("llama31-8b", processes=1), memory("llama31-8b", processes=4)
    assert four.optimizer == one.optimizer / 4 and four.weights == one.weights


@pytest.mark.parametrize("model", models.MODELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_activations_grow_with_the_micro_batch_alone(model: str, precision: str) -> None:
    one, two = memory(model, precision, micro=1), memory(model, precision, micro=2)
    assert two.activations == 2 * one.activations > 0
    assert (two.weights, two.optimizer) == (one.weights, one.optimizer)
