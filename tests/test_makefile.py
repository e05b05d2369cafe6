"""The Makefile: whatever is typed arrives as it is, or is refused by its name."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from playbook.campaign import compare_job
from playbook.cli import entry, train
from playbook.cli.make import command as cli
from playbook.cli.make import options
from playbook.cli.make.options import OPTIONS
from playbook.cli.make.targets import TARGETS
from playbook.compare import gate
from playbook.launch.container import DEFAULT_TAG, REPOSITORY
from playbook.plan import estimate
from playbook.publish import publish
from pretraining.errors import UsageError

Make = Callable[..., "subprocess.CompletedProcess[str]"]
SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"

# What a shell, make or an argument parser would make something else of. Each would leave a file called "executed".
HOSTILE = (
    *("$(touch executed)", "`touch executed`", "$$(touch executed)", "$(shell touch executed)", "${IFS}x${HOME}"),
    *("'; touch executed; '", '"; touch executed; "', "; touch executed", "& touch executed &", "| touch executed"),
    *("x\ntouch executed", "&& touch executed", "> executed", "$(error x)", "$(eval X:=y)", "$@ $< $(MAKE)", "$", "$("),
    *("it's", 'say "x"', "a b  c ", "a\tb", "\\", "a\\ b\\", "#x", "100%", "@1 MODEL=x", "@0@1@", "*", "~", "!!"),
    *("-rf", "--fresh", "--typed=x", "=", "a=b", "{0}%s", "größe 字", "\udcff", "../../x", "x" * 1000),
)
TEXT = (options.VALUE, options.PLACE, options.WORDS, options.NAMES, options.VARIABLE, options.MAYBE)
TOGETHER = ("sft", "compare", "ablate", "eval", "data", "gate", "results", "submit", "estimate", "export")


@pytest.fixture
def recorded(make: Make, tmp_path: Path) -> Callable[..., list[dict]]:
    """`recorded("bf16", "ITERS=5")`: through make, what each target would begin. The last step is a stand-in."""
    stand_in = tmp_path / "a 'python'"
    stand_in.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        f"sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "from playbook.cli.make import command as make\n"
        "goals, given = os.environ['PLAYBOOK_GOALS'].split(), make.typed(os.environ['PLAYBOOK_TYPED'])\n"
        "try:\n"
        "    print(json.dumps([work._asdict() | {'target': work.target.name} for work in make.plan(goals, given)]))\n"
        "except make.UsageError as error:\n"
        "    print(json.dumps(str(error)))\n"
        "sys.exit(3)\n"  # or make would go on to the next target
    )
    stand_in.chmod(0o755)

    def run(*arguments: str, **more: str) -> list[dict]:
        ended = make(*arguments, f"PYTHON={stand_in}", **more)
        assert ended.returncode == 2 and "Error 3" in ended.stderr, ended.stderr
        return json.loads(ended.stdout)

    yield run
    assert not list(Path(__file__).resolve().parents[1].glob("executed*"))


def planned(target: str, **given: str) -> cli.Work:
    """What one target comes to."""
    return cli.plan([target], given)[0]


def _typed(name: str, value: str) -> str:
    """A value for an option, whole where the option takes several words."""
    return shlex.quote(value) if OPTIONS[name].kind in (options.WORDS, options.NAMES) else value


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_every_value_arrives_as_it_was_typed(recorded, value: str) -> None:
    names = [name for goal in TOGETHER for name in TARGETS[goal].takes if OPTIONS[name].kind in TEXT]
    names = [name for name in dict.fromkeys(names) if name not in ("RUNS", "PYTHON")]
    names = [name for name in names if not (OPTIONS[name].kind == options.NAMES and value.startswith("-"))]
    works = recorded(*TOGETHER, *(f"{name}={_typed(name, value)}" for name in names))
    assert [work["target"] for work in works] == list(TOGETHER), works
    begun = {work["target"]: work for work in works}
    arrived = 0
    for name in names:
        for goal in (goal for goal in TOGETHER if name in TARGETS[goal].takes):
            words = begun[goal]["commands"][-1]
            flag = TARGETS[goal].flags.get(name, OPTIONS[name].flag)
            if OPTIONS[name].kind == options.VARIABLE:
                assert begun[goal]["environment"][name] == value
            elif OPTIONS[name].kind in (options.WORDS, options.NAMES) or not flag:
                assert value in words
            else:
                assert f"{flag}={value}" in words
            arrived += 1
    assert arrived >= 100


@pytest.mark.parametrize("value", [value for value in HOSTILE if not value.startswith("-")][::4])
def test_names_of_runs_arrive_as_they_were_typed(recorded, value: str) -> None:
    (work,) = recorded("compare", f"RUNS={shlex.quote(value)} b", f"BASE={value}")
    assert work["commands"][-1][-3:] == ["--", value, "b"] and f"--base={value}" in work["commands"][-1]
    typed = next(word for word in work["commands"][-1] if word.startswith("--typed="))
    assert dict(word.split("=", 1) for word in shlex.split(typed)[2:] if "=" in word)["BASE"] == value


CHECKED = [option for option in OPTIONS.values() if option.kind not in TEXT]


@pytest.mark.parametrize("option", CHECKED, ids=[option.name for option in CHECKED])
def test_a_value_of_the_wrong_kind_is_refused_by_the_options_name(recorded, option: options.Option) -> None:
    goal = next(target.name for target in TARGETS.values() if option.name in target.takes)
    said = recorded(goal, f"{option.name}={HOSTILE[CHECKED.index(option) % len(HOSTILE)]}")
    assert isinstance(said, str) and said.startswith(f"{option.name}=") and f"({option.flag})" in said + "()"
    for value in HOSTILE:
        with pytest.raises(UsageError, match=f"^{option.name}="):
            planned(goal, **{option.name: value})


@pytest.mark.parametrize(
    ("target", "given", "words"),
    [
        ("nvfp4", "ITERS=abc", "ITERS=abc (--train-iters): a whole number from 1 to "),
        ("nvfp4", "ITERS=999999999999999999999", "ITERS=999999999999999999999 (--train-iters): a whole number"),
        ("nvfp4", "ITERS=٣", "ITERS=٣ (--train-iters): a whole number"),
        ("bf16", "GBS=0", "GBS=0 (--global-batch-size): a whole number from 1"),
        ("compare", "REPEAT=0", "REPEAT=0 (--repeat): a whole number from 1"),
        ("bf16", "TP=all", "(--tensor-parallel): a whole number from 1 to 2147483647 is needed, or auto"),
        ("submit", "TP=Auto", "make submit takes no TP=Auto: what memory the cluster's GPUs have is not known here"),
        ("estimate", "TOKENS=inf", "TOKENS=inf (--tokens): a number above 0 is needed"),
        ("nvfp4", "DRY_RUN=maybe", "DRY_RUN=maybe (--dry-run): it is a switch, on with 1 and off with 0"),
        ("nvfp4", "NVFP4_RHT=", "NVFP4_RHT=: it is a switch, on with 1 and off with 0"),
        ("clean", "CLEAN=al", "CLEAN=al: all is what it takes"),
        ("nvfp4", "ARGS='x", "ARGS='x: no closing quotation"),
        ("compare", "RUNS=--json x", "RUNS=--json x: --json is no name of a run"),
        ("nvfp4", "ITER=10", "there is no option ITER: did you mean ITERS? make help-nvfp4 lists what it takes"),
        ("nvfp4", "iters=10", "there is no option iters: did you mean ITERS?"),
        ("compare", "REPEATS=3", "there is no option REPEATS: did you mean REPEAT?"),
        ("nvfp4", "REPEAT=3", "make nvfp4 takes no REPEAT: make compare does; make help-nvfp4 lists"),
        ("logs", "RUNS=x", "make logs takes no RUNS: compare, eval do; did you mean RUN?"),
        ("nvfp4", "PRECISION=fp8", "make nvfp4 takes no PRECISION: make train PRECISION=fp8 trains in it"),
        ("history", "DRY_RUN=1", "make history takes no DRY_RUN: "),
        ("nvpf4", "ITERS=1", "there is no target nvpf4: did you mean make nvfp4?"),
        ("help-copmare", "A=", "there is no target copmare: did you mean make compare?"),
        ("bf16", "EMULATE=1", "make bf16 takes no EMULATE: "),
        ("bf16", "NVFP4_RHT=0", "make bf16 takes no NVFP4_RHT: "),
        ("bf16", "BF16_TAIL=2", "make bf16 takes no BF16_TAIL: "),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(target: str, given: str, words: str) -> None:
    name, _, value = given.partition("=")
    with pytest.raises(UsageError) as refusal:
        planned(target, **{name: value})
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_refuses_what_it_does_not_take(target: str) -> None:
    for name in OPTIONS:
        if name not in TARGETS[target].takes:
            with pytest.raises(UsageError, match=f"make {target} takes no {name}: "):
                planned(target, **{name: "1"})
        with pytest.raises(UsageError, match=rf"there is no option {name}Q: did you mean {name}\?"):
            planned(target, **{f"{name}Q": "1"})


@pytest.mark.parametrize("target", TARGETS)
def test_a_switch_is_off_with_zero_no_and_nothing(target: str) -> None:
    for name in TARGETS[target].takes:
        option = OPTIONS[name]
        if option.kind not in (options.SWITCH, options.MAYBE):
            continue
        for value in (*options.OFF, "NO", " 0 "):
            assert _words(planned(target, **{name: value})) == _words(planned(target))
        if option.kind == options.SWITCH and not TARGETS[target].chore:
            for value in (*options.ON, "YES"):
                assert option.flag in _words(planned(target, **{name: value}))


def _words(work: cli.Work) -> tuple[str, ...]:
    return work.commands[-1]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_honours_a_dry_run_or_refuses_it(target: str) -> None:
    try:
        work = planned(target, DRY_RUN="1")
    except UsageError as refusal:
        assert str(refusal).startswith(f"make {target} takes no DRY_RUN: ")
    else:
        assert "--dry-run" in _words(work) or target == "image"


def test_emulation_is_on_or_named() -> None:
    assert "--emulate" in _words(planned("nvfp4", EMULATE="1"))
    assert "--emulate=reference" in _words(planned("nvfp4", EMULATE="reference"))


def test_a_switch_of_the_recipe_is_a_variable_of_the_environment() -> None:
    assert planned("nvfp4", NVFP4_RHT="no").environment == {"NVFP4_RHT": "0"}
    assert planned("nvfp4", NVFP4_2D="1").environment == {"NVFP4_2D": "1"}


def test_an_option_of_one_target_of_several_is_for_that_one() -> None:
    first, second = cli.plan(["bf16", "compare"], {"REPEAT": "2", "ITERS": "9"})
    assert "--repeat=2" not in _words(first) and "--repeat=2" in _words(second)
    assert "--train-iters=9" in _words(first) and "--train-iters=9" in _words(second)


def test_runs_that_are_there_take_no_options_of_a_training() -> None:
    assert _words(planned("compare", RUNS="a 'b c'", FORCE="1", BASE="a")) == (
        *("host", "scripts/compare.py", "--save", "--base=a", "--force"),
        *("--typed=make compare BASE=a FORCE=1 RUNS='a '\"'\"'b c'\"'\"''", "--", "a", "b c"),
    )
    with pytest.raises(
        UsageError,
        match=r"RUNS= looks at runs .* and takes BASE= and SPEEDUP= and LOSS_MARGIN= and FORCE= beside it: not ITERS=",
    ):
        planned("compare", RUNS="a b", ITERS="5")
    with pytest.raises(UsageError, match="not DRY_RUN="):
        planned("compare", RUNS="a b", DRY_RUN="1")
    assert _words(planned("profile", RUN="x", ITERS="")) == ("host", "scripts/run.py", "profile", "--run=x")


def test_the_command_to_repeat_is_what_was_typed() -> None:
    given = {"DATA": "0.7 a 0.3 it's", "ARGS": 'a="x y" $HOME', "REPEAT": "3"}
    work = planned("compare", **given, FRESH="1", WANDB="secret", GPU="")
    said = next(word for word in _words(work) if word.startswith("--typed="))[len("--typed=") :]
    script = f"make() {{ printf '%s\\0' \"$@\"; }}; {said}"
    words = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    assert words[0] == "compare"
    assert dict(word.split("=", 1) for word in words[1:]) == given


def test_of_the_environment_only_documented_names_are_taken(make: Make, recorded) -> None:
    (work,) = recorded("bf16", "ITERS=3", MODEL="x", DATA="$(shell touch executed)", MAKEFLAGS="e")
    assert _words(cli.Work(None, {}, tuple(map(tuple, work["commands"])), {}))[-1] == "--train-iters=3"
    told = make("nvfp4", "DRY_RUN=1", "RUNTIME=cpu", MODEL="another", TAG="x", NVFP4_RHT="0")
    assert told.returncode == 0
    said = "make: MODEL and TAG of the environment are left out; an option follows its target: make nvfp4 MODEL=..."
    assert told.stderr.splitlines() == [said]
    assert "NVFP4_RHT=0" in told.stdout and "another" not in told.stdout


def test_a_word_that_is_no_target(make: Make) -> None:
    for goals, words in {
        ("x;touch executed",): "there is no target x;touch",
        ("$(shell touch executed)",): "there is no target $(shell",
        ("compare", "copmare"): "there is no target copmare: did you mean make compare?",
        ("DRY_RUN",): "DRY_RUN is an option and wants a value: DRY_RUN=...",
    }.items():
        told = make(*goals)
        assert told.returncode == 2 and words in told.stderr
        assert len([line for line in told.stderr.splitlines() if not line.startswith("make: ***")]) == 1


def test_make_clean_hands_the_dry_run_over(recorded) -> None:
    (work,) = recorded("clean", "DRY_RUN=1", "CLEAN=all")
    assert work["commands"] == [["python", "scripts/clean.py", "--dry-run", "--all"]]


def test_an_image_is_named_before_it_is_built(make: Make) -> None:
    told = make("image", "DRY_RUN=1", "TAG=26.06")
    assert told.stdout == "docker build --build-arg=NEMO_TAG=26.06 --tag=nvfp4-playbook:26.06 docker\n"


def test_the_files_that_name_an_image_name_the_default_one(project: Path) -> None:
    said = {
        "docker/Dockerfile": f"ARG NEMO_TAG={DEFAULT_TAG}\n",
        "scripts/playbook/cluster.example.yaml": f"image: {REPOSITORY}:{DEFAULT_TAG} ",
        "README.md": f"`{REPOSITORY}:{DEFAULT_TAG}`",
    }
    for file, name in said.items():
        assert name in (project / file).read_text(), file


SCRIPTS_BEHIND = {
    "bf16": (train.run, ("--dry-run", "--runtime", "cpu")),
    "eval": (train.run, ("--dry-run", "--runtime", "cpu")),
    "compare": (train.run, ("--dry-run", "--runtime", "cpu")),
    "models": (train.run, ()),
    "gate": (gate.main, ()),
    "results": (publish.main, ()),
    "estimate": (estimate.main, ()),
}


@pytest.mark.parametrize("target", SCRIPTS_BEHIND)
def test_no_value_ends_in_a_traceback(target: str, tmp_path: Path, monkeypatch) -> None:
    main, always = SCRIPTS_BEHIND[target]
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "stdout", (tmp_path / "said").open("w"))
    monkeypatch.setattr(compare_job, "compare", lambda *_: pytest.fail("it would train"))
    text = set(TEXT) - {options.NAMES, options.VARIABLE}
    tried = 0
    for number, name in enumerate(name for name in TARGETS[target].takes if OPTIONS[name].kind in text):
        for value in HOSTILE[number % 6 :: 6]:
            words = (*_words(planned(target, **{name: _typed(name, value)}))[2 + (main is not train.run) :], *always)
            try:
                assert entry.run(target, lambda words=words: main(words)) in (0, 1, 2), (name, value)
            except SystemExit as ended:  # argparse's
                assert ended.code == 2
            tried += 1
    sys.stdout.close()
    assert tried and not list(here.iterdir())


def test_a_flag_in_an_error_has_its_options_name(monkeypatch) -> None:
    monkeypatch.setenv(cli.TARGET, "bf16")
    said = cli.in_makes_words("--global-batch-size 7 is not divisible by --micro-batch-size 2; --seed, --data-x stay")
    assert said == "GBS (--global-batch-size) 7 is not divisible by MBS (--micro-batch-size) 2; --seed, --data-x stay"
    monkeypatch.setenv(cli.TARGET, "gone")
    assert cli.in_makes_words("--data") == "--data"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nvfp4", "RUNTIME=gpu"), "RUNTIME=gpu is not one of auto, "),
        (("compare", "MODEL=tinny", "RUNTIME=cpu"), "MODEL (--model): unknown model 'tinny': did you mean tiny?"),
        (("compare", "B=nvfp5", "RUNTIME=cpu"), "B (--b): unknown precision 'nvfp5': did you mean nvfp4?"),
        (("bf16", "GBS=7", "MBS=2", "RUNTIME=cpu"), "GBS (--global-batch-size) 7 is not divisible by MBS (--micro-"),
        (("bf16", "ITERS=ten", "RUNTIME=cpu"), "ITERS=ten (--train-iters): a whole number"),
        (("bf16", "NPROC=0", "RUNTIME=cpu"), "NPROC=0 (--nproc): a whole number"),
        (("bf16", "DATA=no/where", "RUNTIME=cpu"), "DATA (--data) no/where: there is no "),
        (("bf16", "CONFIG=it's no where.yaml", "RUNTIME=cpu"), "CONFIG (--config) it's no where.yaml cannot be read"),
        (("bf16", "PLUGIN=no where.py", "RUNTIME=cpu"), "PLUGIN (--plugin) no where.py cannot be read"),
        (("nvfp4", "TUNED=1", "RUNTIME=cpu"), "TUNED (--tuned): the CPU runtime has no CUDA graphs"),
        (("nvfp4", "GPU=9", "RUNTIME=cpu"), "GPU=9: the CPU runtime uses no GPU"),
        (("nvfp4", "TAG=!!", "RUNTIME=cpu"), "TAG=!! is the image of a container"),
        (("models", "MODEL=lama31-8b"), "did you mean llama31-8b?"),
        (("compare", "RUNS=x"), "two or more runs are needed, and one was given"),
    ],
)
def test_a_wrong_option_is_one_line(make: Make, arguments: tuple[str, ...], words: str) -> None:
    told = make(*arguments)
    assert told.returncode == 2
    ours = [line for line in told.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(ours) == 1 and words in ours[0]


def test_every_option_reaches_the_launcher(make: Make) -> None:
    given = {
        "MODEL": ("small", "--model small"), "ITERS": ("9", "--train-iters 9"), "WARMUP": ("3", "--warmup-iters 3"),
        "GBS": ("6", "--global-batch-size 6"), "MBS": ("3", "--micro-batch-size 3"), "SEQ": ("64", "--seq-length 64"),
        "TENSORBOARD": ("1", "--tensorboard"), "WANDB": ("p", "--wandb-project p"),
        "MLFLOW": ("e", "--mlflow-experiment e"),
        "DATA": ("mock", "--data mock"), "ARGS": ("--seed 5 optimizer.lr=1e-4", "optimizer.lr=1e-4"),
        "BF16_TAIL": ("2", "--bf16-tail-layers 2"), "BF16_HEAD": ("1", "--bf16-head-layers 1"),
        "PRECISION": ("nvfp4", "--precision nvfp4"),
    }  # fmt: skip
    told = make("train", "RUNTIME=cpu", "DRY_RUN=1", *(f"{name}={value}" for name, (value, _) in given.items()))
    assert told.returncode == 0, told.stderr
    for name, (_, flag) in given.items():
        assert flag in told.stdout, name


def test_a_python_that_is_not_there(make: Make) -> None:
    told = make("compare", "PYTHON=python9.9")
    assert told.returncode == 2
    assert "python9.9 is not installed; install Python 3.11 or 3.12 or name it" in told.stderr
