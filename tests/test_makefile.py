"""The Makefile: its help is complete and says the truth, and a wrong option is told in one line."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pretraining import models, settings


@pytest.fixture
def make(project: Path):
    """`make("help")`: the ended process."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        return subprocess.run(
            ["make", *arguments], cwd=project, env=plain | more, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def makefile(project: Path) -> str:
    """Its text."""
    return (project / "Makefile").read_text()


def test_make_alone_is_make_help(make) -> None:
    told = make("help")
    assert told.returncode == 0 and told.stderr == ""
    assert make().stdout == told.stdout
    assert max(map(len, told.stdout.splitlines())) <= 120


def test_help_names_every_target(make, makefile: str) -> None:
    said = make("help").stdout
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    defined = set(re.findall(r"^([a-z0-9-]+):(?!=)", makefile, re.MULTILINE))
    assert targets == defined
    told = set(re.findall(r"^make ([a-z0-9-]+)", said, re.MULTILINE))
    assert told == targets - {"host-setup", "test-setup"}


def test_help_names_every_option(make, makefile: str) -> None:
    options = set(re.findall(r"^([A-Z]+(?:_[A-Z]+)*) \?=", makefile, re.MULTILINE))
    options |= set(re.findall(r"^export ([A-Z_]+)$", makefile, re.MULTILINE))
    said = make("help").stdout
    missing = {option for option in options if not re.search(rf"\b{option}\b", said)}
    assert not missing


def told(said: str, option: str) -> str:
    """The line of an option."""
    return next(line for line in said.splitlines() if re.match(rf"  {option}\b", line))


def test_help_tells_the_defaults(make) -> None:
    said = make("help").stdout
    big, tiny = models.MODELS[models.DEFAULT_ON_GPU], models.MODELS[models.DEFAULT_ON_CPU]
    assert told(said, "MODEL").endswith(f"{big.name} on a GPU, {tiny.name} without one")
    assert told(said, "ITERS").endswith(f" {big.train_iters}; tiny {tiny.train_iters}")
    assert told(said, "WARMUP").endswith(f" {big.warmup_iters}; tiny {tiny.warmup_iters}")
    batches = f" {big.global_batch_size} and {big.micro_batch_size}"
    assert told(said, "GBS").endswith(f"{batches}; tiny {tiny.global_batch_size} and {tiny.micro_batch_size}")
    assert told(said, "SEQ").endswith(f" {big.sequence_length}; tiny {tiny.sequence_length}")
    assert told(said, "DATA").endswith(f" {big.data}; tiny {tiny.data}")
    assert told(said, "NPROC").endswith(" 1")


def test_the_scripts_help_tells_the_defaults() -> None:
    big = models.MODELS[models.DEFAULT_ON_GPU]
    said = " ".join(settings.parser("x").format_help().split())
    for default in (big.train_iters, big.warmup_iters, big.global_batch_size, big.micro_batch_size):
        assert f"8B models {default})" in said
    assert f"8B models {big.sequence_length})" in said


def test_every_option_reaches_the_launcher(make) -> None:
    given = {
        "MODEL": ("small", "--model small"), "ITERS": ("9", "--train-iters 9"), "WARMUP": ("3", "--warmup-iters 3"),
        "GBS": ("6", "--global-batch-size 6"), "MBS": ("3", "--micro-batch-size 3"), "SEQ": ("64", "--seq-length 64"),
        "DATA": ("mock", "--data mock"), "ARGS": ("--seed 5 optimizer.lr=1e-4", "optimizer.lr=1e-4"),
        "BF16_TAIL": ("2", "--bf16-tail-layers 2"), "BF16_HEAD": ("1", "--bf16-head-layers 1"),
    }  # fmt: skip
    told = make("nvfp4", "RUNTIME=cpu", "DRY_RUN=1", *(f"{name}={value}" for name, (value, _) in given.items()))
    assert told.returncode == 0, told.stderr
    for name, (_, flag) in given.items():
        assert flag in told.stdout, name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nvfp4", "RUNTIME=gpu"), "RUNTIME=gpu is not one of auto, "),
        (("compare", "MODEL=tinny", "RUNTIME=cpu"), "unknown model 'tinny': did you mean tiny?"),
        (("bf16", "GBS=7", "MBS=2", "RUNTIME=cpu"), "--global-batch-size 7 is not divisible by --micro-batch-size 2"),
        (("bf16", "ITERS=ten", "RUNTIME=cpu"), "invalid int value: 'ten'"),
        (("bf16", "NPROC=0", "RUNTIME=cpu"), "NPROC=0: at least one process is needed"),
        (("bf16", "DATA=no where", "RUNTIME=cpu"), "--data no where: there is no "),
        (("bf16", "CONFIG=no where.yaml", "RUNTIME=cpu"), "--config no where.yaml cannot be read"),
        (("bf16", "PLUGIN=no where.py", "RUNTIME=cpu"), "--plugin no where.py cannot be read"),
        (("nvfp4", "TUNED=1", "RUNTIME=cpu"), "--tuned: the CPU runtime has no CUDA graphs"),
        (("models", "MODEL=lama31-8b"), "did you mean llama31-8b?"),
    ],
)
def test_a_wrong_option_is_one_line(make, arguments: tuple[str, ...], words: str) -> None:
    told = make(*arguments)
    assert told.returncode == 2
    ours = [line for line in told.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(ours) == 1 and words in ours[0]


def test_a_python_that_is_not_there(make) -> None:
    told = make("compare", "PYTHON=python9.9")
    assert told.returncode == 2
    assert "python9.9 is not installed; install Python 3.11 or 3.12 or name it" in told.stderr
