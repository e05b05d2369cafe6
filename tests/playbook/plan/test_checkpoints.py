"""A run's checkpoint as another job's beginning: what was not asked for is as it was there."""

import json
from pathlib import Path

import pytest

from playbook.cli import cluster, train
from playbook.plan import earlier_run, plan
from playbook.plan.place import Choice, Place
from pretraining.errors import UsageError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs with one of "small" in NVFP4, two layers kept in BF16."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    parity = {"model": "small", "sequence_length": 64, "global_batch_size": 8, "micro_batch_size": 4}
    precision = {"name": "nvfp4", "bf16_head_layers": 0, "bf16_tail_layers": 2}
    (folder / "environment.json").write_text(json.dumps({"parity": parity, "precision": precision}))
    (folder / "plan.json").write_text(json.dumps({"request": {"data": "/corpus/mine"}}))
    return tmp_path / "runs"


def parsed(runs: Path, job: str, *flags: str):
    """The launcher's flags for a job."""
    args = train.parser("x").parse_args(["--runs", str(runs), *flags])
    args.job = job
    return args


def test_it_continues_as_it_was(runs: Path) -> None:
    args = parsed(runs, "nvfp4", "--seq-length", "32")
    earlier_run.like_run(args, earlier_run.folder_of("first", runs))
    assert (args.model, args.data, args.seq_length) == ("small", "/corpus/mine", 32)
    assert (args.global_batch_size, args.micro_batch_size, args.bf16_tail_layers) == (8, 4, 2)
    assert args.resume == runs / "first"


def test_the_plan_says_what_is_as_it_was(runs: Path, make_checkpoint) -> None:
    make_checkpoint(runs / "first", 6)
    args = parsed(runs, "nvfp4", "--data", "mock", "train.global_batch_size=4", "--micro-batch-size", "2")
    earlier_run.like_run(args, runs / "first")
    choices = plan.planned(args, "nvfp4", Place("cpu")).choices
    as_there = "as in the run that it begins with"
    assert choices["model"] == Choice("small", as_there)
    assert choices["kept in BF16"] == Choice("first 0 and last 2 of 8 layers", as_there)
    assert choices["batch"] == Choice("4 x 64 tokens, micro batches of 2", "asked for")  # an override is asked for too
    assert choices["data"].reason == "asked for" and choices["iterations"].reason == "small's default"


@pytest.mark.parametrize(
    ("job", "flags", "tail"),
    [
        ("nvfp4", (), 2),
        ("bf16", (), None),
        ("train", (), 2),
        ("train", ("--precision", "fp8"), None),
        ("train", ("--disable-fp4",), None),
        ("nvfp4", ("--bf16-tail-layers", "1"), 1),
    ],
)
def test_layers_stay_in_bf16_where_the_precision_stays(runs: Path, job: str, flags: tuple[str, ...], tail) -> None:
    args = parsed(runs, job, *flags)
    earlier_run.like_run(args, runs / "first")
    assert args.bf16_tail_layers == tail


def test_a_submitted_training_continues_as_well(runs: Path) -> None:
    args = cluster.parser().parse_args(["submit"])
    earlier_run.like_run(args, runs / "first")
    assert (args.model, args.bf16_tail_layers, args.resume) == ("small", 2, runs / "first")


@pytest.mark.parametrize(
    ("asked", "precision", "tail"),
    [((), "nvfp4", 2), (("--precision", "bf16"), "bf16", None), (("--disable-fp4",), "bf16", None)],
)
def test_an_evaluation_is_in_either_precision(runs: Path, asked: tuple[str, ...], precision: str, tail) -> None:
    args = parsed(runs, "eval", "--run", str(runs / "first"), *asked)
    earlier_run.of_run(args)
    assert args.evaluate and (args.precision, args.bf16_tail_layers) == (precision, tail)


def test_what_is_missing(runs: Path) -> None:
    for job, flags, words in (
        ("eval", (), "make eval needs the run whose checkpoint it means: RUN="),
        ("export", ("--run", "first"), "make export needs a folder to write: OUT="),
        ("eval", ("--run", "second"), "RUN=second: second is not a run folder"),
    ):
        with pytest.raises(UsageError, match=words):
            earlier_run.of_run(parsed(runs, job, *flags))
    with pytest.raises(UsageError, match=r"RESUME=second: second is not a run folder.*; make history lists the runs"):
        earlier_run.like_run(parsed(runs, "nvfp4"), Path("second"))
