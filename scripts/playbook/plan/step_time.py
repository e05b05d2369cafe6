"""How long a step of a dense Llama takes: a sum of parts, with few coefficients, fitted on published runs.

Products take the time that power allows: published rates of one precision go with a GPU's power limit and not with the
peak of its tensor cores, so each precision has a rate a watt. What is not a product moves bytes: through the GPU's own
memory, or over links that hide behind arithmetic all but the fitted share. `published_runs.py` holds the runs, and says
what an estimate misses by on those that the coefficients were not fitted on.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from playbook.common.gpu_table import GpuKind
from pretraining.request import footprint, parallel
from pretraining.request.footprint import BF16
from pretraining.request.precisions import Precision
from pretraining.request.recipe.kept_in_bf16 import PROJECTIONS, KeptInBf16

HOPPER = (9, 0)
ALL = "all"
MOST_PIECES = 8  # of a stage's layers in published runs of the models here


@dataclass(frozen=True)
class Coefficients:
    """What the fit tunes.

    `bf16`, `fp8` and `nvfp4` are TFLOP/s a watt of the power limit, of products in that format. `layers` and `replicas`
    are the share of the time on the links that arithmetic does not hide: between processes that share a layer, a
    sequence or a pipeline, and between replicas.
    """

    bf16: float = 1.14
    fp8: float = 2.07
    nvfp4: float = 3.41
    hopper: float = 0.726  # what a watt does there, of what it does on Blackwell
    attention: float = 0.285  # share of the BF16 peak that flash attention reaches, by model FLOPs
    quantize: float = 3.21  # passes over each operand of a product, to quantize it along its rows and columns
    layers: float = 0.285
    replicas: float = 0.0773
    step: float = 0.0281  # seconds that grow with nothing


FITTED = Coefficients()


@dataclass(frozen=True)
class Training:
    shape: footprint.Shape
    precision: Precision
    gpu: GpuKind
    gpus: int
    micro_batch: int
    global_batch: int
    sequence: int
    kept: tuple[int, int] = (0, 0)  # layers in BF16 at the start and at the end
    in_bf16: KeptInBf16 | None = None  # products of the others that are, too
    forward_in_bf16: bool = False  # all of them, of the forward pass alone
    tensor: int = 1
    pipeline: int = 1  # stages
    virtual: int = 1  # pieces of the layers that each holds
    context: int = 1
    recomputed: int = 0  # layers that compute their activations again for the backward pass

    @property
    def layers(self) -> int:
        return self.shape.attention_layers

    @property
    def replicas(self) -> int:
        return self.gpus // (self.tensor * self.pipeline * self.context)

    @property
    def micro_batches(self) -> int:
        return self.global_batch // (self.replicas * self.micro_batch)

    @cached_property
    def flops_per_token(self) -> float:
        return footprint.flops_per_token(self.shape, self.sequence)

    def memory(self, gradient_bytes: int) -> footprint.Memory:
        """Of its most loaded GPU."""
        split = footprint.Split(self.tensor, self.pipeline, self.replicas, 1, self.virtual, self.context)
        names = (*PROJECTIONS, footprint.OTHERS)
        quantized = {name: sum(stage[name] for stage in self.stages) / self.layers for name in names}
        return footprint.process_memory(
            self.shape, self.precision, split, tokens=self.micro_batch * self.sequence, quantized=quantized,
            gradient_bytes=gradient_bytes, recomputed=self.recomputed / self.layers,
        )  # fmt: skip

    def _quantizes(self, projection: str, layer: int) -> bool:
        head, tail = self.kept
        kept = not head <= layer < self.layers - tail or (self.in_bf16 and self.in_bf16.holds(projection, layer))
        return self.precision.quantized and not kept

    @cached_property
    def stages(self) -> list[Counter[str]]:
        """The layers of each pipeline stage: all, and those in which each of PROJECTIONS is quantized.

        Pieces of the layers go round the stages, of which the last has the vocabulary besides. Where they come out even
        only so, embedding and loss count as a layer.
        """
        shift = int(parallel.counts_embedding(self.layers, self.pipeline))
        piece = max(1, (self.layers + 2 * shift) // (self.pipeline * self.virtual))
        found = [Counter[str]() for _ in range(self.pipeline)]
        for layer in range(self.layers):
            quantized = (name for name in PROJECTIONS if self._quantizes(name, layer))
            found[(layer + shift) // piece % self.pipeline].update((ALL, *quantized))
        return found


def most_pieces(layers: int, pipeline: int) -> int:
    """Into how many pieces a stage's layers are divided, as published runs have it: as many as come out even."""
    if pipeline == 1:
        return 1
    stage = (layers + 2 * parallel.counts_embedding(layers, pipeline)) // pipeline
    return next((pieces for pieces in range(MOST_PIECES, 1, -1) if stage % pieces == 0), 1)


def parts(training: Training, c: Coefficients = FITTED) -> dict[str, float]:
    """Seconds of a step by what takes them, on the pipeline stage that the others wait for; their sum is the step."""
    pieces = _of_a_micro_batch(training, c)
    waits = (training.pipeline - 1) / (training.micro_batches * training.virtual)
    found = {name: seconds * training.micro_batches for name, seconds in pieces.items()}
    found["pipeline bubble"] = waits * sum(found.values())
    sharers = training.replicas * training.context
    weights, _ = footprint.loaded_parameters(training.shape, footprint.Split(training.tensor, training.pipeline))
    reduced = 2 * BF16 * weights * (sharers - 1) / sharers  # gradients scattered, weights gathered
    found["data parallel"] = c.replicas * reduced / training.gpu.link(training.gpus)
    # Gradient, main weight and two moments are read, all but the first written again, and the BF16 weight.
    found["optimizer and the rest"] = c.step + 30 * weights / sharers / (training.gpu.hbm * 1e12)
    return found


def tokens_per_second(training: Training, c: Coefficients = FITTED) -> float:
    """Of one GPU."""
    return training.global_batch * training.sequence / sum(parts(training, c).values()) / training.gpus


def product_rate(training: Training, precision: str, c: Coefficients = FITTED) -> float:
    """FLOP/s of products in a precision."""
    a_watt = {"bf16": c.bf16, "nvfp4": c.nvfp4}.get(precision, c.fp8)
    return 1e12 * a_watt * training.gpu.power * (c.hopper if training.gpu.capability == HOPPER else 1)


def _of_a_micro_batch(training: Training, c: Coefficients) -> dict[str, float]:
    """Seconds of a micro batch's forward and backward pass on the slowest stage."""
    shape, gpu = training.shape, training.gpu
    tokens = training.micro_batch * training.sequence / training.context
    each = tokens / training.tensor
    hidden, heads, keys, inner = shape.hidden, shape.attention, shape.keys, shape.mlp_size
    memory = gpu.hbm * 1e12
    vocabulary = 6 * hidden * shape.words * each / product_rate(training, "bf16", c) + 6 * shape.words * each / memory
    layer = {
        "attention": 6 * heads * training.sequence * each / (c.attention * gpu.bf16 * 1e12),
        "norms and activation": BF16 * each * (6 * hidden + 3 * inner + heads + 2 * keys) / memory,
        # Gathered and scattered twice in either direction (sequence parallelism).
        "tensor parallel": c.layers * 8 * BF16 * each * hidden * (training.tensor - 1) / gpu.link(training.tensor),
        # Keys and values pass all ranks, and back again with their gradients.
        "context parallel": c.layers * 12 * BF16 * each * keys * (training.context - 1)
        / gpu.link(training.tensor * training.context),
    }  # fmt: skip
    again = 1 + training.recomputed / training.layers / 3
    stages = [
        _products(training, stage, each, c) | {name: stage[ALL] * value for name, value in layer.items()}
        for stage in training.stages
    ]
    seconds = [again * sum(stage.values()) for stage in stages]
    seconds[-1] += vocabulary
    slowest = seconds.index(max(seconds))
    found = stages[slowest]
    found["recomputation"] = (again - 1) * sum(found.values())
    found["vocabulary"] = vocabulary * (slowest == len(stages) - 1)
    if training.pipeline > 1:  # a piece's output goes on, and its gradient back
        wires = gpu.link(training.tensor * training.context * training.pipeline)
        found["pipeline parallel"] = c.layers * 4 * BF16 * each * hidden * training.virtual / wires
    return found


def _products(training: Training, stage: Counter[str], tokens: float, c: Coefficients) -> dict[str, float]:
    """Seconds that the products of a stage's layers take for so many tokens, and that it takes to quantize for them."""
    precision = training.precision.name
    found = dict.fromkeys((f"products in {precision}", "products in bf16", "quantizing"), 0.0)
    for name, (wide, out) in footprint.products(training.shape).items():
        fast, slow = (6 * wide * out * tokens / product_rate(training, each, c) for each in (precision, "bf16"))
        if training.forward_in_bf16:
            fast = (2 * fast + slow) / 3
        operands = wide + out + (wide if name == "proj" else 0)  # whose input is quantized once more, for its gradient
        found[f"products in {precision}"] += stage[name] * fast
        found["products in bf16"] += (stage[ALL] - stage[name]) * slow
        found["quantizing"] += stage[name] * c.quantize * BF16 * tokens * operands / (training.gpu.hbm * 1e12)
    return found
