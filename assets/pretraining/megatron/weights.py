"""Weights from and to Hugging Face, by Megatron-Bridge's `AutoBridge`, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining import huggingface
from pretraining.errors import UsageError
from pretraining.inputs import manifest, safetensors_files, tokenizer_folder
from pretraining.megatron import compat
from pretraining.record import run_folder
from pretraining.request import blends, config_file, pretrained
from pretraining.request import flags as training_flags
from pretraining.request.models import MOCK, PYTHON_STDLIB, Model

if TYPE_CHECKING:
    import torch
    from megatron.core.models.gpt import GPTModel

# What a repository is asked for: no pickles, and none of the formats that hold the same weights again.
_FILES = ("*.json", "*.safetensors", "*.py")
# Both models at once within a second and 200 MB.
_MOST_COMPARED = 20_000_000
_KNOWN_TEXT = b"The quick brown fox jumps over the lazy dog, 0123456789 times; pack my box with five dozen liquor jugs."
_LOSS_TOLERANCE = 1e-3


def loader(source: str, model: Model) -> Callable[[list[GPTModel]], list[GPTModel]]:
    """A hook for the model provider: fills the model before it is wrapped, and before a checkpoint would."""

    def load(chunks: list[GPTModel]) -> list[GPTModel]:
        with huggingface.explained(source, "--from"):
            from huggingface_hub import snapshot_download

            wanted, folder = _config_of(chunks, model), source
            if not Path(source).is_dir():
                folder = snapshot_download(source, allow_patterns="*.json")
                pretrained.check(folder, wanted, model.name, given=source, whole=False)  # it may be 800 GB of another
                folder = snapshot_download(source, allow_patterns=_FILES)
            pretrained.check(folder, wanted, model.name, given=source)
            from megatron.bridge import AutoBridge

            AutoBridge.from_hf_pretrained(folder, torch_dtype="auto").load_hf_weights(chunks)
        compare_losses(chunks, folder)
        return chunks

    return load


def _config_of(chunks: list[GPTModel], model: Model) -> dict[str, Any]:
    """The Hugging Face config of the model as it is built. Raises UsageError where it is no such model any more."""
    built = vars(chunks[0].config)
    if model.hf_config.get("model_type") == "llama" and (odd := pretrained.without_a_place(built)):
        raise UsageError(f"{odd}: a Hugging Face {model.name} has no place for it; leave it out")
    return pretrained.asked_for(model, built)


def compare_losses(chunks: list[GPTModel], folder: str) -> None:
    """Where it costs little, a small model on the CPU: the loss of a known text is the one that Transformers computes.

    Both in float32, so that what is compared is the model and not the precision that it will train in. Raises
    UsageError where it is another.
    """
    import torch
    from transformers import AutoModelForCausalLM

    ours = chunks[0]
    whole = len(chunks) == 1 and torch.distributed.get_world_size() == 1
    small = sum(each.numel() for each in ours.parameters()) <= _MOST_COMPARED
    if not (whole and small and compat.emulated_layers(ours)):
        return
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor([[byte % theirs.config.vocab_size for byte in _KNOWN_TEXT]])
    length = tokens.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]
    with torch.no_grad(), compat.in_float32(ours):
        logits = ours(tokens, torch.arange(length).expand_as(tokens), mask)
        found = _loss(logits[..., : theirs.config.vocab_size], tokens)
        expected = _loss(theirs(tokens).logits, tokens)
    if not abs(found - expected) <= _LOSS_TOLERANCE:
        raise UsageError(
            f"--from {folder}: a known text has a loss of {found:.4f} in Megatron-Bridge and {expected:.4f} in "
            "Transformers: what trains is not this model"
        )
    print(f"--from {folder}: loss of a known text {found:.4f}, in Transformers {expected:.4f}", flush=True)


def _loss(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Mean cross entropy of each token after the first."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits[0, :-1].float(), tokens[0, 1:]).item()


def export(chunks: list[GPTModel], model: Model, folder: Path, run: Path | None = None) -> None:
    """Write a folder that `transformers` loads, a shard at a time. All processes call it; the first one writes.

    It is made beside and renamed into place when it is whole. What a user changed of the model is in its config; `run`,
    the folder whose checkpoint it is, says what the tokenizer was. Raises UsageError where what was trained has no
    place in a Hugging Face config.
    """
    import torch
    from megatron.bridge import AutoBridge
    from megatron.core.utils import unwrap_model

    first = torch.distributed.get_rank() == 0
    beside = folder.with_name(f".{folder.name}.writing")
    unwrapped = unwrap_model(chunks)
    config = _config_of(unwrapped, model)
    if first:
        shutil.rmtree(beside, ignore_errors=True)  # of an export that was broken off
        _write_skeleton(beside, config)
    torch.distributed.barrier()
    bridge = AutoBridge.from_hf_pretrained(str(beside))
    bridge.save_hf_weights(unwrapped, beside, show_progress=False)
    if first:
        tensors = safetensors_files.tensors(beside)
        pretrained.check_tensors(beside, tensors, config, model.name)
        dtype = _TORCH[next(iter(tensors.values())).dtype]
        _write_json(beside / "config.json", {**config, "torch_dtype": dtype})
        _write_tokenizer(beside, run and tokenizer_of(run))
        beside.rename(folder)
        print(f"exported to {folder}", flush=True)


_TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def _write_skeleton(folder: Path, config: dict[str, Any]) -> None:
    """A Hugging Face folder without tensors: AutoBridge takes their names, order and shards from its index."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    _write_json(folder / "config.json", config)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    tied = set(getattr(empty, "_tied_weights_keys", None) or ()) if config["tie_word_embeddings"] else set()
    tensors = {name: tensor for name, tensor in empty.state_dict().items() if name not in tied}
    split = split_torch_state_dict_into_shards(tensors)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    _write_json(folder / safetensors_files.INDEX, index)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """What JSON cannot hold is an error here: a reader elsewhere would take its string for a value."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def tokenizer_of(run: Path) -> str | None:
    """The tokenizer of what a run was trained on: "bytes", a Hugging Face name or folder, None where unknown."""
    try:
        args = training_flags.words_of(config_file.read(run / run_folder.CONFIG))
        if args.tokenizer or args.data in (None, MOCK, PYTHON_STDLIB):
            return args.tokenizer or (tokenizer_folder.BYTES if args.data == PYTHON_STDLIB else None)
        known = next(filter(None, map(manifest.read, blends.prefixes(blends.parse(args.data)))), None)
    except (UsageError, ValueError):
        return None
    return known and known.tokenizer


def _write_tokenizer(folder: Path, tokenizer: str | None) -> None:
    """Put the tokenizer beside the weights; a word where it cannot be had, which takes nothing from these."""
    if tokenizer is None:
        return
    try:
        tokenizer_folder.save(tokenizer, folder)
    except UsageError as error:
        print(f"without its tokenizer, which is to be copied beside: {error}", flush=True)
