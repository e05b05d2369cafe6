"""`make estimate`: memory a GPU, step time and days of a training that is past the hardware here.

Time is FLOPs over FLOP rate. The FLOPs are Megatron's count. The rate is a dense peak times an efficiency, apart for
what runs in BF16 and for what is quantized, and the efficiencies are fitted on published runs (ROWS with `fits`).
Rows that were held out say how far that carries.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import cache

from pretraining.errors import UsageError, unknown
from pretraining.request import footprint, parallel
from pretraining.request.models import MODELS, Model, find_model
from pretraining.request.precisions import PRECISIONS, Precision, default_tail, find_precision

TOLERANCE = 0.15
# Llama 3.1's own pretraining: 15.6T tokens (arXiv 2407.21783, section 3).
TOKENS = 15.6e12
MICRO_BATCHES_A_STAGE = 4


@dataclass(frozen=True)
class Kind:
    """A GPU: dense peaks in TFLOP/s (dgxc-benchmarking) and memory in GB (vendor's data sheet)."""

    name: str
    memory: float
    bf16: float
    fp8: float
    fp4: float | None = None

    def peak(self, precision: Precision) -> float | None:
        """Of the precision's own products, None where the GPU has none."""
        return {"bf16": self.bf16, "nvfp4": self.fp4}.get(precision.name, self.fp8)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("gb300", 288, 2450, 4900, 14700),
        Kind("b300", 288, 2250, 4500, 13500),
        Kind("gb200", 192, 2450, 4900, 9800),
        Kind("b200", 192, 2250, 4500, 9000),
        Kind("h200", 141, 989, 1979),
        Kind("h100", 80, 989, 1979),
    )
}


@dataclass(frozen=True)
class Row:
    """A published or measured rate in MODEL_TFLOP/s a GPU.

    Attributes:
        layers: of a shortened model, else None.
        fits: one of those that the efficiencies are fitted on; the others check them.
    """

    source: str
    kind: str
    precision: str
    rate: float
    sequence: int
    fits: bool = False
    layers: int | None = None


# All are Llama 3 8B with Megatron-Bridge. torchtitan's 8B figures (4x GB200, 21,919 and 30,040 tokens/s/GPU, which is
# 1128 and 1546) are another framework's: this estimate lies 13 % and 16 % above them.
ROWS = (
    Row("NVIDIA DGX Station playbook, 1x GB300", "gb300", "bf16", 1399, 4096, fits=True),
    Row("Megatron-Bridge reduced-precision notebook, 4x GB200", "gb200", "bf16", 1158, 8192, fits=True),
    Row("NVIDIA DGX Station playbook, 1x GB300", "gb300", "nvfp4", 2347, 4096, fits=True),
    Row("Megatron-Bridge reduced-precision notebook, 4x GB200", "gb200", "nvfp4", 1805, 8192, fits=True),
    Row("the same, FP8 current scaling (1.36x BF16)", "gb200", "fp8", 1158 * 1.36, 8192, fits=True),
    Row("NVIDIA blog, GB200 (sequence taken as 8192)", "gb200", "bf16", 1165, 8192),
    Row("NVIDIA blog, GB200 (sequence taken as 8192)", "gb200", "nvfp4", 1850, 8192),
    Row("MLPerf Training v5.1, 8x GB300", "gb300", "nvfp4", 2442, 8192),
    Row("the notebook, MXFP8 (1.35x BF16)", "gb200", "mxfp8", 1158 * 1.35, 8192),
    Row("measured by this project, H200, 8 layers", "h200", "bf16", 571, 4096, layers=8),
    Row("measured by this project, H200, 8 layers", "h200", "fp8", 660, 4096, layers=8),
)


def quantized_share(model: Model, precision: Precision, sequence: int, layers: int | None = None) -> float:
    """The share of all model FLOPs that the precision's own products do."""
    built = layers or model.num_layers
    shape = footprint.shape_of({**model.hf_config, "num_hidden_layers": built})
    kept = built if precision.name == "bf16" else precision.bf16_head + default_tail(precision, built)
    linear = 6.0 * footprint.linear_parameters(shape) * (built - kept) / built
    return linear / footprint.flops_per_token(shape, sequence)


@cache
def efficiency(precision: str) -> float:
    """Of the peak, that products in `precision` reach: the geometric mean over the rows it is fitted on.

    Of a quantized run, the part that stays in BF16 is taken out first, at BF16's own efficiency. The FP8 formats share
    FP8's.
    """
    fitted = precision if precision in ("bf16", "nvfp4") else "fp8"
    found = []
    for row in ROWS:
        if row.fits and row.precision == fitted:
            kind, chosen = KINDS[row.kind], find_precision(row.precision)
            if fitted == "bf16":
                found.append(row.rate / kind.bf16)
                continue
            share = quantized_share(find_model("llama3-8b"), chosen, row.sequence)
            left = 1 / row.rate - (1 - share) / (efficiency("bf16") * kind.bf16)
            found.append(share / left / kind.peak(chosen))
    return math.prod(found) ** (1 / len(found))


def rate(model: Model, precision: Precision, kind: Kind, sequence: int, layers: int | None = None) -> float:
    """MODEL_TFLOP/s of one GPU that waits for no other. Raises UsageError where it has no such products."""
    peak = kind.peak(precision)
    if peak is None:
        raise UsageError(f"{kind.name} has no peak in {precision.name}: it needs {precision.needs}")
    share = quantized_share(model, precision, sequence, layers)
    quantized = share / (efficiency(precision.name) * peak) if share else 0.0
    return 1 / (quantized + (1 - share) / (efficiency("bf16") * kind.bf16))


def predicted(row: Row) -> float:
    """What this module says of a row."""
    return rate(find_model("llama3-8b"), find_precision(row.precision), KINDS[row.kind], row.sequence, row.layers)


@dataclass(frozen=True)
class Estimate:
    """Of one training; bytes, seconds, tokens, and the reasons of what was chosen."""

    memory: footprint.Memory
    fits: bool
    step_seconds: float
    days: float
    lines: list[tuple[str, str, str]]


def estimate(
    model: Model, precision: Precision, kind: Kind, gpus: int, *, tokens: float, sequence: int, micro: int,
    batch: int | None, split: tuple[int | None, int | None],
) -> Estimate:  # fmt: skip
    """See the module.

    Args:
        tokens: of the whole training.
        sequence, micro: tokens a sequence, sequences a forward pass.
        batch: sequences a step, None for four micro batches a pipeline stage and replica.
        split: tensor and pipeline parallel size, None for the smallest that fit.

    Raises:
        UsageError: nothing fits, or a size that does not divide.
    """
    tensor, pipeline = split
    if tensor is None and pipeline is None:
        fit = parallel.smallest(
            model, precision, processes=gpus, gpu_bytes=kind.memory * 1e9, micro_batch=micro, sequence=sequence
        )
        tensor, pipeline, why = fit.tensor, fit.pipeline, fit.reason
    else:
        tensor, pipeline, why = tensor or 1, pipeline or 1, "asked for"
        sizes = {"tensor_parallel": tensor, "pipeline_parallel": pipeline, "context_parallel": 1}
        parallel.check(model, model.num_layers, sizes, on_gpu=True, sequence=sequence)
    if gpus % (tensor * pipeline):
        raise UsageError(f"GPUS={gpus} is not divisible by TP x PP = {tensor * pipeline}; take a multiple of it")
    replicas = gpus // (tensor * pipeline)
    rule = "asked for"
    if batch is None:
        batch = replicas * micro * (MICRO_BATCHES_A_STAGE * pipeline if pipeline > 1 else 1)
        rule = f"{MICRO_BATCHES_A_STAGE} micro batches a stage" if pipeline > 1 else "a micro batch a GPU"
    if batch % (replicas * micro):
        raise UsageError(f"GBS={batch} is not divisible by {replicas} replicas x MBS={micro}")
    micro_batches = batch // (replicas * micro)
    memory = footprint.memory(
        model, precision, footprint.Split(tensor, pipeline, replicas), micro_batch=micro, sequence=sequence
    )
    per_token = footprint.flops_per_token(footprint.shape_of(model.hf_config), sequence)
    bubble = (pipeline - 1) / (micro_batches + pipeline - 1)
    alone = rate(model, precision, kind, sequence)
    seconds = batch * sequence * per_token / (gpus * alone * 1e12 * (1 - bubble))
    share = quantized_share(model, precision, sequence)
    peak = kind.peak(precision)
    lines = [
        ("FLOPs a token", f"{per_token / 1e9:.2f} GFLOP", "Megatron-Bridge's flop_utils, causal attention"),
        ("peaks", f"{peak:g} and BF16 {kind.bf16:g} TFLOP/s", f"{kind.name}, dense (dgxc-benchmarking)"),
        ("efficiencies", f"{efficiency(precision.name):.1%} and {efficiency('bf16'):.1%}", "fitted, see below"),
        ("quantized", f"{share:.0%} of the FLOPs", f"linear layers but those kept in BF16, {precision.name}"),
        ("split", f"tensor {tensor}, pipeline {pipeline}, {replicas} replicas", why),
        ("batch", f"{batch} x {sequence} tokens, micro {micro}", rule),
        ("pipeline bubble", f"{bubble:.1%}", f"1F1B over {micro_batches} micro batches, not interleaved"),
        ("rate", f"{alone * (1 - bubble):.0f} MODEL_TFLOP/s a GPU", "peaks x efficiencies, less the bubble"),
    ]
    fits = memory.total <= parallel.HEADROOM * kind.memory * 1e9
    return Estimate(memory, fits, seconds, tokens / (batch * sequence) * seconds / 86_400, lines)


ASSUMPTIONS = (
    "communication hides behind arithmetic as well as in the published runs, which have 1 to 8 GPUs: time is a floor",
    "no restarts, evaluations or checkpoints; every GPU is alike and stays at its clock",
    "distributed optimizer over the replicas, flash attention, no recomputation; memory without fragments and NCCL",
)


def show(found: Estimate, what: str, tokens: float) -> None:
    """Print it, every input with its source."""
    gb = {name: getattr(found.memory, name) / 1e9 for name in ("weights", "gradients", "optimizer", "activations")}
    parts = ", ".join(f"{name} {value:.1f}" for name, value in gb.items())
    print(what)
    print(f"  memory a GPU   {found.memory.total / 1e9:.0f} GB ({parts}){'' if found.fits else ': DOES NOT FIT'}")
    print(f"  step time      {found.step_seconds:.2f} s")
    print(f"  training       {found.days:.1f} days for {tokens:.3g} tokens")
    print("From:")
    for name, value, source in found.lines:
        print(f"  {name:<16} {value:<38} {source}")
    print("Assumed:")
    for line in ASSUMPTIONS:
        print(f"  {line}")
    print("Efficiencies, MODEL_TFLOP/s a GPU, Llama 3 8B:")
    for row in ROWS:
        said = predicted(row)
        use = "fitted on" if row.fits else "held out"
        off = f"{said / row.rate - 1:+.0%}"
        print(f"  {use:<10} {row.precision:<6} {row.rate:>5.0f}  estimated {said:>5.0f}  {off:>4}  {row.source}")


def main(arguments: list[str] | None = None) -> int:
    """The command line. Raises UsageError."""
    flags = argparse.ArgumentParser(prog="estimate.py", description="Memory, step time and days of a training.")
    flags.add_argument("--model", default="llama31-405b", help=", ".join(MODELS))
    flags.add_argument("--precision", default="nvfp4", help=", ".join(PRECISIONS))
    flags.add_argument("--gpus", type=int, default=512)
    flags.add_argument("--gpu-kind", default="gb300", help=", ".join(KINDS))
    flags.add_argument("--tokens", type=float, default=TOKENS)
    flags.add_argument("--seq-length", type=int, default=8192)
    flags.add_argument("--micro-batch-size", type=int, default=1)
    flags.add_argument("--global-batch-size", type=int)
    flags.add_argument("--tensor-parallel", type=int)
    flags.add_argument("--pipeline-parallel", type=int)
    args = flags.parse_args(arguments)
    if args.gpu_kind not in KINDS:
        raise unknown("GPU kind", args.gpu_kind, KINDS)
    for name in ("gpus", "tokens", "seq_length", "micro_batch_size"):
        if getattr(args, name) < 1:
            raise UsageError(f"{name.upper()}={getattr(args, name)}: at least 1")
    model, precision, kind = find_model(args.model), find_precision(args.precision), KINDS[args.gpu_kind]
    found = estimate(
        model, precision, kind, args.gpus, tokens=args.tokens, sequence=args.seq_length, micro=args.micro_batch_size,
        batch=args.global_batch_size, split=(args.tensor_parallel, args.pipeline_parallel),
    )  # fmt: skip
    what = f"{model.name} in {precision.name} on {args.gpus} x {kind.name}, sequence {args.seq_length}: an estimate"
    show(found, what, args.tokens)
    return 0
