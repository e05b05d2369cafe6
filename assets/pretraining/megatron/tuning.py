"""Fine-tuning: Megatron-Bridge's own SFT and PEFT recipes, on JSONL whose lines have an "input" and an "output".

The loss counts the output alone. Sequences are padded and not packed, which is what a CPU can do as well.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.inputs import finetuning, instructions, tokenizer_folder
from pretraining.record import run_folder
from pretraining.request.models import Model
from pretraining.request.settings import Settings

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer


def recipe_name(model: Model, scheme: str) -> str:
    """The recipe's function beside the model's pretraining recipe."""
    return model.recipe.replace("_pretrain_config", "_sft_config" if scheme == "sft" else "_peft_config")


def set_up(config: ConfigContainer, settings: Settings) -> None:
    """Point a fine-tuning recipe at the data, the tokenizer and the weights to begin with."""
    from megatron.bridge.training.config import FinetuningDatasetConfig

    given = finetuning.files(settings.data)
    config.dataset = FinetuningDatasetConfig(
        dataset_root=str(
            instructions.lay_out(given, settings.cache_dir / "instructions" / finetuning.identify(settings.data))
        ),
        seq_length=settings.sequence_length,
        seed=settings.seed,
        max_train_samples=settings.train_iters * settings.global_batch_size,
        dataset_kwargs={"pad_to_max_length": True},
        do_validation=finetuning.VALIDATION in given,
        do_test=False,
    )
    config.tokenizer.tokenizer_model = tokenizer_folder.completed(settings.tokenizer, settings.cache_dir)
    if finetuning.is_run(settings.weights):
        config.checkpoint.pretrained_checkpoint = str(Path(settings.weights) / run_folder.CHECKPOINTS)


def evaluation_batches(settings: Settings) -> int:
    """Whole batches in the validation file, at most 32."""
    file = finetuning.files(settings.data).get(finetuning.VALIDATION)
    return min(32, instructions.check(file).lines // settings.global_batch_size) if file else 0


def keep_loaded_base(config: ConfigContainer, settings: Settings, run_dir: Path) -> None:
    """Adapters on Hugging Face's weights: add them to what `weights.loader` has put into the model already.

    Megatron-Bridge loads the base from a Megatron checkpoint in the same hook that adds the adapters, and wants one
    that exists when it validates the config: the run folder does, and nothing is read there.
    """
    if settings.finetune not in finetuning.ADAPTERS or finetuning.is_run(settings.weights):
        return
    from megatron.bridge.training import setup

    config.checkpoint.pretrained_checkpoint = str(run_dir)
    setup._create_peft_pre_wrap_hook = lambda config, state: partial(setup._apply_peft_transformation, config.peft)
