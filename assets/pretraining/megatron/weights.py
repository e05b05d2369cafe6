"""Weights from and to Hugging Face, by Megatron-Bridge's `AutoBridge`, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining.errors import UsageError
from pretraining.megatron import huggingface
from pretraining.request.models import MODELS, Model

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

SCHEME = "hf:"
# What makes a Llama's tensors the size they are, and its arithmetic what it is.
SHAPE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "vocab_size", "tie_word_embeddings", "rms_norm_eps",
)  # fmt: skip


def source(given: str) -> str:
    """The repository or absolute local folder that `--from` names.

    Raises:
        UsageError: neither `hf:NAME` nor a folder with a config.json.
    """
    name = given.removeprefix(SCHEME)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"--from {given}: {folder} has no config.json, so it is no Hugging Face model")
        return str(folder.resolve())  # relative links in it lead to the same places inside a container
    if not given.startswith(SCHEME):
        raise UsageError(f"--from {given}: no such folder; a repository of Hugging Face is written {SCHEME}{given}")
    return name


def check_folder(source: str, model: Model) -> None:
    """Raise UsageError where a local folder holds another model; a repository is checked when it is loaded."""
    if Path(source).is_dir():
        check(source, json.loads((Path(source) / "config.json").read_text(encoding="utf-8")), model)


def check(source: str, config: dict[str, Any], model: Model) -> None:
    """Raise UsageError where a Hugging Face config is not the model's."""
    differing = {name: config[name] for name in SHAPE if name in config and config[name] != model.hf_config[name]}
    if differing:
        like = [
            each.name
            for each in MODELS.values()
            if all(config.get(n, each.hf_config[n]) == each.hf_config[n] for n in SHAPE)
        ]
        way_out = f"take --model {like[0]}" if like else "none of the models here is like it"
        what = ", ".join(f"{name} {value} and not {model.hf_config[name]}" for name, value in differing.items())
        raise UsageError(f"--from {source} is not {model.name}: it has {what}; {way_out}")


def loader(source: str, model: Model) -> Callable[[list[GPTModel]], list[GPTModel]]:
    """A hook for the model provider: fills the model before it is wrapped, and before a checkpoint would."""

    def load(chunks: list[GPTModel]) -> list[GPTModel]:
        with huggingface.explained(source, "--from"):
            from megatron.bridge import AutoBridge

            bridge = AutoBridge.from_hf_pretrained(source, torch_dtype="auto")
            check(source, bridge.hf_pretrained.config.to_dict(), model)
            bridge.load_hf_weights(chunks)
        return chunks

    return load


def export(chunks: list[GPTModel], model: Model, folder: Path) -> None:
    """Write a folder that `transformers` loads, a shard at a time. All processes call it; the first one writes.

    Args:
        chunks: the model, as it trains.
        model: whose config is written beside; tensors are in the dtype they are kept in.
        folder: made beside and renamed into place when it is whole.
    """
    import torch
    from megatron.bridge import AutoBridge
    from megatron.core.utils import unwrap_model

    first = torch.distributed.get_rank() == 0
    beside = folder.with_name(f".{folder.name}.writing")
    dtype = str(next(chunks[0].parameters()).dtype).removeprefix("torch.")
    if first:
        _write_skeleton(beside, model, dtype)
    torch.distributed.barrier()
    bridge = AutoBridge.from_hf_pretrained(str(beside))
    bridge.save_hf_weights(unwrap_model(chunks), beside, show_progress=False)
    if first:
        beside.rename(folder)
        print(f"exported to {folder}", flush=True)


def _write_skeleton(folder: Path, model: Model, dtype: str) -> None:
    """A Hugging Face folder without tensors: AutoBridge takes their names, order and shards from its index."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model.hf_folder))
    tied = set(getattr(empty, "_tied_weights_keys", None) or ()) if model.hf_config["tie_word_embeddings"] else set()
    tensors = {name: tensor for name, tensor in empty.state_dict().items() if name not in tied}
    split = split_torch_state_dict_into_shards(tensors)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = {**model.hf_config, "torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
