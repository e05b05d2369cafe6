"""Losses by sequence: what is read, what is refused, and intervals that hold the truth."""

import json
from pathlib import Path

import numpy as np
import pytest

from playbook.campaign import sequences
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.record.run_folder import Run

FACTS = {
    "data": "corpus-1", "sequence_length": 128, "global_batch_size": 32, "vocab_size": 257,
    "tokenizer": "NullTokenizer", "device": "cpu",
}  # fmt: skip


def run(precision: str = "bf16", **facts) -> Run:
    return Run(
        Path("x"), environment={"precision": {"name": precision, "arithmetic": "native"}, "parity": FACTS | facts}
    )


def losses(*values: float) -> dict[str, float]:
    return {f"{number:016x}": value for number, value in enumerate(values)}


def write(folder: Path, name: str, lines: list[dict]) -> None:
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_sequences_of_all_replicas_are_read(tmp_path: Path) -> None:
    line = {"split": "validation", "sequence": "a", "loss": 2.0, "tokens": 128}
    write(tmp_path, run_folder.sequences_of(0), [line, line | {"split": "test", "loss": 3.0}])
    write(tmp_path, run_folder.sequences_of(1), [line | {"sequence": "b", "loss": 2.5}, line | {"loss": None}])
    assert sequences.read(tmp_path) == {"validation": {"a": 2.0, "b": 2.5}, "test": {"a": 3.0}}


def test_a_difference_that_all_sequences_share_is_found_below_their_spread() -> None:
    generator = np.random.default_rng(4)
    base = generator.normal(3.0, 0.5, 200)
    new = base + 0.01 + generator.normal(0, 0.02, 200)
    found = sequences.difference(losses(*new), losses(*base))
    assert 0.005 < found.low < 0.01 < found.high < 0.015
    assert sequences.sentence(found, "b", "a").endswith("paired over 200 sequences): higher")
    back = sequences.difference(losses(*base), losses(*new))
    assert back.value == -found.value and sequences.sentence(back, "a", "b").endswith(": lower")


def test_equal_checkpoints_are_told_apart_in_one_of_twenty_studies() -> None:
    generator = np.random.default_rng(5)
    studies = [
        sequences.difference(losses(*generator.normal(3, 0.1, 30)), losses(*generator.normal(3, 0.1, 30)))
        for _ in range(1000)
    ]
    told = sum(not each.low <= 0 <= each.high for each in studies)
    assert 30 <= told <= 70


def test_few_sequences_have_no_interval() -> None:
    found = sequences.difference(losses(2.0, 3.0), losses(1.0, 2.5))
    assert found.value == 0.75
    assert sequences.sentence(found, "b", "a").endswith("2 sequences are too few for an interval")


@pytest.mark.parametrize(
    ("fact", "value", "way_out"),
    [
        ("data", "corpus-2", "DATA="), ("sequence_length", 64, "SEQ="), ("global_batch_size", 16, "GBS="),
        ("vocab_size", 32_000, "other tokenizers"), ("tokenizer", "HuggingFaceTokenizer x", "other tokenizers"),
        ("device", "NVIDIA H100", "GPU="), ("torch", "2.13.0", "one environment"),
    ],
)  # fmt: skip
def test_an_unequal_evaluator_is_refused(fact: str, value, way_out: str) -> None:
    sequences.check_evaluators({"a": run(), "b": run(), "c": run()})
    with pytest.raises(UsageError) as refusal:
        sequences.check_evaluators({"a": run(), "b": run(), "c": run(**{fact: value})})
    said = str(refusal.value)
    assert fact.replace("_", " ") in said and way_out in said and f"{value} for c" in said


def test_another_precision_is_refused() -> None:
    with pytest.raises(UsageError, match=r"precision \(name\) differs: bf16 for a, nvfp4 for b"):
        sequences.check_evaluators({"a": run(), "b": run("nvfp4")})
    whole, switched = run("nvfp4"), run("nvfp4")
    switched.environment["precision"] = switched.precision | {"switches_at": 3}
    with pytest.raises(UsageError, match=r"precision \(switches at\) differs: None for a, 3 for b .*PRECISION=bf16"):
        sequences.check_evaluators({"a": whole, "b": switched})


def test_other_sequences_are_refused() -> None:
    one, other = ({"validation": losses(*range(count)), "test": losses(1.0)} for count in (5, 6))
    sequences.check_same({"a": one, "b": one})
    with pytest.raises(UsageError, match="a and b were evaluated on other sequences: 5 in common of 5 and 6"):
        sequences.check_same({"a": one, "b": other})
    with pytest.raises(UsageError, match="the evaluation of b wrote the loss of no sequence: the text needs 20"):
        sequences.check_same({"a": one, "b": {}})
