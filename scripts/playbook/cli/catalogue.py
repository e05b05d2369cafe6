"""`make models` and `make precisions`: what can be trained, in what, and what it takes."""

import argparse

from playbook.common.tables import print_table
from playbook.plan import gpus
from pretraining import packages
from pretraining.errors import UsageError
from pretraining.request import footprint, parallel
from pretraining.request.models import MODELS, Model, find_model
from pretraining.request.precisions import PRECISIONS, LateSwitch, Precision
from pretraining.request.recipe import nvfp4_recipe, recipe_checks
from pretraining.request.recipe.kept_in_bf16 import EXAMPLE
from pretraining.units import amount

GB = 1e9


def models(args: argparse.Namespace) -> int:
    """Print all models, or one with its memory by kind. Raises UsageError for processes that do not hold it."""
    if args.model:
        _print_one(find_model(args.model), args)
        return 0
    precisions = [row for row in PRECISIONS.values() if not row.delayed]  # which takes the room of fp8
    rows = [["model", "parameters", "GFLOP/token", "TP x PP", "GPUs", *(f"{row.name} GB" for row in precisions)]]
    for model in MODELS.values():
        processes, split = _split(model, args)
        shape = footprint.shape_of(model.hf_config)
        size = args.seq_length or model.sequence_length
        flops = f"{footprint.flops_per_token(shape, size) / 1e9:.4g}"
        parts = f"{model.tensor_parallel} x {model.pipeline_parallel}"
        memory = (_gigabytes(_memory(model, row, split, args).total) for row in precisions)
        rows.append([model.name, amount(footprint.parameters(shape)), flops, parts, str(processes), *memory])
    print_table(rows, left=1)
    spread = [model for model in MODELS.values() if model.expert_parallel > 1]
    experts = " ".join(f"{each.name}'s experts are spread over {each.expert_parallel} GPUs." for each in spread)
    print(
        "\nMemory is that of the fullest GPU, estimated, at the model's default micro batch and sequence, without\n"
        "recomputation; keep a tenth free. `make models MODEL=NAME` says what it is made of; MBS and SEQ change it,\n"
        f"and NPROC that of one model. {experts}"
    )
    return 0


def precisions() -> int:
    rows = [["precision", "Megatron-Bridge preset", "kept in BF16", "gathers in", "compute capability"]]
    for row in PRECISIONS.values():
        since = ".".join(map(str, row.gather_since))
        gathers = f"{row.gather} from {since}" if since else row.gather
        rows.append([row.name, row.preset, _kept(row), gathers, _capabilities(row)])
    print_table(rows, left=len(rows[0]))
    needed = f"with Transformer Engine {packages.dotted(packages.PROBED)} or newer"
    print(f"\n* {needed}, where its kernels pass a probe at the run's start; PROBE=0 leaves it out.\n")
    _print_words()
    print(
        "\nBF16_HEAD= and BF16_TAIL= keep other numbers of layers in BF16, in every precision but bf16,\n"
        f'and NVFP4="bf16={EXAMPLE}" single products of nvfp4.\n'
        f"Without a GPU {' and '.join(name for name, row in PRECISIONS.items() if row.on_cpu)} train, with exact "
        "arithmetic; on another GPU nvfp4 does with EMULATE=1."
    )
    return 0


def _capabilities(row: Precision) -> str:
    if row.capabilities is None:
        return "8.0 or newer"
    return " ".join(gpus.dotted(each) + "*" * row.is_probed(each) for each in sorted(row.capabilities + row.probed))


def _print_words() -> None:
    """What computes each word of the NVFP4 recipe, by the checks that a run makes."""
    rows = [['of nvfp4, NVFP4="..."', "its GPUs' own kernels", "EMULATE=1", "EMULATE=reference", "CPU"]]
    for word in nvfp4_recipe.EXAMPLES:
        asked = nvfp4_recipe.words_in(word)
        beside = {"scale": "4over6:weights"} if "error" in asked else {}  # it says how that chooses
        found = nvfp4_recipe.Nvfp4Recipe.of(asked | beside)
        reference = "always" if {"stochastic", "primary"} & asked.keys() else "yes"
        if recipe_checks.not_of_the_reference(found):
            reference = "no"
        ours = "always" if "primary" in asked else "yes"
        rows.append([nvfp4_recipe.as_text(asked), _native(found), ours, reference, ours])
    print_table(rows, left=len(rows[0]))


def _native(found: nvfp4_recipe.Nvfp4Recipe) -> str:
    needed = {*recipe_checks.later_engine(found, LateSwitch.of(found.switch)).values()}
    said = [f"from Transformer Engine {packages.dotted(release)}" for release in needed]
    if recipe_checks.not_native(found):
        beside = [{"rht": "off"}, {"rht": "off", "bf16": "proj"}]
        works = [each for each in beside if not recipe_checks.not_native(found.of(found.words() | each))]
        if not works:
            return "no"
        said.append(f"with {nvfp4_recipe.as_text(works[0])}")
    return " ".join(said) or "yes"


def _kept(row: Precision) -> str:
    if not row.quantized:
        return "all"
    tail = "last eighth" if row.bf16_tail is None else f"last {row.bf16_tail}" if row.bf16_tail else ""
    head = f"first {row.bf16_head}" if row.bf16_head else ""
    return " ".join(filter(None, (head, tail))) or "none"


def _print_one(model: Model, args: argparse.Namespace) -> None:
    processes, split = _split(model, args)
    micro, sequence = _sizes(model, args)
    shape = footprint.shape_of(model.hf_config)
    print(
        f"{model.name}: {footprint.parameters(shape):,} parameters, {model.num_layers} layers, "
        f"{footprint.flops_per_token(shape, sequence) / 1e9:.4g} GFLOP a token at sequence {sequence}\n"
        f"On {processes} GPU{'s' if processes > 1 else ''} (tensor {split.tensor} x pipeline {split.pipeline} x "
        f"data {split.data}), micro batches of {micro}, GB on the fullest:\n"
    )
    rows = [["", "weights", "gradients", "optimizer", "activations", "total"]]
    for row in PRECISIONS.values():
        found = _memory(model, row, split, args)
        kinds = (found.weights, found.gradients, found.optimizer, found.activations, found.total)
        rows.append([row.name, *map(_gigabytes, kinds)])
    print_table(rows, left=1)


def _split(model: Model, args: argparse.Namespace) -> tuple[int, footprint.Split]:
    """Processes, as asked for or the fewest that hold the model, and what is split over them."""
    fewest = parallel.fewest_processes(parallel.split_of(args, model, PRECISIONS["bf16"]), model)
    processes = args.nproc if args.nproc > 1 and args.model else fewest
    if processes % fewest:
        raise UsageError(f"NPROC={processes}: {model.name} is split over {fewest} processes; use a multiple of it")
    return processes, footprint.split_of(model, processes)


def _sizes(model: Model, args: argparse.Namespace) -> tuple[int, int]:
    return args.micro_batch_size or model.micro_batch_size, args.seq_length or model.sequence_length


def _memory(model: Model, row: Precision, split: footprint.Split, args: argparse.Namespace) -> footprint.Memory:
    micro, sequence = _sizes(model, args)
    return footprint.memory(model, row, split, micro_batch=micro, sequence=sequence)


def _gigabytes(size: float) -> str:
    return f"{size / GB:.1f}" if size > GB else f"{size / GB:.3f}"
