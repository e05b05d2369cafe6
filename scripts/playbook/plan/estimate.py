"""`make estimate`: memory a GPU, step time, days, GPU-hours and energy of a training that is past the hardware here.

`step_time` has the model of a step, `published_runs` what it was fitted on and is held against.
"""

import argparse
import math
from dataclasses import replace

from playbook.common import gpu_table
from playbook.common.gpu_table import GpuKind
from playbook.plan import published_runs, step_time
from playbook.plan.step_time import MOST_PIECES, Training, most_pieces
from pretraining.errors import UsageError, unknown
from pretraining.request import flags as training_flags
from pretraining.request import footprint, parallel
from pretraining.request.models import MODELS, Model, find_model
from pretraining.request.precisions import (
    PRECISIONS,
    LateSwitch,
    Precision,
    default_tail,
    find_precision,
    with_switch,
)
from pretraining.request.recipe import recipe_checks
from pretraining.request.recipe.kept_in_bf16 import KeptInBf16
from pretraining.request.recipe.nvfp4_recipe import HELP, Nvfp4Recipe, as_text
from pretraining.units import gigabytes

# Llama 3.1's own pretraining: 15.6T tokens (arXiv 2407.21783, section 3).
TOKENS = 15.6e12
MICRO_BATCHES_A_STAGE = 4
KINDS = {name: kind for name, kind in gpu_table.kinds().items() if kind.capability}
ASSUMPTIONS = (
    "no restarts, evaluations or checkpoints; every GPU is alike, and they work at their power limit",
    "distributed optimizer, flash attention, communication overlapped as in Megatron-Bridge's performance recipes",
    "memory is what PyTorch allocates; 3 GB for CUDA and NCCL are added before it is said to fit",
)


def plan(
    model: Model, precision: Precision, kind: GpuKind, gpus: int, *, sequence: int, micro: int = 1,
    batch: int | None = None, tensor: int | None = None, pipeline: int | None = None, context: int = 1,
    virtual: int | None = None, kept: tuple[int, int] = (0, 0), in_bf16: KeptInBf16 | None = None, recomputed: int = 0,
) -> tuple[Training, list[tuple[str, str]]]:  # fmt: skip
    """The training that is meant, with what was chosen for it and why.

    Chosen are, where None: `batch`, four micro batches a pipeline stage and replica; `tensor` and `pipeline`, the
    smallest that fit (one of them alone is 1); `virtual`, pieces of a stage's layers, as many as published runs have.
    `kept` are layers in BF16 at the start and at the end, `in_bf16` products of the others, `recomputed` those that
    compute their activations again.

    Raises UsageError where nothing fits, a size does not divide, or nothing is known of such a training.
    """
    _check(model, precision, kind, max(sum(kept), recomputed))
    layers = model.num_layers
    tensor, pipeline, why = _split(
        model, precision, kind, gpus, (micro, sequence, recomputed), (tensor, pipeline, context)
    )
    replicas = gpus // (tensor * pipeline * context)
    rule = "asked for"
    if batch is None:
        batch = replicas * micro * (MICRO_BATCHES_A_STAGE * pipeline if pipeline > 1 else 1)
        rule = f"{MICRO_BATCHES_A_STAGE} micro batches a stage" if pipeline > 1 else "a micro batch a replica"
    if batch % (replicas * micro):
        raise UsageError(f"GBS={batch} is not divisible by {replicas} replicas x MBS={micro}")
    pieces, interleaving = _pieces(layers, pipeline, batch // (replicas * micro), virtual)
    training = Training(
        footprint.shape_of(model.hf_config), precision, kind, gpus, micro, batch, sequence, kept=kept, in_bf16=in_bf16,
        tensor=tensor, pipeline=pipeline, virtual=pieces, context=context, recomputed=recomputed,
    )  # fmt: skip
    if virtual is None and not fits(memory(training)[0], kind):
        whole = replace(training, virtual=1)
        if fits(memory(whole)[0], kind):
            training, interleaving = whole, f"1: {pieces} would not fit"
    some = f"first {kept[0]} and last {kept[1]} of {layers} layers{f', and bf16={in_bf16}' if in_bf16 else ''}"
    return training, [
        ("split", f"tensor {tensor}, pipeline {pipeline}, context {context}, {replicas} replicas: {why}"),
        ("pieces a stage", interleaving),
        ("batch", f"{batch} x {sequence} = {batch * sequence:,} tokens, micro {micro}: {rule}"),
        ("in BF16", some if precision.quantized else "all"),
    ]


def _check(model: Model, precision: Precision, kind: GpuKind, of_layers: int) -> None:
    """Raise UsageError where a model has fewer layers than are spoken of, or nothing is known of its step's time."""
    if footprint.shape_of(model.hf_config).attention_layers != model.num_layers:
        raise UsageError(
            f"{model.name}: how long its step takes is not known here, only that of dense Llamas; "
            f"make models MODEL={model.name} says what memory it takes"
        )
    if kind.peak(precision.name) is None or not precision.trains_on(kind.capability or ()):
        raise UsageError(f"{kind.name} has no peak in {precision.name}: it needs {precision.needs}")
    if of_layers > model.num_layers:
        raise UsageError(f"{model.name} has {model.num_layers} layers, and {of_layers} of them were asked for")


def _split(
    model: Model, precision: Precision, kind: GpuKind, gpus: int, sizes: tuple[int, int, int],
    asked: tuple[int | None, int | None, int],
) -> tuple[int, int, str]:  # fmt: skip
    """Tensor and pipeline parallel sizes, and why these. Raises UsageError where none fits or they do not divide."""
    (micro, sequence, recomputed), (tensor, pipeline, context) = sizes, asked
    if gpus % context:
        raise UsageError(f"GPUS={gpus} is not divisible by CP={context}; take a multiple of it")
    why = "asked for"
    if tensor is None and pipeline is None:
        fit = parallel.smallest(
            model, precision, processes=gpus // context, gpu_bytes=kind.memory_bytes, micro_batch=micro,
            sequence=math.ceil(sequence / context), recomputed=recomputed / model.num_layers,
        )  # fmt: skip
        tensor, pipeline, why = fit.tensor, fit.pipeline, fit.reason
    split = {"tensor_parallel": tensor or 1, "pipeline_parallel": pipeline or 1, "context_parallel": context}
    parallel.check(model, model.num_layers, split, on_gpu=True, sequence=sequence)
    whole = math.prod(split.values())
    if gpus % whole:
        raise UsageError(f"GPUS={gpus} is not divisible by TP x PP x CP = {whole}; take a multiple of it")
    return tensor or 1, pipeline or 1, why


def _pieces(layers: int, pipeline: int, micro_batches: int, asked: int | None) -> tuple[int, str]:
    """Into how many pieces each stage divides its layers, and why so. Raises UsageError where they do not divide."""
    even = micro_batches % pipeline == 0
    if asked is None:
        pieces = most_pieces(layers, pipeline) if even else 1
        flag = f"ARGS=model.virtual_pipeline_model_parallel_size={pieces} trains so"
        return pieces, f"{pieces}: as many as come out even, up to {MOST_PIECES}; {flag}" if pieces > 1 else "1"
    stage = (layers + 2 * parallel.counts_embedding(layers, pipeline)) // pipeline
    if asked > 1 and (pipeline == 1 or stage % asked):
        raise UsageError(f"VP={asked} does not divide the {stage} layers of each of {pipeline} stages")
    if asked > 1 and not even:
        raise UsageError(f"VP={asked}: {micro_batches} micro batches are not divisible by PP={pipeline}; change GBS")
    return asked, f"{asked}: asked for"


def memory(training: Training) -> tuple[footprint.Memory, str]:
    """Of its most loaded GPU, and whether it fits. Gradients are in FP32, as recipes have it, or in BF16 if only so."""
    gpu = training.gpu.memory_bytes
    found, how = training.memory(footprint.FP32), "gradients in FP32"
    if not fits(found, training.gpu):
        smaller = training.memory(footprint.BF16)
        if fits(smaller, training.gpu):
            found, how = smaller, "gradients in BF16: ARGS='mixed_precision.grad_reduce_in_fp32=false'"
    room = "fits" if found.total <= parallel.HEADROOM * gpu else "fits, barely: fragments may not"
    return found, f"{room if fits(found, training.gpu) else 'DOES NOT FIT'}; {how}"


def fits(found: footprint.Memory, kind: GpuKind) -> bool:
    return found.total + footprint.CONTEXT_BYTES <= kind.memory_bytes


def asked_recipe(
    nvfp4: str | None, switch: str | None, model: Model, precision: Precision, kept: tuple[int, int]
) -> tuple[argparse.Namespace, Nvfp4Recipe | None]:
    """What is asked of the NVFP4 recipe and of a late switch, by the words of a training; None in another precision.

    Raises UsageError where a training on a GPU would.
    """
    recipe_checks.check_precision(nvfp4, precision.name)
    words = [f"--{name}={value}" for name, value in (("nvfp4", nvfp4), ("switch", switch)) if value is not None]
    asked = training_flags.merged(training_flags.parser("estimate").parse_args(words))
    asked.model, asked.precision, asked.on_gpu = model, precision, True
    return asked, recipe_checks.recipe(asked, None, model.num_layers, kept)


def _without_effect(recipe: Nvfp4Recipe | None) -> list[tuple[str, str]]:
    changed = recipe.changed() if recipe else {}
    others = {word: value for word, value in changed.items() if word not in ("bf16", "switch")}
    said = f"{as_text(others)}: without effect here, a step is estimated as by the whole recipe"
    return [("recipe", said)] if others else []


def phases(training: Training, switch: LateSwitch | None, at: int | None, steps: int) -> list[tuple[int, Training]]:
    """How many steps there are of which kind; of two kinds the second are those after a late switch."""
    if switch is None or at is None:
        return [(steps, training)]
    after = replace(
        training, precision=switch.precision or training.precision, forward_in_bf16=switch.precision is None
    )
    return [(at, training), (steps - at, after)]


def show(
    phases: list[tuple[int, Training]],
    what: str,
    tokens: float,
    chosen: list[tuple[str, str]],
    switch: LateSwitch | None,
) -> None:
    """Print the estimate, what it consists of, and how far it can be trusted."""
    taken = [phase for phase in phases if phase[0]]
    training, before = taken[0][1], " before the switch" * (len(taken) > 1)
    parts = step_time.parts(training)
    step = sum(parts.values())
    half, most = published_runs.misses()
    unlike = dict.fromkeys(words for _, each in taken for words in published_runs.unlike_all(each))
    spent = [(steps, sum(step_time.parts(each).values())) for steps, each in taken]
    days = sum(steps * seconds for steps, seconds in spent) / 86_400
    kinds = [f"{seconds:.3g} s, {steps:,} of them" for steps, seconds in spent]
    if taken[-1] is not phases[0]:
        kinds[-1] = f"after the switch {switch} {kinds[-1]}"
    interval = "how far off is not known" if unlike else f"{_few((1 - most) * days)} to {_few((1 + most) * days)}"
    hours = days * 24 * training.gpus
    energy = _energy(hours * training.gpu.power)
    rate = step_time.tokens_per_second(training)
    print(f"{what}: an estimate")
    _columns(
        [
            ("training", f"{_few(days)} days ({interval}) for {tokens:.3g} tokens"),
            ("", f"{hours:,.0f} GPU-hours; up to {energy}: the GPUs alone, at their limit of {training.gpu.power:g} W"),
            ("step", "; ".join(kinds)),
            ("a GPU", f"{rate:,.0f} tokens/s, {rate * training.flops_per_token / 1e12:.4g} MODEL_TFLOP/s{before}"),
            *_memory_lines(phases[0][1]),  # of the whole training
        ]
    )
    print(f"Where a step's time goes{before}, on the GPUs that the others wait for:")
    _columns([(name, f"{seconds / step:6.1%}  {seconds:.3g} s") for name, seconds in parts.items() if seconds], 24)
    print("How far to trust it:")
    known = len(published_runs.held_out())
    half, most = (math.ceil(100 * each) for each in (half, most))
    print(f"  {known} published runs that it was not fitted on: half lie within {half} %, nine of ten within {most} %")
    like = published_runs.nearest(training)
    print(f"  the nearest, {like.source}: {like.name}: {like.tflops:.0f} TFLOP/s a GPU, estimated {like.error():+.0%}")
    for words in unlike:
        print(f"  NOT KNOWN: {words}")
    if training.precision.name == "nvfp4" and training.context > 1:
        print(f"  {parallel.NO_CONTEXT_PARALLEL}")
    print("From:")
    _columns(chosen)
    print("Assumed:")
    for line in ASSUMPTIONS:
        print(f"  {line}")


def _memory_lines(training: Training) -> list[tuple[str, str]]:
    found, verdict = memory(training)
    total = training.gpu.memory_bytes
    gb = {name: getattr(found, name) / 1e9 for name in ("weights", "gradients", "optimizer", "activations")}
    return [
        ("memory", f"{found.total / 1e9:.1f} of {gigabytes(total)} ({total / 2**30:.0f} GiB) a GPU: {verdict}"),
        ("", ", ".join(f"{name} {value:.1f}" for name, value in gb.items())),
        ("resuming", "as much: a checkpoint is read in place (0.01 GB more in assets/results/h200-resumed)"),
    ]


def _columns(lines: list[tuple[str, str]], width: int = 15) -> None:
    for name, value in lines:
        print(f"  {name:<{width}} {value}")


def _energy(watt_hours: float) -> str:
    size, unit = next((pair for pair in ((1e9, "GWh"), (1e6, "MWh")) if watt_hours >= pair[0]), (1e3, "kWh"))
    return f"{watt_hours / size:.3g} {unit}"


def _few(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="run.py estimate", description="Memory, step time and days of a training.")
    flags.add_argument("--model", default="llama31-405b", help=", ".join(MODELS))
    flags.add_argument("--precision", default="nvfp4", help=", ".join(PRECISIONS))
    flags.add_argument("--gpu-kind", default="gb300", help=", ".join(KINDS))
    flags.add_argument("--nvfp4", help=f"less than its whole recipe: {HELP}")
    flags.add_argument("--switch", help="a late switch, as of a training")
    flags.add_argument("--tokens", type=float, default=TOKENS)
    defaults = {"gpus": 512, "seq-length": 8192, "micro-batch-size": 1, "context-parallel": 1, "recompute-layers": 0}
    for name, default in defaults.items():
        flags.add_argument(f"--{name}", type=int, default=default)
    sizes = ("global-batch-size", "tensor-parallel", "pipeline-parallel", "virtual-pipeline")
    for name in (*sizes, "bf16-head-layers", "bf16-tail-layers"):
        flags.add_argument(f"--{name}", type=int)
    return flags


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.gpu_kind not in KINDS:
        raise unknown("GPU kind", args.gpu_kind, KINDS)
    for name, value in vars(args).items():
        least = 0 if name.endswith("layers") else 1
        if isinstance(value, int | float) and not least <= value < math.inf:
            raise UsageError(f"--{name.replace('_', '-')} is {value}: at least {least} is needed")
    model, precision, kind = find_model(args.model), find_precision(args.precision), KINDS[args.gpu_kind]
    head, tail = args.bf16_head_layers, args.bf16_tail_layers
    head = precision.bf16_head if head is None else head
    tail = default_tail(precision, model.num_layers) if tail is None else tail
    asked, recipe = asked_recipe(args.nvfp4, args.switch, model, precision, (head, tail))
    switch = LateSwitch.of(asked.switch)
    training, chosen = plan(
        model, with_switch(precision, switch), kind, args.gpus, sequence=args.seq_length, micro=args.micro_batch_size,
        batch=args.global_batch_size, tensor=args.tensor_parallel, pipeline=args.pipeline_parallel,
        context=args.context_parallel, virtual=args.virtual_pipeline, kept=(head, tail),
        in_bf16=recipe and recipe.kept_in_bf16, recomputed=args.recompute_layers,
    )  # fmt: skip
    recipe_checks.check_split(recipe, {"tensor_parallel": training.tensor}, native=True)
    steps = math.ceil(args.tokens / (training.global_batch * training.sequence))
    chosen += _without_effect(recipe)
    at = recipe_checks.late_switch(asked, recipe, steps, None)["switches_at"]
    if switch:
        switch.check(precision, kind.capability)
    what = f"{model.name} in {precision.name} on {args.gpus} x {kind.name}, sequence {args.seq_length}"
    show(phases(training, switch, at, steps), what, args.tokens, chosen, switch)
    return 0
