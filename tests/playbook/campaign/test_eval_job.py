"""`make eval RUNS=`: what each evaluation is asked for, what is refused before it begins, and what is said after it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from playbook.campaign import eval_job
from playbook.cli import train
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.record.run_folder import Verdict

SIZES = {"model": "small", "sequence_length": 64, "global_batch_size": 8, "micro_batch_size": 4, "vocab_size": 257}


@pytest.fixture
def make(tmp_path: Path):
    """Makes a run's record: `make("b", data="...", sequence_length=32)`."""

    def make_one(name: str, *, precision: str = "bf16", data: str = "python-stdlib", **facts) -> str:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "environment.json").write_text(
            json.dumps({"parity": SIZES | facts, "precision": {"name": precision, "bf16_tail_layers": 1}})
        )
        (folder / "plan.json").write_text(json.dumps({"request": {"data": data}}))
        return name

    return make_one


def parsed(tmp_path: Path, *names: str, flags: tuple[str, ...] = ()):
    args = train.parser("x").parse_args(["--runs", str(tmp_path / "runs"), "--checkpoints", *names, *flags])
    args.job, args.precision = "eval", args.precision or "bf16"
    return args


def tokenized(folder: Path, name: str, by: str) -> str:
    """The prefix of a dataset of which there is the manifest alone."""
    fields = dict.fromkeys(
        ("vocabulary_size", "end_of_document", "largest_token", "documents", "tokens", "text_bytes",
         "empty_documents", "bad_lines"), 1
    )  # fmt: skip
    content = {**fields, "tokenizer": by, "dtype": "uint16", "sources": [], "sha256": {}, "created": ""}
    (folder / f"{name}.manifest.json").write_text(json.dumps(content))
    for ending in (".bin", ".idx"):
        (folder / f"{name}{ending}").write_bytes(b"")
    return str(folder / name)


def test_all_are_evaluated_in_one_precision_on_one_text(make, tmp_path: Path) -> None:
    found = eval_job.of_runs(parsed(tmp_path, make("a"), make("b", precision="nvfp4")))
    assert list(found) == ["a", "b"]
    for name, each in found.items():
        assert (each.precision, each.data, each.evaluate) == ("bf16", "python-stdlib", True)
        assert each.resume.name == name
    found = eval_job.of_runs(parsed(tmp_path, "a", "b", flags=("--precision", "nvfp4", "--seq-length", "32")))
    assert {(each.precision, each.seq_length) for each in found.values()} == {("nvfp4", 32)}


@pytest.mark.parametrize(
    ("facts", "flags", "said"),
    [
        ({"sequence_length": 32}, (), "sequence length differs: 64 for a, 32 for b (to make it one: SEQ=)"),
        ({"sequence_length": 32}, ("--seq-length", "32"), ""),
        ({"global_batch_size": 4}, (), "global batch size differs: 8 for a, 4 for b (to make it one: GBS=)"),
        ({"vocab_size": 32_000}, (), "vocabulary differs: 257 for a, 32000 for b"),
        ({"data": "other"}, (), "the text differs: python-stdlib for a, other for b (to make it one: DATA=)"),
        ({"data": "other"}, ("--data", "python-stdlib"), ""),
    ],
)
def test_evaluators_that_would_differ_are_refused_before_they_begin(make, tmp_path, facts, flags, said) -> None:
    args = parsed(tmp_path, make("a"), make("b", **facts), flags=flags)
    if not said:
        assert len(eval_job.of_runs(args)) == 2
        return
    with pytest.raises(UsageError) as refusal:
        eval_job.of_runs(args)
    assert said in str(refusal.value)


def test_checkpoints_of_other_tokenizers_are_refused(make, tmp_path: Path) -> None:
    mine, theirs = (tokenized(tmp_path, name, by) for name, by in (("mine", "bytes"), ("theirs", "gpt2")))
    names = make("a", data=mine), make("b", data=theirs)
    with pytest.raises(UsageError, match="the tokenizer differs: bytes for a, gpt2 for b"):
        eval_job.of_runs(parsed(tmp_path, *names, flags=("--data", mine)))
    with pytest.raises(UsageError, match="the tokenizer differs: bytes for a, gpt2 for this text"):
        eval_job.of_runs(parsed(tmp_path, "a", make("c", data=mine), flags=("--data", theirs)))


@pytest.mark.parametrize(
    ("names", "said"),
    [(("a",), "RUNS= needs two runs or more"), (("a", "a"), "RUNS= names a twice"), (("a", "z"), "RUNS=z: z is not")],
)
def test_what_is_no_pair_of_runs(make, tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    make("a")
    with pytest.raises(UsageError, match=said):
        eval_job.of_runs(parsed(tmp_path, *names))


@pytest.mark.parametrize(("flag", "said"), [("--run", "RUNS= several by one"), ("--run-dir", "takes no --run-dir")])
def test_what_is_of_one_run_alone(make, tmp_path: Path, flag: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        eval_job.of_runs(parsed(tmp_path, make("a"), make("b"), flags=(flag, "x")))


def test_the_differences_are_said_with_their_intervals(make, tmp_path: Path, monkeypatch, capsys) -> None:
    """The launcher's part: the training is a stand-in that writes what an evaluation does."""
    args = parsed(tmp_path, make("a"), make("b"))

    def train_one(job, runs: Path):
        folder = runs / f"evaluated-{job.resume.name}"
        folder.mkdir()
        worse = 0.02 if job.resume.name == "b" else 0.0
        writer = run_folder.MetricsWriter(folder / run_folder.SEQUENCES)
        for number in range(20):
            loss = 3 + number / 10 + worse * (1 + number % 3 / 10)
            writer.write({"split": "validation", "sequence": f"{number}", "loss": loss, "tokens": 64})
        writer.close()
        run_folder.write_json(
            folder / run_folder.ENVIRONMENT, {"precision": {"name": "bf16", "arithmetic": "native"}, "parity": SIZES}
        )
        run_folder.write_outcome(folder, Verdict.SUCCEEDED, cause="", exit_code=0)
        return run_folder.read_run(folder)

    monkeypatch.setattr(eval_job, "train", train_one)
    where = SimpleNamespace(runtime="cpu")

    monkeypatch.setattr(eval_job, "planned", lambda each, *_: SimpleNamespace(at=lambda where: each))
    assert eval_job.evaluate(args, where) == 0
    said = capsys.readouterr().out
    assert "In bf16, nats a token:" in said
    assert (
        "  b +0.0219 nats a token from a (95 % interval +0.0211 to +0.0227, paired over 20 sequences): higher" in said
    )
