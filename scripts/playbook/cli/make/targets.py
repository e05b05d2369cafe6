"""The targets of make: what each is for, the options it takes, and the commands behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from playbook.cli.make import chores
from playbook.cli.make.options import OPTIONS, SET_UP
from playbook.launch.container import DEFAULT_TAG
from pretraining.request.models import ABLATED_ON_GPU, DEFAULT_ON_CPU
from pretraining.request.recipe.nvfp4_recipe import SHORT

_SIZES = ("MODEL", "ITERS", "WARMUP", "GBS", "MBS", "SEQ", "DATA")
_QUANTIZED = ("EMULATE", "BF16_TAIL", "BF16_HEAD", "NVFP4", "SWITCH", *SHORT, "PROBE")
_RECIPE = (*_QUANTIZED, "TUNED")
_SPLIT = ("TP", "PP", "CP")
_CODE = ("CONFIG", "PLUGIN", "ARGS")
_WRITERS = ("TENSORBOARD", "WANDB", "MLFLOW")
_TRAINING = (*_SIZES, *_RECIPE, *_SPLIT, *_CODE, "SAVE", "FROM", *_WRITERS)
_BF16 = tuple(name for name in _TRAINING if name not in _QUANTIZED)
_WHERE = ("RUNTIME", "GPU", "TAG", "CONTAINER_USER", "NPROC", "DRY_RUN")
_RESUME = ("RESUME", "ITERATION")
_OF_RUN = ("RUN", "ITERATION", "DATA", "GBS", "MBS", "SEQ", *_RECIPE, *_SPLIT, *_CODE, *_WHERE)

GROUPS = WORKS, TRAIN, LOOK, OWN, CLUSTER, TIDY, CHECK = (
    "Find out what would work here",
    "Train and compare",
    "Look at what was trained",
    "Your own data and weights",
    "On a cluster",
    "Stop and tidy up",
    "Work on the playbook itself",
)


class Target(NamedTuple):
    """One target of make.

    Each command begins with the virtual environment whose Python it is for, or with "python" for the one that make was
    given; the last one gets the options' words. A `chore` stands instead of commands: it takes the options that are
    given, and returns the exit code. `without` says what cannot be done, by NAME (whose value stands for {}) or
    NAME=value, each with what to do about it.
    """

    name: str
    group: str  # under which the help lists it
    help: str  # in one line
    commands: tuple[tuple[str, ...], ...] = ()
    options: tuple[str, ...] = ()  # beside SET_UP
    common: bool = False  # whether `make help` shows it
    instead: dict[str, Target] = {}  # noqa: RUF012  # what it is where one option is given
    flags: dict[str, str] = {}  # noqa: RUF012  # where they are not the options' own
    environment: dict[str, str] = {}  # noqa: RUF012  # what its commands get
    again: bool = False  # whether its commands are told how to say the same again
    defaults: dict[str, str] = {}  # noqa: RUF012  # in words, where they are not the options' own
    without: dict[str, str] = {}  # noqa: RUF012
    chore: Callable[[dict[str, str]], int] | None = None

    @property
    def takes(self) -> tuple[str, ...]:
        """Every option that it takes in one way or another, in the order of the help."""
        all_of = {*self.options, *SET_UP, *(name for other in self.instead.values() for name in other.options)}
        return tuple(name for name in OPTIONS if name in all_of)


def _run(name: str, group: str, text: str, *options: str, **more) -> Target:  # type: ignore[no-untyped-def]
    """A target that is a job of scripts/run.py."""
    return Target(name, group, text, (("host", "scripts/run.py", name),), options, **more)


def _cluster(name: str, text: str, *options: str, **more) -> Target:  # type: ignore[no-untyped-def]
    return _run(name, CLUSTER, text, "CLUSTER", *options, **more)


def _tests(name: str, text: str, *arguments: str, **environment: str) -> Target:
    return Target(name, CHECK, text, (("test", "-m", "pytest", *arguments),), environment=environment)


_THESE = Target(
    "compare",
    TRAIN,
    "",
    (("host", "scripts/compare.py", "--save"),),
    ("RUNS", "BASE", "SPEEDUP", "LOSS_MARGIN", "FORCE"),
    again=True,
)
_OF_A_RUN = _run("profile", LOOK, "", "RUN")
_NO_MEMORY = {"TP=auto": "what memory the cluster's GPUs have is not known here: give TP= and PP= as numbers"}
_ITS_OWN = {"PRECISION": "make train PRECISION={} trains in it"}
_AS_THERE = dict.fromkeys(("PRECISION", "DATA", "GBS", "MBS", "SEQ", "BF16_TAIL", "BF16_HEAD"), "the run's")
_NO_PLACE = {"TP=auto": "it looks at no GPU: give TP= and PP= as numbers"}

_ALL = (
    _run("doctor", WORKS, "whether training would work here, and what to do where not",
         "JSON", "PRECISION", *_TRAINING, "RUNTIME", "GPU", "TAG", "CONTAINER_USER",
         "NPROC", common=True, without=_NO_PLACE),
    _run("models", WORKS, "what can be trained: parameters, FLOPs, memory", "MODEL", "MBS", "SEQ", "NPROC"),
    _run("precisions", WORKS, "what it can be trained in: preset, GPUs, BF16 layers"),
    _run("estimate", WORKS, "memory a GPU, step time, days and energy on hardware that is not here",
         "MODEL", "PRECISION", "GPUS", "GPU_KIND", "TOKENS", "SEQ", "GBS", "MBS", "TP", "PP", "VP", "CP",
         "BF16_HEAD", "BF16_TAIL", "NVFP4", "SWITCH", *SHORT, "RECOMPUTE",
         defaults={"MODEL": "llama31-405b", "PRECISION": "nvfp4", "SEQ": "8192", "MBS": "1",
                   "GBS": "four micro batches a pipeline stage", "TP": "the smallest that fits",
                   "PP": "the smallest that fits"},
         without={"TP=auto": "without TP= and PP= it takes the smallest split that fits"}),
    _run("show-config", WORKS, "the config that would train, as YAML for CONFIG=",
         "PRECISION", *_TRAINING, "RUNTIME", "NPROC", without=_NO_PLACE),
    _run("selfcheck", WORKS, "a GPU's own NVFP4 against this project's, bit by bit; a file to send",
         "RUNTIME", "GPU", "TAG", "CONTAINER_USER", "DRY_RUN"),
    _run("compare", TRAIN, "BF16 and NVFP4, and then the comparison", "PRECISION", "A", "B", "BASE", "SPEEDUP",
         "REPEAT", "SEEDS", "LOSS_MARGIN", "FRESH", "FORCE", *_TRAINING, *_WHERE, common=True,
         instead={"RUNS": _THESE}, again=True),
    _run("nvfp4", TRAIN, "pretrain in NVFP4", *_TRAINING, *_RESUME, *_WHERE, common=True, without=_ITS_OWN),
    _run("bf16", TRAIN, "pretrain in BF16", *_BF16, *_RESUME, *_WHERE, common=True, without=_ITS_OWN),
    _run("train", TRAIN, "pretrain in PRECISION=", "PRECISION", *_TRAINING, *_RESUME, *_WHERE, common=True),
    _run("ablate", TRAIN, "what each ingredient of NVFP4 brings, over seeds", "VARIANTS", "SEEDS", "FRESH",
         *(name for name in _TRAINING if name not in ("BF16_TAIL", "NVFP4", "SWITCH", *SHORT)),
         *_WHERE, common=True, again=True,
         defaults={"MODEL": f"{ABLATED_ON_GPU} on a GPU, {DEFAULT_ON_CPU} without one"}),
    _run("profile", LOOK, "where the time of a step goes", "PRECISION", *_TRAINING, *_RESUME, *_WHERE, common=True,
         instead={"RUN": _OF_A_RUN}, defaults={"ITERS": "15"}),
    _run("sensitivity", LOOK, "where NVFP4's rounding hurts, and what to keep in BF16",
         "RUN", "ITERATION", "BUDGET", *_SIZES, "BF16_TAIL", "BF16_HEAD", "NVFP4", *SHORT, *_SPLIT, *_CODE, "FROM",
         *_WHERE, without={"PRECISION": "it measures NVFP4's rounding, and {} has none"}, defaults={"ITERS": "50"}),
    _run("history", LOOK, "all runs, and how each ended", "JSON", common=True),
    _run("gate", LOOK, "fail where the newest comparison left an earlier one's figures",
         "BASELINE", "CURRENT", "TOLERANCE"),
    _run("results", LOOK, "rebuild the published tables and pictures; ADD= TO=: publish runs", "ADD", "TO"),
    _run("data", OWN, "tokenize your own text", "INPUT", "TOKENIZER", "OUT", "FIELD", "SKIP_BAD", "RUNTIME", "TAG",
         "CONTAINER_USER", "ARGS", common=True),
    _run("sft", OWN, "fine-tune weights on instructions",
         "TOKENIZER", "PRECISION", *_TRAINING, *_RESUME, *_WHERE, common=True),
    _run("lora", OWN, "the same through adapters",
         "TOKENIZER", "PRECISION", *_TRAINING, *_RESUME, *_WHERE),
    _run("eval", OWN, "the validation loss of a checkpoint, or of several on one text",
         "RUNS", "PRECISION", *_OF_RUN, flags={"RUNS": "--checkpoints"}, again=True,
         defaults={**_AS_THERE, "PRECISION": "the run's; with RUNS= bf16"}),
    _run("export", OWN, "a checkpoint as a Hugging Face folder", "OUT", *_OF_RUN, flags={"OUT": "--export"},
         defaults=_AS_THERE),
    _cluster("submit", "the same training on a cluster", "PRECISION", *_TRAINING, *_RESUME, "NODES", "NPROC", "WAIT",
             "DRY_RUN", common=True, without=_NO_MEMORY),
    _cluster("jobs", "what was submitted, and how it stands"),
    _cluster("logs", "a submitted run's log to its end; fails where the run does", "RUN"),
    _cluster("cancel", "end a submitted run, waiting or running", "RUN"),
    _run("attach", TIDY, "follow a run whose launcher was killed; Ctrl-C stops it", "RUN"),
    _run("stop", TIDY, "end a run, watched or not", "RUN"),
    Target("clean", TIDY, "list and remove run folders, after asking", (("python", "scripts/clean.py"),),
           ("CLEAN", "YES", "DRY_RUN"), common=True),
    _run("shell", TIDY, "a shell in the container that a training would get", *_BF16, *_RESUME, *_WHERE),
    Target("image", TIDY, f"build docker/Dockerfile; then train in it: TAG=nvfp4-playbook:{DEFAULT_TAG}",
           options=("TAG", "DRY_RUN"), chore=chores.image),
    _tests("test", "the tests, but for the slow suites below",
           "--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder"),
    Target("test-gpu", CHECK, "the tests that need a GPU, by a python3 that has PyTorch", chore=chores.test_gpu),
    _tests("test-readme", "every command of the README in a clean clone", "-m", "readme", "-s", "tests/test_readme.py"),
    _tests("test-versions", "each supported Megatron-Bridge; wants Python 3.11 and 3.12",
           "-m", "versions", "-rs", "-s", "tests/versions"),
    _tests("test-engine", "the container path on a real Docker engine", "tests/engine", INSTALL_ENGINE="1"),
    _tests("test-shapes", "the shapes that NVIDIA's NeMo image may have, on a real Docker engine",
           "-m", "shapes", "tests/engine/test_shapes.py", INSTALL_ENGINE="1"),
    _tests("test-report", "the report of a comparison in a headless Chromium",
           "tests/playbook/report", INSTALL_BROWSER="1"),
    _tests("test-parallel", "one training over two processes, each way of sharing the work",
           "-m", "parallel", "tests/pretraining/test_parallel_training.py"),
    Target("test-slurm", CHECK, "make submit on a real, private Slurm of two nodes",
           (("python", "scripts/setup.py", "cluster"), ("test", "-m", "pytest", "-m", "slurm", "tests/slurm")),
           environment={"INSTALL_SLURM": "1"}),
    Target("lint", CHECK, "ruff, check and format",
           (("test", "-m", "ruff", "check", "."), ("test", "-m", "ruff", "format", "--check", "."))),
    Target("bench", CHECK, "the benchmarks, each a ratio measured in one run",
           tuple(("test", str(path)) for path in sorted(Path("tests/benchmarks").glob("bench_*.py"))),
           environment={"PYTHONPATH": "assets:scripts"}),
)  # fmt: skip
TARGETS = {target.name: target for target in _ALL}
