"""`make help`, `make help-all` and `make help-NAME`: complete, true, in 80 columns, and without any set-up."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from playbook.cli import train
from playbook.cli.make import help_pages, options
from playbook.cli.make.options import OPTIONS
from playbook.cli.make.targets import TARGETS
from playbook.compare import gate
from playbook.plan import estimate
from pretraining.request import flags as training_flags
from pretraining.request import models

Make = Callable[..., "subprocess.CompletedProcess[str]"]


def test_help_is_short_and_quick(make: Make) -> None:
    told = make("help")
    assert told.returncode == 0 and told.stderr == "" and make().stdout == told.stdout
    assert 10 <= len(re.findall(r"^  make ", told.stdout, re.MULTILINE)) <= 14
    assert max(map(len, told.stdout.splitlines())) <= 80
    took = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        make("help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 0.2


def test_help_wants_no_set_up(make: Make, project: Path, tmp_path: Path) -> None:
    shutil.copy(project / "Makefile", tmp_path)
    for folder in ("scripts", "assets/pretraining"):
        shutil.copytree(project / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for goal in ("help", "help-all", "help-compare", "clean"):
        told = make(goal, cwd=tmp_path)
        assert told.returncode == 0 and told.stdout and not told.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "assets", "scripts"]


def test_help_all_names_every_target_and_option(make: Make, project: Path) -> None:
    said = make("help-all").stdout
    assert max(map(len, said.splitlines())) <= 80
    assert re.findall(r"^  make ([a-z0-9-]+)", said, re.MULTILINE) == list(TARGETS)
    assert re.findall(r"^  ([A-Z][A-Z0-9_]*)=", said, re.MULTILINE) == list(OPTIONS)
    listed = re.search(r"^override TARGETS := (.*?[^\\])\n", (project / "Makefile").read_text(), re.MULTILINE | re.S)[1]
    assert listed.replace("\\\n", " ").split() == ["help", "help-all", *TARGETS]


@pytest.mark.parametrize("target", TARGETS)
def test_a_targets_help_names_its_options(target: str) -> None:
    lines = help_pages.of(TARGETS[target])
    assert max(map(len, lines)) <= 80
    named = {found[1] for line in lines if (found := re.match(r"  ([A-Z][A-Z0-9_]*)=", line))}
    assert named == set(TARGETS[target].takes) - set(options.SET_UP)


def test_what_is_told_at_length_is_of_targets_and_shown() -> None:
    page = help_pages.PAGE.read_text()
    told = [name for heading in re.findall(r"^## (.*)$", page, re.MULTILINE) for name in heading.split(", ")]
    assert len(told) == len(set(told)) and set(told) <= set(TARGETS)
    assert "    make compare FRESH=1" in help_pages.of(TARGETS["compare"])
    assert not [line for target in told for line in help_pages.of(TARGETS[target]) if "```" in line]


def test_every_option_is_taken_and_every_flag_is_one(project: Path) -> None:
    assert {name for target in TARGETS.values() for name in target.takes} == set(OPTIONS)
    known = set(train.parser("x")._option_string_actions)
    for target in TARGETS.values():
        if target.commands and target.name in train.JOBS and "scripts/run.py" in target.commands[-1]:
            assert {target.flags.get(name, OPTIONS[name].flag) for name in target.options} - known <= {""}


def test_no_target_is_mistaken_for_a_folder(make: Make) -> None:
    database = make("--print-data-base", "--question", "help").stdout
    assert set(re.search(r"^\.PHONY: (.*)$", database, re.MULTILINE)[1].split()) == {"help", "help-all", *TARGETS}


def test_help_tells_the_defaults() -> None:
    big, tiny = models.MODELS[models.DEFAULT_ON_GPU], models.MODELS[models.DEFAULT_ON_CPU]
    told = {name: option.default for name, option in OPTIONS.items()}
    assert told["MODEL"] == f"{big.name} on a GPU, {tiny.name} without one"
    assert told["ITERS"] == f"{big.train_iters}; tiny {tiny.train_iters}"
    assert told["WARMUP"] == f"{big.warmup_iters}; tiny {tiny.warmup_iters}"
    assert told["GBS"] == f"{big.global_batch_size}; tiny {tiny.global_batch_size}"
    assert told["MBS"] == f"{big.micro_batch_size}; tiny {tiny.micro_batch_size}"
    assert told["SEQ"] == f"{big.sequence_length}; tiny {tiny.sequence_length}"
    assert told["DATA"] == f"{big.data}; tiny {tiny.data}"
    flags = train.parser("x")
    assert told["NPROC"] == str(flags.get_default("nproc")) and told["REPEAT"] == str(flags.get_default("repeat"))
    assert told["TOLERANCE"].strip("'") == " ".join(f"{name}={value:g}" for name, value in gate.TOLERANCES.items())
    assert told["TOKENS"] == f"{estimate.TOKENS / 1e12:g}e12"


def test_a_targets_help_tells_its_own_defaults() -> None:
    flags = estimate.parser()
    target = TARGETS["estimate"]
    for name in target.options:
        told = target.defaults.get(name, OPTIONS[name].default)
        own = flags.get_default(OPTIONS[name].flag.removeprefix("--").replace("-", "_"))
        assert own is None or own == (float(told) if name == "TOKENS" else type(own)(told)), name
    assert TARGETS["profile"].defaults["ITERS"] == str(train.BEFORE_PROFILED + train.PROFILED)
    assert TARGETS["sensitivity"].defaults["ITERS"] == str(train.BEFORE_MEASURED + train.MEASURED)
    assert "tiny 32" not in "".join(help_pages.of(TARGETS["estimate"]) + help_pages.of(TARGETS["eval"]))


def test_the_scripts_help_tells_the_defaults() -> None:
    big = models.MODELS[models.DEFAULT_ON_GPU]
    said = " ".join(training_flags.parser("x").format_help().split())
    for default in (big.train_iters, big.warmup_iters, big.global_batch_size, big.micro_batch_size):
        assert f"8B models {default})" in said
    assert f"8B models {big.sequence_length})" in said
