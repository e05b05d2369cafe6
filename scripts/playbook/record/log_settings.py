"""What a log says besides its iterations: the settings, the sizes and the peak memory."""

from __future__ import annotations

import ast
import re
from typing import Any

_SUMMARY = "Configuration Summary"
_SECTION = re.compile(r"^\s*\[(\w+)\](?: Non-default values.*|:)\s*$")
_ENTRY = re.compile(r"^\s*([A-Za-z_]\w*): (.*?)(?:\s+\(Mcore default: .*)?$")
_ARGUMENT = re.compile(r"^ +(\w+) \.{3,} (.*)$")  # of Megatron-LM, whose settings are a list of arguments
_LOGGER = re.compile(r"^(?:INFO|WARNING|ERROR|DEBUG|CRITICAL):")
# Single lines; a named group is the fact of that name. Memory is in GB of 1e9 bytes.
_PRINTED = [
    re.compile(pattern)
    for pattern in (
        r"(?:initialized tensor model parallel with size|tensor-model-parallel size:) (?P<tensor_parallel>\d+)",
        r"(?:initialized pipeline model parallel with size|pipeline-model-parallel size:) (?P<pipeline_parallel>\d+)",
        r"context-parallel size: (?P<context_parallel>\d+)",
        r"data-parallel size: (?P<data_parallel>\d+)",
        r"setting number of microbatches to constant (?P<micro_batches>\d+)",
        r"parameters on \(tensor, pipeline\) model parallel rank \(\d+, \d+\): (?P<parameters>\d+)",
        r"Total number of parameters in billions: *(?P<parameters_billions>\d+\.\d+)",
        r"(?:Using preset vocab_size:|padded vocab .*\(new size:) (?P<vocab_size>\d+)",
        r"GPTDatasetConfig\(.*?\bsequence_length=(?P<sequence_length>\d+)",
        r"Building (?P<mock_data>Mock)?GPTDataset splits",
        r"\(after (?P<measured_after>\d+) iterations\).*? mem-max-allocated-gigabytes: (?P<peak_memory>[\d.]+) \|",
    )
]
_OF_THE_MODEL = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")
_OF_TRAINING = ("global_batch_size", "micro_batch_size", "train_iters")
# The parity facts: where the configuration summary has each, first found; `arguments` are Megatron-LM's.
_SETTINGS = {
    **{name: f"model.{name} arguments.{name}" for name in _OF_THE_MODEL},
    **{name: f"train.{name} arguments.{name}" for name in _OF_TRAINING},
    "vocab_size": "arguments.padded_vocab_size",
    "sequence_length": "dataset.seq_length dataset.sequence_length model.seq_length arguments.seq_length",
    "warmup_iters": "scheduler.lr_warmup_iters arguments.lr_warmup_iters",
    "learning_rate": "optimizer.lr arguments.lr",
    "min_learning_rate": "optimizer.min_lr arguments.min_lr",
    "seed": "rng.seed arguments.seed",
    "data_path": "dataset.blend dataset.blend_per_split dataset.dataset_root arguments.data_path",
    "context_parallel": "model.context_parallel_size",
    "data_parallel": "dataset.data_parallel_size",
}
# What is said besides the parity facts, or what these are made from.
_OTHERWISE = ("data_parallel", "micro_batches", "parameters_billions", "mock_data", "measured_after", "peak_memory")
# `[model] fp8_recipe` to the names of pretraining.precision; the summary leaves out "delayed", Megatron-Core's default
_FP8 = {"tensorwise": "fp8", "blockwise": "fp8_blockwise", "mxfp8": "mxfp8", "delayed": "fp8_delayed"}


class Facts:
    """Gathers the settings, such as `model.num_layers`, and what single lines say, by the names in `_PRINTED`.

    Of peak memory that is the largest of all ranks.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.printed: dict[str, Any] = {}
        self._in_summary: str | None = None  # whose
        self._section = ""

    def line(self, text: str, whose: str = "") -> None:
        """Take one line; of several ranks' summaries the first is read, whatever others print meanwhile."""
        if self._in_summary == whose:
            self._summary_line(text)
        elif _SUMMARY in text and self._in_summary is None:
            self._in_summary, self._section, self.settings = whose, "", {}
        elif found := _ARGUMENT.match(text):
            self.settings.setdefault(f"arguments.{found[1]}", _literal(found[2]))
        else:
            for found in filter(None, (pattern.search(text) for pattern in _PRINTED)):
                told = {name: _literal(value) for name, value in found.groupdict().items()}
                told["peak_memory"] = max(told.get("peak_memory", 0), self.printed.get("peak_memory", 0))
                self.printed |= told

    def _summary_line(self, text: str) -> None:
        if found := _SECTION.match(text):
            self._section = found[1]
        elif (self._section and text.startswith("=====")) or _LOGGER.match(text):
            self._in_summary = None
            self.line(text)
        elif self._section and (found := _ENTRY.match(text.rstrip())):
            self.settings.setdefault(f"{self._section}.{found[1]}", _literal(found[2]))

    def parity(self) -> dict[str, Any]:
        """The facts two runs must share, under the names of a run folder's `parity`; unknown ones are left out."""
        facts = dict(self.printed)
        for name, places in _SETTINGS.items():
            if known := [found for place in places.split() if (found := self.settings.get(place)) is not None]:
                facts[name] = known[0]
        if self.settings:  # values that the summary leaves out are Megatron-Core's defaults
            facts.setdefault("context_parallel", 1)
        if facts.get("mock_data") or self.settings.get("arguments.mock_data") is True:
            facts["data"] = "mock"
        split = facts.get("tensor_parallel"), facts.get("pipeline_parallel")
        if split != (1, 1):  # the number printed is one shard's
            facts.pop("parameters", None)
        if all(split) and (replicas := _replicas(facts)):
            facts["world_size"] = split[0] * split[1] * replicas * facts.get("context_parallel", 1)
        return {name: value for name, value in facts.items() if name not in _OTHERWISE}

    def precision(self) -> dict[str, Any]:
        """Name, arithmetic and BF16 layers, as in a run folder; empty without a configuration summary."""
        if not self.settings:
            return {}
        sections = (key.partition(".") for key in self.settings)
        model = {key: self.settings[f"{part}.{key}"] for part, _, key in sections if part in ("model", "arguments")}
        arithmetic = "native"
        if model.get("fp4"):
            name = "nvfp4"
            if model.get("fp4_recipe", "nvfp4") == "custom":  # a quantizer of Python: no FP4 tensor cores
                arithmetic = "emulated"
        elif model.get("fp8"):
            recipe = model.get("fp8_recipe", "delayed")
            name = _FP8.get(recipe, f"fp8_{recipe}")
        else:
            name = "bf16" if model.get("bf16") else "fp16" if model.get("fp16") else "fp32"
        keeps = (model.get("fp4") or model.get("fp8")) and model.get("first_last_layers_bf16")
        return {
            "name": name,
            "arithmetic": arithmetic,
            "bf16_head_layers": model.get("num_layers_at_start_in_bf16", 1) if keeps else 0,
            "bf16_tail_layers": model.get("num_layers_at_end_in_bf16", 1) if keeps else 0,
        }


def _replicas(facts: dict[str, Any]) -> int | None:
    names = ("data_parallel", "global_batch_size", "micro_batch_size", "micro_batches")
    printed, *batch = (each if isinstance(each := facts.get(name), int) else None for name in names)
    return printed or (batch[0] // (batch[1] * batch[2]) if all(batch) else None)


def _literal(text: str | None) -> Any:
    if text in (None, "Mock"):
        return text is not None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
