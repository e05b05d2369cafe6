"""Over how many processes a copy of a model is split, whether it can be, and the smallest cut that fits a GPU's memory.

Matrices are cut by tensor, layers by pipeline, sequences by context parallelism. No torch in this module.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from pretraining.errors import UsageError
from pretraining.request import footprint
from pretraining.request.models import Model
from pretraining.request.overrides import flag_of
from pretraining.request.precisions import Precision
from pretraining.units import gigabytes

KINDS = ("tensor_parallel", "pipeline_parallel", "context_parallel")
NO_CONTEXT_PARALLEL = "NVFP4 with context parallelism gave NaN gradient norms (Megatron-Bridge issues 1865 and 2051)"
HEADROOM = 0.9  # of a GPU's memory: the rest is fragments, NCCL's buffers and the CUDA context
_NODE = 8  # tensor parallelism stays within NVLink's reach


def split_of(args: argparse.Namespace, model: Model, precision: Precision) -> dict[str, int]:
    """Processes that one copy of the model is split over, by kind.

    The sequence is not split unless asked for, although several recipes do (see NO_CONTEXT_PARALLEL): two precisions
    are only compared when split alike.

    Raises:
        UsageError: a size below 1, or a split that the precision cannot have.
    """
    own = {"tensor_parallel": model.tensor_parallel, "pipeline_parallel": model.pipeline_parallel}
    asked = {name: getattr(args, name) for name in KINDS}
    split = {name: own.get(name, 1) if size is None else size for name, size in asked.items()}
    for name, size in split.items():
        if size < 1:
            raise UsageError(f"{flag_of(name)} is {size}; it must be at least 1")
    if precision.fp4 and split["context_parallel"] > 1:
        raise UsageError(
            f"--context-parallel {split['context_parallel']} with nvfp4: {NO_CONTEXT_PARALLEL}; leave it out, or split "
            "the model with --tensor-parallel"
        )
    return split


def fewest_processes(split: dict[str, int], model: Model) -> int:
    """Processes that hold the whole model: its experts are spread over several replicas, within each stage."""
    return math.lcm(math.prod(split.values()), model.expert_parallel * split["pipeline_parallel"])


def replicas(split: dict[str, int], model: Model, processes: int) -> int:
    """Copies of the model among so many processes. Raises UsageError where these are no multiple of those it needs."""
    fewest = fewest_processes(split, model)
    if processes % fewest:
        kinds = " x ".join(f"{name.removesuffix('_parallel')} {size}" for name, size in split.items())
        kinds += f", expert {model.expert_parallel}" if model.expert_parallel > 1 else ""
        raise UsageError(
            f"{model.name} is split over {fewest} processes ({kinds} parallel), and "
            f"{processes} {'was' if processes == 1 else 'were'} started: use a multiple of it, NPROC={fewest} "
            f"(torchrun --nproc_per_node {fewest})"
        )
    return processes // math.prod(split.values())


def check(model: Model, layers: int, split: dict[str, int], *, on_gpu: bool, sequence: int) -> None:
    """Raise UsageError where a size does not divide, with the nearest that does; `layers` are as it will be built."""
    tensor, pipeline, context = (split[f"{kind}_parallel"] for kind in ("tensor", "pipeline", "context"))
    if wrong := _not_cut(model, tensor):
        fits = next(size for size in range(tensor, 0, -1) if not _not_cut(model, size))
        raise UsageError(f"TP={tensor} does not divide {model.name}'s {wrong}; TP={fits} does")
    if not stages_fit(layers, pipeline):
        fits = next(size for size in range(pipeline, 0, -1) if stages_fit(layers, size))
        raise UsageError(f"PP={pipeline} does not divide {model.name}'s {layers} layers; PP={fits} does")
    if context > 1 and not on_gpu:
        raise UsageError(f"CP={context}: sharing a sequence needs a GPU's attention; on the CPU leave CP out")
    if context > 1 and sequence % (2 * context):
        raise UsageError(f"SEQ={sequence} is not divisible by 2 x CP = {2 * context}; take a multiple of it")
    if on_gpu and tensor > 1 and sequence % (tensor * context):
        whole = tensor * context
        raise UsageError(f"SEQ={sequence} is not divisible by TP x CP = {whole}, as sequence parallelism needs")


def padded_words(words: int, tensor_parallel: int) -> int:
    """The vocabulary filled up to a multiple of the tensor parallel size: each rank holds as many words."""
    return words + -words % tensor_parallel


def stages_fit(layers: int, stages: int) -> bool:
    """Whether pipeline stages get equal shares: of the layers, or of them with embedding and loss as one layer each."""
    return layers % stages == 0 or counts_embedding(layers, stages)


def counts_embedding(layers: int, stages: int) -> bool:
    """Whether embedding and loss must count as a layer each for equal stages (405B: 126 + 2 over 8)."""
    return layers % stages != 0 and (layers + 2) % stages == 0


@dataclass(frozen=True)
class Fit:
    """A split that fits, with its memory (bytes of the most loaded process) and why it was chosen."""

    tensor: int
    pipeline: int
    memory: float
    reason: str


def smallest(
    model: Model, precision: Precision, *, processes: int, gpu_bytes: float, micro_batch: int, sequence: int,
    recomputed: float = 0.0,
) -> Fit:  # fmt: skip
    """The split over fewest processes whose estimated memory fits, tensor before pipeline parallelism.

    Raises:
        UsageError: none fits that many processes, with the least memory a process could have.
    """
    room = HEADROOM * gpu_bytes
    tried = []
    for tensor, pipeline in _splits(model, processes):
        data = processes // (tensor * pipeline)
        split = footprint.Split(tensor, pipeline, data, model.expert_parallel)
        needed = footprint.memory(
            model, precision, split, micro_batch=micro_batch, sequence=sequence, recomputed=recomputed
        ).total
        if needed <= room:
            words = f"the smallest split whose estimate, {gigabytes(needed)}, is below {HEADROOM:.0%} of the GPU's "
            before = f"; {tried[-1][0]} would take {gigabytes(tried[-1][1])}" if tried else ""
            return Fit(tensor, pipeline, needed, f"{words}{gigabytes(gpu_bytes)}{before}")
        tried.append((f"TP {tensor} PP {pipeline}", needed))
    least = min(needed for _, needed in tried)
    raise UsageError(
        f"{model.name} does not fit {processes} GPUs of {gigabytes(gpu_bytes)} at micro batches of {micro_batch} x "
        f"{sequence} tokens: at least {gigabytes(least)} each; more GPUs, a lower MBS or SEQ, or a smaller MODEL"
    )


def _splits(model: Model, processes: int) -> list[tuple[int, int]]:
    """(tensor, pipeline) sizes that divide the model and the processes, the smallest product first."""
    found = [
        (tensor, pipeline)
        for tensor in range(1, min(_NODE, processes) + 1)
        for pipeline in range(1, processes // tensor + 1)
        if processes % (tensor * pipeline) == 0
        and not _not_cut(model, tensor)
        and stages_fit(model.num_layers, pipeline)
    ]
    return sorted(found, key=lambda split: (math.prod(split), split[1]))


def _not_cut(model: Model, tensor: int) -> str:
    """What of a model that many tensor parallel ranks cannot share, "" where they can.

    Fewer key-value heads than ranks are held several times over, where that comes out even.
    """
    config = model.hf_config
    sizes = {"attention heads": config["num_attention_heads"], "units of the MLP": config.get("intermediate_size", 0)}
    for what, size in sizes.items():
        if size % tensor:
            return f"{size} {what}"
    groups = config["num_key_value_heads"]
    return f"{groups} key-value heads" if groups % tensor and tensor % groups else ""
