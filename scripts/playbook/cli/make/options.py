"""The options of make's targets: what each means, what may be its value, and the words that a script gets for it."""

from __future__ import annotations

import math
import shlex
from typing import NamedTuple

from playbook.launch.container import DEFAULT_TAG
from playbook.sensitivity.advice import BUDGET
from pretraining.errors import UsageError
from pretraining.request.models import DEFAULT_ON_CPU, DEFAULT_ON_GPU, MODELS
from pretraining.request.precisions import PRECISIONS
from pretraining.request.recipe.nvfp4_recipe import HELP, SHORT

OFF = ("", "0", "no", "off", "false")
ON = ("1", "yes", "on", "true")
MOST = 2**31 - 1  # of a count; more is a slip of the hand, and overflows further down

VALUE, PLACE, COUNT, AMOUNT, SWITCH, MAYBE, WORDS, NAMES, VARIABLE, INGREDIENT = (
    "a value",
    "a value that stands by itself",
    "a whole number",
    "a number above 0",
    "on or off",
    "off, or a value",
    "the words of a command line",
    "names, with blanks between them",
    "a variable of the environment",
    "a variable of the environment that is on or off",
)


class Option(NamedTuple):
    name: str
    flag: str  # of the scripts; "" where its words stand by themselves
    takes: str  # what stands for its value in the help
    help: str
    default: str = ""  # in words; "" where that goes without saying
    kind: str = VALUE  # of value, one of those above
    least: int = 1  # of a COUNT
    special: dict[str, tuple[str, ...]] = {}  # noqa: RUF012  # values with words of their own


def _by_model(setting: str) -> str:
    return f"; {DEFAULT_ON_CPU} ".join(str(getattr(MODELS[name], setting)) for name in (DEFAULT_ON_GPU, DEFAULT_ON_CPU))


def _count(name: str, flag: str, text: str, default: str = "", *, least: int = 1, **special: tuple[str, ...]) -> Option:
    return Option(name, flag, "N", text, default, COUNT, least, special)


def _switch(name: str, flag: str, text: str) -> Option:
    return Option(name, flag, "1", text, kind=SWITCH)


_ALL = (
    Option("PRECISION", "--precision", "NAME", f"{', '.join(PRECISIONS)}; compare: in place of nvfp4"),
    Option("MODEL", "--model", "NAME", "what to train, see make models",
           f"{DEFAULT_ON_GPU} on a GPU, {DEFAULT_ON_CPU} without one"),
    _count("ITERS", "--train-iters", "iterations", _by_model("train_iters")),
    _count("WARMUP", "--warmup-iters", "warm-up iterations", _by_model("warmup_iters"), least=0),
    _count("GBS", "--global-batch-size", "global batch, in sequences", _by_model("global_batch_size")),
    _count("MBS", "--micro-batch-size", "micro batch, in sequences", _by_model("micro_batch_size")),
    _count("SEQ", "--seq-length", "tokens a sequence", _by_model("sequence_length"), least=2),
    Option(
        *("DATA", "--data", "WHAT"),
        "mock, python-stdlib or .bin/.idx prefixes: a, '0.7 a 0.3 b', 'train=a valid=b'; of sft and lora JSONL",
        _by_model("data"),
    ),
    Option(
        *("EMULATE", "--emulate", "1"),
        "NVFP4's arithmetic on a GPU without its tensor cores; reference: Transformer Engine's own, slow",
        kind=MAYBE,
        special=dict.fromkeys(ON, ("--emulate",)),
    ),
    _count("BF16_TAIL", "--bf16-tail-layers", "last layers kept in BF16", "nvfp4: an eighth, at least 1", least=0),
    _count("BF16_HEAD", "--bf16-head-layers", "first layers kept in BF16", "nvfp4: 0", least=0),
    Option("NVFP4", "--nvfp4", "WORDS", f"another recipe than the whole one: '{HELP}'"),
    Option("SWITCH", "--switch", "AT[:TO]", "late switch to a higher precision: 0.82, 900:fp8, 0.82:forward"),
    *(Option(name, "", "0", f"NVFP4 without {what}", kind=INGREDIENT) for name, what in SHORT.items()),
    Option(
        *("PROBE", "--no-probe", "0", "train with the GPU's own FP8 or FP4 without trying first what it computes"),
        special={**dict.fromkeys(OFF[1:], ("--no-probe",)), **dict.fromkeys(ON, ())},
    ),
    _switch("TUNED", "--tuned", "CUDA graphs and fewer checks, on a GPU; compares with tuned runs only"),
    _count("TP", "--tensor-parallel", "tensor parallel; auto: the smallest split that fits", "the recipe's",
           auto=("--auto-split",)),
    _count("PP", "--pipeline-parallel", "pipeline parallel", "the recipe's"),
    _count("CP", "--context-parallel", "context parallel", "1"),
    Option("CONFIG", "--config", "FILE", "YAML of config fields, such as a run's config.yaml"),
    Option("PLUGIN", "--plugin", "FILE", "Python with configure(config), callbacks, forward_step or loss"),
    _count("SAVE", "--save", "checkpoint every N iterations and at the end", "own data on a GPU: at the end", least=0),
    Option("RESUME", "--resume", "RUN", "continue this run from its last checkpoint, in a new folder"),
    _count("ITERATION", "--iteration", "of that run's checkpoints (RESUME=, RUN=) this one", "its last"),
    Option("FROM", "--from", "WEIGHTS", "begin with hf:NAME of Hugging Face, or with a local folder", "random"),
    _switch("TENSORBOARD", "--tensorboard", "log there too, into the run folder"),
    Option("WANDB", "--wandb-project", "PROJECT", "log to Weights & Biases too", kind=MAYBE),
    Option("MLFLOW", "--mlflow-experiment", "NAME", "log to MLflow too", kind=MAYBE),
    Option(
        "ARGS", "", "WORDS", "flags of assets/pretrain_llama.py and section.field=value of the config", kind=WORDS
    ),
    Option("RUNTIME", "--runtime", "WHERE", "container, local or cpu", "a container where a GPU is, else cpu"),
    Option("GPU", "--gpu", "WHICH", "index or UUID", "the largest that trains in the precision"),
    Option("TAG", "--tag", "NAME", "of the NeMo image, or a whole image name", DEFAULT_TAG),
    Option(
        *("CONTAINER_USER", "--container-user", "WHO", "me or root: who works in the container"),
        "you; root where the image is closed to you",
    ),
    _count("NPROC", "--nproc", "processes, one a GPU; of submit on each machine", "1"),
    _count("NODES", "--nodes", "machines of a submitted run", "1"),
    Option("CLUSTER", "--cluster", "FILE", "where to submit", "cluster.yaml"),
    _switch("WAIT", "--wait", "follow the submitted run to its end, and fail where it does"),
    _switch("DRY_RUN", "--dry-run", "say what would be done, and do nothing"),
    Option("A", "--a", "PRECISION", "the first side of a comparison", "bf16"),
    Option("B", "--b", "PRECISION", "the second; the same as A is the control", "nvfp4"),
    Option("BASE", "--base", "WHICH", "the baseline: A, B, a precision or a run", "bf16"),
    Option(
        *("SPEEDUP", "--speed-up", "X", "project the time to equal loss with it: a number, or published (1.68)"),
        kind=AMOUNT,
        special={"published": ("--speed-up=published",)},
    ),
    _count("REPEAT", "--repeat", "runs of each precision, in turns; 3 show how runs differ", "1"),
    _switch("YES", "--yes", "do not ask"),
    _switch("FRESH", "--fresh", "train again, whatever finished runs there are"),
    _switch("FORCE", "--force", "compare runs that did not do the same work; the result says so"),
    Option("RUNS", "", "NAMES", "train nothing, and compare or evaluate these: folders, names, or logs", kind=NAMES),
    Option("SEEDS", "--seeds", "'1 2 3'", "a run of each arm with each; 3 judge a loss", "ablate: '1234 1235 1236'"),
    Option("VARIANTS", "--variants", "'W | W'", "recipes to try, as in NVFP4=, and tail=N"),
    Option("LOSS_MARGIN", "--loss-margin", "PERCENT", "the smallest difference in loss that matters", kind=AMOUNT),
    Option("RUN", "--run", "NAME", "the run that is meant: its folder, or that folder's name"),
    Option("BUDGET", "--budget", "SHARE", "of the linear layers' compute that may be in BF16", BUDGET),
    Option("INPUT", "--input", "FILES", "files or patterns of JSONL, text or Parquet, .gz and .zst too"),
    Option("TOKENIZER", "--tokenizer", "NAME", "of data: bytes, bpe:SIZE or one of Hugging Face; else FROM's"),
    Option("OUT", "--out", "PATH", "what data or export writes", "data: data/NAME-TOKENIZER"),
    Option("FIELD", "--field", "NAME", "of the text in JSON or Parquet", "text"),
    _switch("SKIP_BAD", "--skip-bad", "leave out lines that cannot be read, instead of failing"),
    _switch("JSON", "--json", "for programs"),
    Option("BASELINE", "", "FOLDER", "the comparison to hold the newest one against", kind=PLACE),
    Option("CURRENT", "--current", "FOLDER", "the comparison to check", "the newest"),
    Option("TOLERANCE", "--tolerance", "WORDS", "per cent; loss=1 over seeds too", "'speed=3 memory=2'"),
    Option("ADD", "--add", "NAMES", "runs to publish, or the folder of a comparison", kind=NAMES),
    Option("TO", "--to", "NAME", "the folder in assets/results that they go to"),
    _count("GPUS", "--gpus", "GPUs of an estimate", "512"),
    _count("VP", "--virtual-pipeline", "pieces of a pipeline stage's layers, of an estimate", "what comes out even"),
    _count("RECOMPUTE", "--recompute-layers", "layers that compute activations again, of an estimate", "0", least=0),
    Option("GPU_KIND", "--gpu-kind", "NAME", "of an estimate", "gb300"),
    Option("TOKENS", "--tokens", "N", "tokens to train on, of an estimate", "15.6e12", AMOUNT),
    Option(
        *("CLEAN", "", "all", "also checkpoints of your own data, copies of runs, and runs that other machines left"),
        kind=MAYBE,
        special={"all": ("--all",)},
    ),
    Option("TORCH_INDEX", "", "URL", "a package index for torch", kind=VARIABLE),
    Option("PYTHON", "", "NAME", "the Python to set up with", "python3", VARIABLE),
)  # fmt: skip
OPTIONS = {option.name: option for option in _ALL}
VARIABLES = tuple(option.name for option in _ALL if option.kind in (VARIABLE, INGREDIENT))
SET_UP = ("TORCH_INDEX", "PYTHON")  # what every target takes
LAST = (NAMES, PLACE)  # kinds whose words stand after all flags, where they have none

# What the command that makes a comparison again leaves out: it changes nothing of the result, or may be a secret.
_NOT_AGAIN = ("SAVE", "TENSORBOARD", "WANDB", "MLFLOW", "DRY_RUN", "FRESH", *VARIABLES)


def is_off(option: Option, value: str) -> bool:
    """Whether that value leaves the option out."""
    return value.strip().lower() in OFF if option.kind in (SWITCH, MAYBE) else not value


def words(option: Option, value: str, flag: str) -> list[str]:
    """What a script gets for an option's value, by the option's flag or another. Raises UsageError: not of its kind."""
    named = f"{option.name}={value}" + (f" ({flag})" if flag else "")
    if is_off(option, value):
        return []
    if (lower := value.strip().lower()) in option.special:
        return list(option.special[lower])
    if option.kind == SWITCH:
        if lower not in ON:
            raise UsageError(f"{named}: it is a switch, on with 1 and off with 0")
        return [flag]
    also = "".join(f", or {name}" for name in option.special)
    if option.kind == COUNT:
        if not (value.isascii() and value.isdigit() and len(value) < 20 and option.least <= int(value) <= MOST):
            raise UsageError(f"{named}: a whole number from {option.least} to {MOST} is needed{also}")
    elif option.kind == AMOUNT:
        _check_amount(value, named, also)
    elif option.kind in (WORDS, NAMES):
        return _split(option, value, named, flag)
    elif option.kind == MAYBE and not flag:
        raise UsageError(f"{named}: {' or '.join(option.special)} is what it takes")
    return [f"{flag}={value}" if flag else value]


def setting(option: Option, value: str) -> str:
    """What a variable of the environment gets for an option's value. Raises UsageError as `words`."""
    if option.kind == INGREDIENT:
        lower = value.strip().lower()
        if not lower or lower not in (*ON, *OFF):
            raise UsageError(f"{option.name}={value}: it is a switch, on with 1 and off with 0")
        return "1" if lower in ON else "0"
    return value


def _check_amount(value: str, named: str, also: str) -> None:
    example = "1.68" if also else "1e12"
    try:
        found = float(value)
    except ValueError:
        found = -1.0
    if not 0 < found < math.inf:
        raise UsageError(f"{named}: a number above 0 is needed, such as {example}{also}")


def _split(option: Option, value: str, named: str, flag: str) -> list[str]:
    """Words as a shell would part them, without a shell."""
    try:
        found = shlex.split(value)
    except ValueError as error:
        raise UsageError(f"{named}: {str(error).lower()}") from error
    if option.kind == WORDS or not found:
        return found
    if odd := [word for word in found if word.startswith("-")]:
        raise UsageError(f"{named}: {odd[0]} is no name of a run")
    return [flag, *found] if flag else found


def again(target: str, given: dict[str, str]) -> str:
    """The command that does the same again, to paste into a shell."""
    named = [
        f"{name}={shlex.quote(given[name])}"
        for name, option in OPTIONS.items()
        if name in given and name not in _NOT_AGAIN and not is_off(option, given[name])
    ]
    return " ".join(["make", target, *named])
