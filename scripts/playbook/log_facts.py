"""What a Megatron-Bridge log says besides its iterations: the settings, the peak memory, and how the run failed."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from pretraining.record import Verdict

# `[rank0]:` (torch), `[default0]:` (torchrun --tee), `0: ` (srun --label)
_RANK = re.compile(r"^\s*(?:\[(?:rank|default)(\d+)\]:|(\d+):(?= )) ?")
_SUMMARY = "Configuration Summary"
_SECTION = re.compile(r"^\s*\[(\w+)\](?: Non-default values.*|:)\s*$")
_ENTRY = re.compile(r"^\s*([A-Za-z_]\w*): (.*?)(?:\s+\(Mcore default: .*)?$")
_LOGGER = re.compile(r"^(?:INFO|WARNING|ERROR|DEBUG|CRITICAL):")
_MODEL_PARALLEL = re.compile(r"initialized (tensor|pipeline) model parallel with size (\d+)")
_MICRO_BATCHES = re.compile(r"setting number of microbatches to constant (\d+)")
_PARAMETERS = re.compile(r"number of parameters on \(tensor, pipeline\) model parallel rank \(\d+, \d+\): (\d+)")
_BILLIONS = re.compile(r"Total number of parameters in billions: *([\d.]+)")
_VOCABULARY = re.compile(r"Using preset vocab_size: (\d+)")
_DATASET_CLASS = re.compile(r"Building (Mock)?GPTDataset splits")
_DATASET = re.compile(r"GPTDatasetConfig\(.*?\bsequence_length=(\d+)")
_MEMORY = re.compile(r"\(after (\d+) iterations\) memory \(GB\).*?mem-max-allocated-gigabytes: *([\d.]+) *\|")

# name of the parity fact: where the configuration summary has it, first found
_SETTINGS = {
    "num_layers": ["model.num_layers"],
    "hidden_size": ["model.hidden_size"],
    "ffn_hidden_size": ["model.ffn_hidden_size"],
    "num_attention_heads": ["model.num_attention_heads"],
    "num_query_groups": ["model.num_query_groups"],
    "sequence_length": ["dataset.seq_length", "dataset.sequence_length", "model.seq_length"],
    "global_batch_size": ["train.global_batch_size"],
    "micro_batch_size": ["train.micro_batch_size"],
    "train_iters": ["train.train_iters"],
    "warmup_iters": ["scheduler.lr_warmup_iters"],
    "learning_rate": ["optimizer.lr"],
    "min_learning_rate": ["optimizer.min_lr"],
    "seed": ["rng.seed"],
}
# `[model] fp8_recipe` to the names of pretraining.precision; the summary leaves out "delayed", Megatron-Core's default
_FP8 = {"tensorwise": "fp8", "blockwise": "fp8_blockwise", "mxfp8": "mxfp8", "delayed": "fp8_delayed"}


def looks_like_log(path: Path) -> bool:
    """Whether the first 4 MiB of a file hold something that only Megatron-Bridge prints. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(1 << 22)
    marks = (b"Configuration Summary (Non-Default Values vs", b"MODEL_TFLOP/s/GPU", b"Starting training loop at")
    return any(mark in start for mark in marks)


class Facts:
    """Gathers the settings, sizes and peak memory, line by line.

    Attributes:
        mock_data: whether the run trained on mock data; None where the log does not say.
        parameters_billions: as printed, two decimals.
        peak_memory_gb: `mem-max-allocated`, GB of 1e9 bytes, the largest of all ranks; None where not printed.
        peak_memory_after: the iteration after which it was printed, the first one.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.found: dict[str, int] = {}
        self.mock_data: bool | None = None
        self.parameters_billions: float | None = None
        self.peak_memory_gb: float | None = None
        self.peak_memory_after: int | None = None
        self._in_summary = False
        self._section = ""

    def line(self, text: str) -> None:
        """Take one line."""
        if self._in_summary:
            self._summary_line(_RANK.sub("", text, count=1))
        elif _SUMMARY in text:
            self._in_summary, self._section, self.settings = True, "", {}
        elif "parameters" in text:
            if found := _PARAMETERS.search(text):
                self.found["parameters"] = int(found[1])
            elif found := _BILLIONS.search(text):
                self.parameters_billions = float(found[1])
        elif "memory (GB)" in text:
            if found := _MEMORY.search(text):  # each data-parallel rank prints one: the largest counts
                self.peak_memory_gb = max(self.peak_memory_gb or 0.0, float(found[2]))
                self.peak_memory_after = int(found[1])
        elif found := _MODEL_PARALLEL.search(text):
            self.found[f"{found[1]}_parallel"] = int(found[2])
        elif found := _VOCABULARY.search(text):
            self.found["vocab_size"] = int(found[1])
        elif "GPTDataset" in text:
            if found := _DATASET_CLASS.search(text):
                self.mock_data = found[1] is not None
            if found := _DATASET.search(text):
                self.found["sequence_length"] = int(found[1])
        elif found := _MICRO_BATCHES.search(text):
            self.found["micro_batches"] = int(found[1])

    def _summary_line(self, text: str) -> None:
        if found := _SECTION.match(text):
            self._section = found[1]
        elif (self._section and text.startswith("=====")) or _LOGGER.match(text):
            self._in_summary = False
            self.line(text)
        elif self._section and (found := _ENTRY.match(text.rstrip())):
            self.settings.setdefault(f"{self._section}.{found[1]}", _literal(found[2]))

    def parity(self) -> dict[str, Any]:
        """The facts two runs must share, under the names of a run folder's `parity`; unknown ones are left out."""
        facts: dict[str, Any] = {name: self.found.get(name) for name in ("sequence_length", "vocab_size")}
        for name, places in _SETTINGS.items():
            value = next((self.settings[place] for place in places if self.settings.get(place) is not None), None)
            facts[name] = value if value is not None else facts.get(name)
        tensor, pipeline = self.found.get("tensor_parallel"), self.found.get("pipeline_parallel")
        facts |= {"tensor_parallel": tensor, "pipeline_parallel": pipeline}
        if self.settings:  # values that the summary leaves out are Megatron-Core's defaults
            facts["context_parallel"] = self.settings.get("model.context_parallel_size", 1)
        if self.mock_data:
            facts["data"] = "mock"
        if tensor == pipeline == 1:  # otherwise the number printed is one shard's
            facts["parameters"] = self.found.get("parameters")
        replicas = self._data_parallel(facts["global_batch_size"], facts["micro_batch_size"])
        if tensor and pipeline and replicas:
            facts["world_size"] = tensor * pipeline * replicas * facts.get("context_parallel", 1)
        return {name: value for name, value in facts.items() if value is not None}

    def _data_parallel(self, global_batch: int | None, micro_batch: int | None) -> int | None:
        printed = self.settings.get("dataset.data_parallel_size")
        if isinstance(printed, int):
            return printed
        micro_batches = self.found.get("micro_batches")
        return global_batch // (micro_batch * micro_batches) if global_batch and micro_batch and micro_batches else None

    def precision(self) -> dict[str, Any]:
        """Name, arithmetic and BF16 layers, as in a run folder; empty without a configuration summary."""
        if not self.settings:
            return {}
        model = {key.removeprefix("model."): value for key, value in self.settings.items() if key.startswith("model.")}
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


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(?:: .*)?$")
_OUT_OF_MEMORY = re.compile(
    r"(?:[\w.]*OutOfMemoryError: )?(?:CUDA out of memory|CUDA error: out of memory|.*can't allocate memory)"
    r".*?(?= Including non-PyTorch memory|$)"
)
_SIGNALLED = re.compile(r"(?:exitcode: -9\b|Signal 9 \(SIGKILL\)|oom_kill event|oom-kill event)")
_EXITING = re.compile(r"\[((exiting program|Exiting program) [^\]]*)\]")
_NOT_FINITE = re.compile(r"found (?:NaN|Inf) in|Unexpected result (?:nan|inf)|loss is (?:NaN|nan|not finite)")


class Failure:
    """Finds what ended a run.

    The first traceback that training did not survive counts, the last exception of its chain; torchrun's own report
    that a child failed comes after it and explains nothing. `cause` is empty while nothing was found.
    """

    # A rank can print one more iteration after another one died, before it waits for it; two mean that nobody died.
    SURVIVED_AFTER = 2

    def __init__(self) -> None:
        self.verdict = Verdict.INCOMPLETE
        self.cause = ""
        self._open: set[str] = set()  # ranks inside a traceback
        self._chained: set[str] = set()
        self._rank_of_cause: str | None = None
        self._iterations_since = 0

    def survived(self, iterations: int) -> bool:
        """Told of iterations after it was seen: whether training evidently went on."""
        self._iterations_since += iterations
        return self._iterations_since >= self.SURVIVED_AFTER

    def line(self, text: str) -> None:
        """Take one line."""
        found = _RANK.match(text)
        rank = (found[1] or found[2]) if found else ""
        text = text[found.end() :] if found else text
        if _TRACEBACK in text:
            self._open.add(rank)
        elif rank in self._open:
            if text[:1].strip() and (found := _EXCEPTION.match(text.rstrip())) and found[1] not in _NO_EXCEPTION:
                self._open.discard(rank)
                self._exception(text.strip(), found[1].rpartition(".")[2], rank)
        elif text.startswith(_CHAINED) and rank == self._rank_of_cause:
            self._chained.add(rank)
        elif found := _OUT_OF_MEMORY.search(text):
            self._set(Verdict.OUT_OF_MEMORY, found[0], rank)
        elif _SIGNALLED.search(text):
            self._set(Verdict.KILLED, f"ended by SIGKILL, often the host running out of memory: {text.strip()}", rank)
        elif found := _EXITING.search(text):
            interrupted = "SIGTERM" in found[1]
            self._set(Verdict.INTERRUPTED if interrupted else Verdict.INCOMPLETE, found[1], rank)

    def _exception(self, text: str, name: str, rank: str) -> None:
        if name == "ChildFailedError":
            return self._set(Verdict.FAILED, "a training process failed; its own error is not in the log", rank)
        if name in ("KeyboardInterrupt", "SignalException"):
            return self._set(Verdict.INTERRUPTED, text, rank)
        if found := _OUT_OF_MEMORY.search(text):
            return self._set(Verdict.OUT_OF_MEMORY, found[0], rank)
        return self._set(Verdict.DIVERGED if _NOT_FINITE.search(text) else Verdict.FAILED, text, rank)

    def _set(self, verdict: Verdict, cause: str, rank: str) -> None:
        if self.cause and rank not in self._chained:
            return
        self._chained.discard(rank)
        self.verdict, self.cause, self._rank_of_cause = verdict, cause[:300], rank


# Looks like an exception's last line inside a traceback, but is another rank's or thread's message.
_NO_EXCEPTION = {"INFO", "WARNING", "ERROR", "DEBUG", "Warning", "UserWarning", "FutureWarning", "DeprecationWarning"}
