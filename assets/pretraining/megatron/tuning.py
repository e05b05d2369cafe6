"""Fine-tuning: Megatron-Bridge's own SFT and PEFT recipes, on JSONL whose lines have an "input" and an "output".

The loss counts the output alone. Sequences are padded and not packed, which is what a CPU can do as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.inputs import finetuning, tokenizer_folder
from pretraining.megatron import compat
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

    given, name = finetuning.files(settings.data), finetuning.identify(settings.data)
    config.dataset = FinetuningDatasetConfig(
        dataset_root=str(finetuning.lay_out(given, settings.cache_dir / "instructions" / name)),
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
    return min(32, finetuning.check(file).lines // settings.global_batch_size) if file else 0


def keep_loaded_base(config: ConfigContainer, settings: Settings, run_dir: Path) -> None:
    """Adapters on Hugging Face's weights: add them to what `weights.loader` has put into the model already."""
    if settings.finetune in finetuning.ADAPTERS and not finetuning.is_run(settings.weights):
        compat.add_adapters_alone(config, run_dir)
