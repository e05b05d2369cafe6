"""The command line of a training, and what it comes to: one `Settings` that names every choice.

The launcher parses the same flags with the same rules before it starts anything, so a wrong name or a size that
does not divide costs a second and not a start-up. No torch in this module.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.request import checks, config_file, finetuning, nvfp4_recipe, overrides, parallel, pretrained, shares
from pretraining.request.models import DEFAULT_ON_CPU, DEFAULT_ON_GPU, MOCK, MODELS, PYTHON_STDLIB, Model, find_model
from pretraining.request.precisions import PRECISIONS, Precision, default_tail, find_precision

# What stands in for FP4 tensor cores on a GPU: this project's kernels, or Transformer Engine's reference quantizer,
# which has neither stochastic rounding nor speed and is there to be compared with.
EMULATORS = ("triton", "reference")

_NVFP4_BLOCK = 16  # as in numerics/nvfp4.py, which needs torch

PROJECT = Path(__file__).resolve().parents[3]
RUNS = "nemo_experiments"
SEED = 1234


@dataclass(frozen=True)
class Settings:
    """What to train, how and on what; sizes as in `models.Model`.

    Attributes:
        num_layers: transformer layers, the model's own unless cut for a benchmark.
        bf16_head_layers, bf16_tail_layers: layers kept in BF16 at the start and the end of the model.
        data: "mock", "python-stdlib", or Megatron datasets in the words of `blends.py`.
        seed: of weights, data order and stochastic rounding.
        save: write a checkpoint every so many iterations and at the end, or None for none; a run that saves also
            saves when it is interrupted.
        emulate: on a GPU, which of `EMULATORS` computes NVFP4 without FP4 tensor cores, or None for these; the CPU
            runtime has its own.
        nvfp4: what of the NVFP4 recipe is on; None in another precision.
        engine_switches: Transformer Engine's variables that are set, see `nvfp4_recipe.engine_switches`.
        resume: the run folder whose checkpoint to continue from, or None.
        iteration: that checkpoint's, or None without any.
        weights: Hugging Face's to begin with, a repository or local folder, or None for random ones.
        finetune: None to pretrain, or "sft", "lora" or "dora" on the instructions in `data`, beginning with `weights`,
            which may then also be a run folder.
        tokenizer: of the instructions, a Hugging Face name or folder; None but for tuning.
        evaluate: train nothing, only evaluate `resume`'s checkpoint, which may be of another precision.
        export: train nothing, only write `resume`'s weights to this folder for Hugging Face, or None.
        run_dir: the run folder, or None for a new one named by time, precision and model.
        cache_dir: where the built-in text and Megatron's dataset indices are kept between runs.
        profile: record so many of the last iterations with PyTorch's profiler, see `profiling`, or None.
        tensorboard, wandb_project, mlflow_experiment: which writers run beside the record, see `loggers`.
        tensor_parallel, pipeline_parallel, context_parallel: processes that one copy of the model is split over.
        tuned: with CUDA graphs and fewer checks.
        overrides: "section.field=value" of the config, sorted, beyond what is a setting itself.
        config: a config file whose fields go before the overrides, or None.
        plugin: the user's Python file, or None.
    """

    model: Model
    precision: Precision
    num_layers: int
    bf16_head_layers: int
    bf16_tail_layers: int
    train_iters: int
    warmup_iters: int
    global_batch_size: int
    micro_batch_size: int
    sequence_length: int
    data: str
    seed: int
    save: int | None
    emulate: str | None
    nvfp4: nvfp4_recipe.Nvfp4Recipe | None
    engine_switches: tuple[str, ...]
    resume: Path | None
    iteration: int | None
    weights: str | None
    finetune: str | None
    tokenizer: str | None
    evaluate: bool
    export: Path | None
    run_dir: Path | None
    cache_dir: Path
    profile: int | None
    tensorboard: bool
    wandb_project: str | None
    mlflow_experiment: str | None
    tensor_parallel: int
    pipeline_parallel: int
    context_parallel: int
    tuned: bool
    overrides: tuple[str, ...]
    config: Path | None
    plugin: Path | None

    @property
    def processes_a_copy(self) -> int:
        """Processes that share one copy of the model, but for its experts."""
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one iteration over all processes."""
        return self.global_batch_size * self.sequence_length

    @property
    def writers(self) -> dict[str, str | bool]:
        """The package of each writer that is asked for, with its project or experiment."""
        asked = {"tensorboard": self.tensorboard, "wandb": self.wandb_project, "mlflow": self.mlflow_experiment}
        return {package: value for package, value in asked.items() if value}

    @property
    def profiled(self) -> list[int]:
        """The first and the last iteration that are profiled, counted from 1."""
        return [self.train_iters - (self.profile or 0) + 1, self.train_iters]

    @property
    def trains(self) -> bool:
        """Whether the run is to train."""
        return not self.evaluate and self.export is None


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> Any:
        """Take `section.field=value` wherever it stands; argparse allows its positional arguments in one place."""
        known, rest = self.parse_known_args(args, namespace)
        overrides.check_whole(rest)
        known.overrides = [word for word in rest if overrides.looks_like_one(word)] or None
        if unknown := [word for word in rest if not overrides.looks_like_one(word)]:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        if re.search(r"arguments: [a-z_]+\.\w", message):
            raise UsageError(f"{message}; an override is section.field=value, without spaces around =")
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{message}; {hint}`{self.prog} --help` lists the flags")


def parser(prog: str) -> argparse.ArgumentParser:
    """The training script's flags. It raises UsageError where argparse would exit."""
    flags = _Parser(
        prog=prog,
        description="Pretrain a Llama with Megatron-Bridge in NVFP4 or BF16.",
        allow_abbrev=False,
        usage="%(prog)s [flags] [section.field=value ...]",
        epilog="section.field=value changes a field of Megatron-Bridge's config, as in optimizer.lr=1e-4",
    )
    add = flags.add_argument
    add("--model", help=f"{', '.join(MODELS)} (default {DEFAULT_ON_GPU} on a GPU, {DEFAULT_ON_CPU} without)")
    add("--precision", help=f"{', '.join(PRECISIONS)} (default nvfp4)")
    add("--disable-fp4", action="store_true", help="the same as --precision bf16")
    add("--bf16-tail-layers", type=int, metavar="N", help="last layers kept in BF16 (default: an eighth for nvfp4)")
    add("--bf16-head-layers", type=int, metavar="N", help="first layers kept in BF16 (default 0 for nvfp4)")
    add(
        "--emulate",
        nargs="?",
        const=EMULATORS[0],
        choices=EMULATORS,
        help="NVFP4 without FP4 tensor cores: its losses, not its speed; reference: Transformer Engine's, slow",
    )
    add("--nvfp4", metavar="WORDS", help=f"less than its whole recipe: {nvfp4_recipe.HELP}")
    add("--tuned", action="store_true", help="on a GPU: CUDA graphs and fewer checks")
    add("--num-layers", type=int, metavar="N", help="cut or grow the model, for benchmarks (default by model)")
    defaults = "; 8B models"
    add("--train-iters", type=int, metavar="N", help=f"iterations in all (default by model{defaults} 50)")
    add("--warmup-iters", type=int, metavar="N", help=f"learning-rate warm-up (default by model{defaults} 2)")
    add("--global-batch-size", type=int, metavar="N", help=f"sequences a step (default by model{defaults} 64)")
    add("--micro-batch-size", type=int, metavar="N", help=f"sequences a forward pass (default by model{defaults} 4)")
    add("--seq-length", type=int, metavar="N", help=f"tokens a sequence (default by model{defaults} 4096)")
    add(
        "--data",
        help=f"{MOCK}, {PYTHON_STDLIB}, or .bin/.idx prefixes: P, '0.7 P 0.3 Q', 'train=P valid=Q' (default by model)",
    )
    add("--seed", type=int, metavar="N", help=f"of weights, data order and stochastic rounding (default {SEED})")
    add(
        "--save",
        type=int,
        metavar="N",
        help="checkpoint every N iterations and at the end; 0: never (own data on a GPU: at the end)",
    )
    add("--resume", type=Path, metavar="RUN", help="continue from the last checkpoint of this run folder")
    add("--iteration", type=int, metavar="N", help="from its checkpoint of iteration N and not from the last")
    add("--from", dest="weights", metavar="WEIGHTS", help="begin with Hugging Face's: hf:NAME or a local folder")
    add("--finetune", metavar="HOW", help=f"fine-tune on instructions: {', '.join(finetuning.SCHEMES)}; wants --from")
    add("--tokenizer", help="of the instructions (default: that of --from)")
    add("--evaluate", action="store_true", help="train nothing: the validation loss of --resume, in either precision")
    add("--export", type=Path, metavar="DIR", help="train nothing: write --resume's weights as a Hugging Face folder")
    add("--run-dir", type=Path, metavar="DIR", help=f"the run folder (default: a new one in {RUNS}/)")
    split = "processes that split"
    add("--tensor-parallel", type=int, metavar="N", help=f"{split} each layer (default by model{defaults} 1)")
    add("--pipeline-parallel", type=int, metavar="N", help=f"{split} the layers (default by model{defaults} 1)")
    add("--context-parallel", type=int, metavar="N", help=f"{split} the sequence (default 1; NVFP4 knows no other)")
    add("--config", type=Path, metavar="FILE", help="fields of a YAML file, such as a run's config.yaml")
    add("--plugin", type=Path, metavar="FILE", help="Python code: configure(config), callbacks, forward_step, loss")
    add("--cache-dir", type=Path, metavar="DIR", default=PROJECT / ".cache", help="text and index cache")
    add("--profile", type=int, metavar="N", help="record the last N iterations for a trace viewer; no measurement")
    add("--tensorboard", action="store_true", help="also write TensorBoard events, into the run folder")
    add("--wandb-project", metavar="NAME", help="also log to W&B, offline in the run folder unless WANDB_MODE is set")
    add("--mlflow-experiment", metavar="NAME", help="also log to MLflow, in the run folder or MLFLOW_TRACKING_URI")
    return flags


def resolve(args: argparse.Namespace, *, on_gpu: bool, processes: int) -> Settings:
    """Fill in the defaults and check what can be checked before anything heavy is imported.

    Args:
        args: parsed by `parser`.
        on_gpu: whether training will run on a GPU.
        processes: the world size.

    Raises:
        UsageError: naming the flag, what was found and what would work.
    """
    typed = args.nvfp4
    args = merged(args)
    changes = overrides.parse(args.overrides or ())
    model = find_model(args.model or (DEFAULT_ON_GPU if on_gpu else DEFAULT_ON_CPU))
    precision = find_precision(asked_precision(args) or "nvfp4")
    if not on_gpu:
        checks.check_cpu(model, precision)
    if typed and precision.name != "nvfp4":
        raise UsageError(f"--nvfp4 is nvfp4's recipe and does nothing for {precision.name}; leave it out")
    emulator = checks.emulator(args, model, precision)
    layers = model.num_layers if args.num_layers is None else args.num_layers
    if layers < 1:
        raise UsageError(f"--num-layers is {layers}; it must be at least 1")
    sizes = {
        name: getattr(model, name) if given is None else given
        for name, given in {
            "train_iters": args.train_iters,
            "warmup_iters": args.warmup_iters,
            "global_batch_size": args.global_batch_size,
            "sequence_length": args.seq_length,
        }.items()
    }
    # A shortened run keeps its warm-up shorter than itself; only an explicit contradiction is an error.
    if args.warmup_iters is None:
        sizes["warmup_iters"] = min(sizes["warmup_iters"], max(1, sizes["train_iters"] // 5))
    for name, least in (("train_iters", 1), ("warmup_iters", 0), ("global_batch_size", 1), ("sequence_length", 2)):
        if sizes[name] < least:
            raise UsageError(f"{checks.flag_of(name)} is {sizes[name]}; it must be at least {least}")
        if sizes[name] >= 2**31:
            raise UsageError(f"{checks.flag_of(name)} is {sizes[name]}; it must be below 2147483648")
    if sizes["warmup_iters"] >= sizes["train_iters"] > 1:
        raise UsageError(
            f"--warmup-iters {sizes['warmup_iters']} is not below --train-iters {sizes['train_iters']}; lower it"
        )
    limit = model.hf_config["max_position_embeddings"]
    if sizes["sequence_length"] > limit:
        raise UsageError(f"--seq-length {sizes['sequence_length']} is over {model.name}'s {limit} positions; lower it")
    if args.save is not None and args.save < 0:
        raise UsageError(f"--save is {args.save}; it is a number of iterations, or 0 for never")
    trains = not args.evaluate and args.export is None
    iteration = checks.iteration(args)
    resume = checks.resume(args.resume, model, precision if trains else None, args.finetune)
    if not trains:
        checks.trains_nothing(args, model)
        sizes |= {"train_iters": iteration, "warmup_iters": 0}
    if args.weights and resume and not args.finetune:  # adapters are continued on the weights that they adapt
        raise UsageError("--from begins with other weights and --resume with a checkpoint's; give one of them")
    data = checks.instructions(args) if args.finetune else checks.data(args.data or model.data, model)
    own_data = on_gpu and data not in (MOCK, PYTHON_STDLIB)
    split = parallel.split_of(args, model, precision)
    shares.check(model, layers, split, on_gpu=on_gpu, sequence=sizes["sequence_length"])
    quantized = precision.name != "bf16"
    head = precision.bf16_head if args.bf16_head_layers is None else args.bf16_head_layers
    tail = default_tail(precision, layers) if args.bf16_tail_layers is None else args.bf16_tail_layers
    if quantized and (head < 0 or tail < 0 or head + tail >= layers):
        raise UsageError(
            f"{head} first and {tail} last layers in BF16 leave none of {model.name}'s {layers} layers in "
            f"{precision.name}; lower --bf16-head-layers or --bf16-tail-layers"
            if min(head, tail) >= 0
            else f"--bf16-head-layers {head} --bf16-tail-layers {tail}: neither can be negative"
        )
    micro_batch = checks.micro_batch_size(
        args.micro_batch_size, model, sizes, parallel.replicas(split, model, processes)
    )
    tokens = micro_batch * sizes["sequence_length"]
    if on_gpu and precision.name == "nvfp4" and tokens % _NVFP4_BLOCK:
        longer = sizes["sequence_length"] + -sizes["sequence_length"] % _NVFP4_BLOCK
        raise UsageError(
            f"a micro batch of {micro_batch} x {sizes['sequence_length']} tokens: NVFP4's weight gradients take blocks "
            f"of 16 of them, so it must be a multiple of {_NVFP4_BLOCK}; --seq-length {longer} would be"
        )
    return Settings(
        model=model,
        precision=precision,
        num_layers=layers,
        bf16_head_layers=head if quantized else 0,
        bf16_tail_layers=tail if quantized else 0,
        micro_batch_size=micro_batch,
        data=data,
        seed=SEED if args.seed is None else args.seed,
        save=(sizes["train_iters"] if args.save is None and own_data else args.save or None) if trains else None,
        emulate=emulator if on_gpu else None,
        nvfp4=checks.recipe(args, precision, emulator if on_gpu else None),
        engine_switches=nvfp4_recipe.engine_switches(),
        resume=resume,
        iteration=iteration,
        weights=checks.starting_weights(
            args.weights, model, {**changes, "model.num_layers": layers}, finetune=bool(args.finetune)
        ),
        finetune=args.finetune,
        tokenizer=checks.tokenizer(args, model),
        evaluate=args.evaluate,
        export=args.export and args.export.absolute(),
        run_dir=args.run_dir and args.run_dir.absolute(),
        cache_dir=args.cache_dir.absolute(),
        profile=checks.profile(args.profile, sizes["train_iters"], trains=trains, resumed=args.resume is not None),
        tensorboard=args.tensorboard,
        wandb_project=args.wandb_project or None,
        mlflow_experiment=args.mlflow_experiment or None,
        **split,
        tuned=checks.tuned(args, model, on_gpu=on_gpu),
        overrides=tuple(f"{name}={value}" for name, value in sorted(changes.items())),
        config=args.config and args.config.absolute(),
        plugin=checks.plugin_file(args.plugin),
        **sizes,
    )


# What belongs to a precision, or to a model, and is no longer meant where another is asked for.
_OF_THE_PRECISION = ("precision", "disable_fp4", "bf16_head_layers", "bf16_tail_layers", "emulate", "nvfp4")
_OF_THE_MODEL = ("num_layers", "bf16_tail_layers", "tensor_parallel", "pipeline_parallel")


def merged(args: argparse.Namespace) -> argparse.Namespace:
    """The command line with the settings of its --config below it, and of its overrides beside it.

    Of the NVFP4 recipe word by word: short forms in the environment go before the file and behind --nvfp4.

    Raises:
        UsageError: a setting with two values, an override of what the playbook decides, or no config file.
    """
    given, rest = overrides.settings_among(overrides.parse(args.overrides or ()))
    for name, value in given.items():
        present = getattr(args, name)
        if present not in (None, value):
            raise UsageError(
                f"{checks.flag_of(name)} {present} and an override that says {value} are one setting with two values; "
                "drop one"
            )
    above = {**vars(args), **given, "overrides": [f"{name}={value}" for name, value in rest.items()] or None}
    asked_recipe = nvfp4_recipe.in_environment() | nvfp4_recipe.words_in(args.nvfp4 or "")
    below = _of_the_file(config_file.read(args.config)) if args.config else _model_of_the_run(args)
    asked = asked_precision(args)
    if below.get("precision") is not None and asked not in (None, below["precision"]):
        below |= dict.fromkeys(_OF_THE_PRECISION)
    if below.get("model") is not None and args.model not in (None, below["model"]):
        below |= dict.fromkeys(_OF_THE_MODEL)
    below["overrides"] = [*(below.get("overrides") or ()), *(above["overrides"] or ())] or None
    above["nvfp4"] = nvfp4_recipe.as_text(nvfp4_recipe.words_in(below.get("nvfp4") or "") | asked_recipe) or None
    keep = {name for name, value in above.items() if value is not None and value is not False} - {"overrides"}
    return argparse.Namespace(**{**above, **{name: value for name, value in below.items() if name not in keep}})


def named(args: argparse.Namespace) -> frozenset[str]:
    """The settings that a command line names: by flag, by override, or in its config file."""
    return frozenset(name for name, value in vars(merged(args)).items() if value is not None)


def _of_the_file(file: config_file.ConfigFile) -> dict[str, Any]:
    """The settings that a config file stands for, by argument."""
    arguments = vars(_words_of(file))
    return {**arguments, **file.edited_settings(arguments), "cache_dir": None}


def _model_of_the_run(args: argparse.Namespace) -> dict[str, Any]:
    """What was changed of the model that is only evaluated or exported, as its run's config file says it."""
    if args.resume is None or not (args.evaluate or args.export) or not (args.resume / run_folder.CONFIG).is_file():
        return {}
    words = _words_of(config_file.read(args.resume / run_folder.CONFIG))
    changed = [word for word in words.overrides or () if word.startswith("model.")]
    return {"num_layers": words.num_layers, "overrides": changed}


def _words_of(file: config_file.ConfigFile, *more: str) -> argparse.Namespace:
    """The arguments of a config file, as far as it may give them, and `more` after them."""
    return file.parsed(parser(str(file.path)), *more)


def data_of(file: config_file.ConfigFile) -> str | None:
    """What the run that saved a config file trained on; None where it does not say."""
    return _words_of(file).data


def ignored(chosen: Settings) -> str:
    """A sentence on the flags in the config file that are not taken from it; "" without any."""
    if chosen.config is None:
        return ""
    flags = config_file.read(chosen.config).not_taken(parser(str(chosen.config)), chosen)
    return f"its {', '.join(flags)} {'is' if len(flags) == 1 else 'are'} ignored: give them here" if flags else ""


def of_the_file_alone(file: config_file.ConfigFile, *, data: str, cache_dir: Path) -> Settings | None:
    """What a config file was saved with, before anybody edited it, but on `data`; None for one written by hand.

    On as many GPUs as hold the model, wherever this runs: nothing is trained with these settings.
    """
    if file.arguments is None:
        return None
    args = _words_of(file, "--data", data, "--cache-dir", str(cache_dir))
    return resolve(args, on_gpu=True, processes=processes_a_copy(args, on_gpu=True))


def asked_precision(args: argparse.Namespace) -> str | None:
    """The name that a command line gives, None where it gives none. Raises UsageError for two different ones."""
    if not args.disable_fp4:
        return args.precision
    if args.precision not in (None, "bf16"):
        raise UsageError(f"--disable-fp4 means --precision bf16, but --precision {args.precision} was given; drop one")
    return "bf16"


def processes_a_copy(args: argparse.Namespace, *, on_gpu: bool) -> int:
    """The fewest processes that hold the model a command line asks for."""
    args = merged(args)
    model = find_model(args.model or (DEFAULT_ON_GPU if on_gpu else DEFAULT_ON_CPU))
    precision = find_precision(asked_precision(args) or "nvfp4")
    return parallel.fewest_processes(parallel.split_of(args, model, precision), model)


def as_flags(settings: Settings) -> list[str]:
    """The flags that give exactly these settings, whatever the defaults are where they are parsed."""
    flags: dict[str, Any] = {
        "--model": settings.model.name,
        "--precision": settings.precision.name,
        "--num-layers": settings.num_layers,
        "--emulate": settings.emulate,
        "--nvfp4": settings.nvfp4 and nvfp4_recipe.as_text(settings.nvfp4.words()),
        "--bf16-head-layers": settings.bf16_head_layers,
        "--bf16-tail-layers": settings.bf16_tail_layers,
        "--train-iters": settings.train_iters,
        "--warmup-iters": settings.warmup_iters,
        "--global-batch-size": settings.global_batch_size,
        "--micro-batch-size": settings.micro_batch_size,
        "--seq-length": settings.sequence_length,
        "--data": settings.data,
        "--seed": settings.seed,
        "--save": settings.save or 0,
        "--resume": settings.resume,
        "--iteration": settings.iteration,
        "--from": settings.weights and _as_given(settings.weights),
        "--finetune": settings.finetune,
        "--tokenizer": settings.tokenizer,
        "--export": settings.export,
        "--run-dir": settings.run_dir,
        "--tensor-parallel": settings.tensor_parallel,
        "--pipeline-parallel": settings.pipeline_parallel,
        "--context-parallel": settings.context_parallel,
        "--config": settings.config,
        "--plugin": settings.plugin,
        "--cache-dir": settings.cache_dir,
        "--profile": settings.profile,
        "--wandb-project": settings.wandb_project,
        "--mlflow-experiment": settings.mlflow_experiment,
    }
    given = []
    for flag, value in flags.items():
        if value is not None:  # one that looks like a flag stands in one word with its own
            given += [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
    switched = [f"--{name}" for name in ("evaluate", "tuned", "tensorboard") if getattr(settings, name)]
    return [*given, *switched, *settings.overrides]


def _as_given(weights_from: str) -> str:
    """A run folder as it is; anything else with its scheme."""
    return weights_from if finetuning.is_run(weights_from) else pretrained.SCHEME + weights_from
