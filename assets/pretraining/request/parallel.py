"""Over how many processes one copy of a model is split, and what of it."""

from __future__ import annotations

import argparse
import math

from pretraining.errors import UsageError
from pretraining.request.models import Model
from pretraining.request.overrides import flag_of
from pretraining.request.precisions import Precision

NO_CONTEXT_PARALLEL = "NVFP4 with context parallelism gave NaN gradient norms (Megatron-Bridge issues 1865 and 2051)"


def split_of(args: argparse.Namespace, model: Model, precision: Precision) -> dict[str, int]:
    """Processes that one copy of the model is split over, by kind.

    The sequence is not split unless asked for, although several recipes do (see NO_CONTEXT_PARALLEL): two precisions
    are only compared when split alike.

    Raises:
        UsageError: a size below 1, or a split that the precision cannot have.
    """
    asked = {name: getattr(args, name) for name in ("tensor_parallel", "pipeline_parallel", "context_parallel")}
    own = {"tensor_parallel": model.tensor_parallel, "pipeline_parallel": model.pipeline_parallel}
    split = {name: own.get(name, 1) if size is None else size for name, size in asked.items()}
    for name, size in split.items():
        if size < 1:
            raise UsageError(f"{flag_of(name)} is {size}; it must be at least 1")
    if precision.name == "nvfp4" and split["context_parallel"] > 1:
        raise UsageError(
            f"--context-parallel {split['context_parallel']} with nvfp4: {NO_CONTEXT_PARALLEL}; leave it out, or split "
            "the model with --tensor-parallel"
        )
    return split


def fewest_processes(split: dict[str, int], model: Model) -> int:
    """Processes that hold the whole model: its experts are spread over several replicas, within each stage."""
    return math.lcm(math.prod(split.values()), model.expert_parallel * split["pipeline_parallel"])


def replicas(split: dict[str, int], model: Model, processes: int) -> int:
    """Copies of the model among so many processes.

    Raises:
        UsageError: the processes are no multiple of those that hold it.
    """
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
