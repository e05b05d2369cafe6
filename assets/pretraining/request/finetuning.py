"""Fine-tuning: Megatron-Bridge's own SFT and PEFT recipes, on JSONL whose lines have an "input" and an "output".

The loss counts the output alone. Sequences are padded and not packed, which is what a CPU can do as well.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.data import contents, instructions, tokenizer_folder
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.request.models import Model

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer

    from pretraining.request.settings import Settings

SCHEMES = ("sft", "lora", "dora")
ADAPTERS = ("lora", "dora")  # whose checkpoints hold no other weights
TRAINING, VALIDATION = "training.jsonl", "validation.jsonl"


def recipe_name(model: Model, scheme: str) -> str:
    """The recipe's function beside the model's pretraining recipe."""
    return model.recipe.replace("_pretrain_config", "_sft_config" if scheme == "sft" else "_peft_config")


def files(data: str) -> dict[str, Path]:
    """The files that `--data` names: one .jsonl to train on, or a folder with training.jsonl and validation.jsonl.

    Raises:
        UsageError: no such file, or not every line is an instruction.
    """
    path = Path(data).absolute()
    if wrong := contents.pointer(path):
        raise UsageError(f"--data {wrong}")
    found = {TRAINING: path} if path.is_file() else {name: path / name for name in (TRAINING, VALIDATION)}
    found = {name: file for name, file in found.items() if file.is_file()}
    if TRAINING not in found:
        raise UsageError(
            f"--data {data}: give a .jsonl of instructions, or a folder with {TRAINING} (and {VALIDATION})"
        )
    for file in found.values():
        instructions.check(file)
    return found


def left_out(data: str) -> str:
    """A sentence on the blank lines of the instructions; "" without any."""
    blank = {file.name: instructions.check(file).blank for file in files(data).values()}
    told = [f"{count} blank {'line' if count == 1 else 'lines'} of {name}" for name, count in blank.items() if count]
    return f"{' and '.join(told)} left out" if told else ""


def identify(data: str) -> str:
    """A name for the instructions, equal exactly where the files are."""
    return f"{Path(data).name}-{instructions.identify(files(data))}"


def set_up(config: ConfigContainer, settings: Settings) -> None:
    """Point a fine-tuning recipe at the data, the tokenizer and the weights to begin with."""
    from megatron.bridge.training.config import FinetuningDatasetConfig

    given = files(settings.data)
    config.dataset = FinetuningDatasetConfig(
        dataset_root=str(instructions.lay_out(given, settings.cache_dir / "instructions" / identify(settings.data))),
        seq_length=settings.sequence_length,
        seed=settings.seed,
        max_train_samples=settings.train_iters * settings.global_batch_size,
        dataset_kwargs={"pad_to_max_length": True},
        do_validation=VALIDATION in given,
        do_test=False,
    )
    config.tokenizer.tokenizer_model = tokenizer_folder.completed(settings.tokenizer, settings.cache_dir)
    if is_run(settings.weights):
        config.checkpoint.pretrained_checkpoint = str(Path(settings.weights) / run_folder.CHECKPOINTS)


def evaluation_batches(settings: Settings) -> int:
    """Whole batches in the validation file, at most 32."""
    file = files(settings.data).get(VALIDATION)
    return min(32, instructions.check(file).lines // settings.global_batch_size) if file else 0


def is_run(weights: str | None) -> bool:
    """Whether weights are those of a run folder's checkpoint, and not Hugging Face's."""
    return weights is not None and run_folder.has_checkpoint(Path(weights))


def keep_loaded_base(config: ConfigContainer, settings: Settings, run_dir: Path) -> None:
    """Adapters on Hugging Face's weights: add them to what `weights.loader` has put into the model already.

    Megatron-Bridge loads the base from a Megatron checkpoint in the same hook that adds the adapters, and wants one
    that exists when it validates the config: the run folder does, and nothing is read there.
    """
    if settings.finetune not in ADAPTERS or is_run(settings.weights):
        return
    from megatron.bridge.training import setup

    config.checkpoint.pretrained_checkpoint = str(run_dir)
    setup._create_peft_pre_wrap_hook = lambda config, state: partial(setup._apply_peft_transformation, config.peft)
