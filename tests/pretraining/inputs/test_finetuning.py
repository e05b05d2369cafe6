"""Fine-tuning's data and flags; the trainings themselves are in test_training.py."""

import json
from pathlib import Path

import pytest

from pretraining.errors import UsageError
from pretraining.inputs import finetuning
from pretraining.megatron import tuning
from pretraining.request import flags as training_flags
from pretraining.request import settings


@pytest.fixture
def instructions(tmp_path: Path) -> Path:
    """A folder with training and validation data, 40 and 20 lines."""
    for name, count in (("training", 40), ("validation", 20)):
        lines = [json.dumps({"input": f"{n} + {n}?", "output": str(2 * n)}) + "\n" for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def base(make_model, tmp_path: Path) -> Path:
    """A folder that looks like Hugging Face's tiny, with a tokenizer."""
    folder = make_model(tmp_path / "base")
    (folder / "tokenizer.json").write_text('{"added_tokens": [{"content": "</s>"}]}')
    return folder


def resolve(*flags: str) -> settings.Settings:
    return settings.resolve(training_flags.parser("x").parse_args(list(flags)), on_gpu=False, processes=1)


def test_a_folder_or_a_file(instructions: Path) -> None:
    assert set(finetuning.files(str(instructions))) == {"training.jsonl", "validation.jsonl"}
    alone = instructions / "validation.jsonl"
    assert finetuning.files(str(alone)) == {"training.jsonl": alone}
    name = finetuning.identify(str(instructions))
    alone.write_text(alone.read_text() + alone.read_text())
    assert finetuning.identify(str(instructions)) != name


def test_what_a_tuning_is(instructions: Path, base: Path) -> None:
    flags = ("--finetune", "lora", "--from", str(base), "--data", str(instructions), "--global-batch-size", "8")
    chosen = resolve(*flags)
    assert (chosen.finetune, chosen.weights, chosen.tokenizer) == ("lora", str(base), str(base))
    assert chosen.data == str(instructions) and chosen.trains
    assert tuning.evaluation_batches(chosen) == 2
    assert resolve(*chosen.as_flags()) == chosen
    assert resolve(*flags, "--tokenizer", "my/tokenizer").tokenizer == "my/tokenizer"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--finetune", "lora"), "lora tunes weights: name them with --from"),
        (("--finetune", "lorra", "--from", "BASE"), "unknown way to fine-tune 'lorra': did you mean lora?"),
        (("--finetune", "sft", "--from", "BASE"), "sft needs instructions: --data FILE.jsonl"),
        (("--finetune", "sft", "--from", "BASE", "--data", "nowhere"), "give a .jsonl of instructions, or a folder"),
        (
            ("--finetune", "sft", "--from", "BASE", "--data", "RUN/environment.json"),
            "no field 'input' and 'output', only 'model'",
        ),
        (("--finetune", "sft", "--from", "PLAIN", "--data", "DATA"), "a run folder has no tokenizer of its own"),
        (("--from", "RUN"), "is a run of this playbook: --resume (RESUME=) continues it"),
        (("--resume", "RUN", "--precision", "bf16"), "holds lora adapters alone: --finetune lora"),
        (("--resume", "RUN", "--export", "out"), "holds lora adapters alone: --finetune lora"),
    ],
)
def test_what_is_refused(
    instructions, base, make_checkpoint, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    for name, tuned in (("run", "lora"), ("plain", None)):
        make_checkpoint(tmp_path / name, 3)
        facts = {"model": "tiny", "precision": {"name": "bf16"}, "finetuned": tuned}
        (tmp_path / name / "environment.json").write_text(json.dumps(facts))
    places = {"BASE": str(base), "RUN": f"{tmp_path}/run", "PLAIN": f"{tmp_path}/plain", "DATA": str(instructions)}
    given = [flag.replace("RUN", places["RUN"]) if "RUN" in flag else places.get(flag, flag) for flag in flags]
    with pytest.raises(UsageError) as told:
        resolve(*given)
    assert words in str(told.value)
