"""Published speeds, which estimates are fitted on and held against: `published_runs.csv`, with the source of each row.

Half of the configurations, by a hash of what they are, are for the fit, the others are held out. Releases and numbers
of GPUs that share a configuration stay together: none is held out beside its twin.
"""

import csv
import hashlib
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from playbook.common import gpu_table
from playbook.plan.step_time import FITTED, Coefficients, Training, most_pieces, tokens_per_second
from pretraining.request import footprint
from pretraining.request.models import MODELS
from pretraining.request.precisions import find_precision

DATA = Path(__file__).with_suffix(".csv")


def _llama_2(hidden: int, inner: int, heads: int, groups: int, layers: int) -> dict[str, Any]:
    """Of arXiv 2307.09288, which is none of this project's models."""
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": 32000}
    return sizes | {"num_attention_heads": heads, "num_key_value_heads": groups, "tie_word_embeddings": False}


_OTHERS = {
    "llama2-7b": _llama_2(4096, 11008, 32, 32, 32),
    "llama2-13b": _llama_2(5120, 13824, 40, 40, 40),
    "llama2-70b": _llama_2(8192, 28672, 64, 8, 80),
}


@dataclass(frozen=True)
class PublishedRun:
    source: str
    model: str
    configuration: str  # all but the source, the number of GPUs and the batch
    training: Training
    tokens: float  # a second and GPU, as published, or from the TFLOP/s where that alone is
    gradient_bytes: int  # of an accumulated gradient
    memory: float | None  # bytes of a GPU, None where not published
    fits: bool  # one of those that the coefficients are fitted on

    @property
    def name(self) -> str:
        t = self.training
        split = f"TP {t.tensor} PP {t.pipeline} VP {t.virtual} CP {t.context}, batch {t.global_batch}"
        kept = "" if t.precision.name == "bf16" else f", {sum(t.kept) or 'no'} BF16 layers"
        return f"{self.model} {t.precision.name}, {t.gpus} x {t.gpu.name}, {split}{kept}"

    @property
    def tflops(self) -> float:
        """A GPU, counted as Megatron-Bridge does."""
        return self.tokens * self.training.flops_per_token / 1e12

    def error(self, c: Coefficients = FITTED) -> float:
        """Of the estimated speed, as a share of the published one."""
        return tokens_per_second(self.training, c) / self.tokens - 1


@cache
def runs() -> tuple[PublishedRun, ...]:
    with DATA.open(encoding="utf-8", newline="") as file:
        return tuple(_run(row) for row in csv.DictReader(line for line in file if not line.startswith("#")))


def held_out() -> list[PublishedRun]:
    """Those that the coefficients were not fitted on."""
    return [run for run in runs() if not run.fits]


@cache
def misses() -> tuple[float, float]:
    """By what the estimated speed missed held-out runs: the median, and what nine of ten stayed within."""
    found = sorted(abs(run.error()) for run in held_out())
    return found[len(found) // 2], found[math.ceil(0.9 * len(found)) - 1]


def nearest(training: Training) -> PublishedRun:
    """The published run that is most like a training: by GPU and precision first, then by sizes, in octaves."""

    def distance(run: PublishedRun) -> float:
        other = run.training
        sizes = [(each.flops_per_token, each.gpus, each.sequence) for each in (training, other)]
        octaves = sum(abs(math.log2(one / two)) for one, two in zip(*sizes, strict=True))
        splits = [(each.tensor, each.pipeline, each.context) for each in (training, other)]
        octaves += 0.25 * sum(abs(math.log2(one / two)) for one, two in zip(*splits, strict=True))
        same_format = training.gpu.peak(training.precision.name) == training.gpu.peak(other.precision.name)
        return octaves + 8 * (not same_format) + 4 * (training.gpu.name != other.gpu.name)

    return min(runs(), key=distance)


def unlike_all(training: Training) -> list[str]:
    """In what a training lies outside of all published runs: there nothing says how far off an estimate is."""
    others = [run.training for run in runs()]
    amounts = {
        "GPUs": (lambda each: each.gpus, ",.0f"),
        "tokens a step": (lambda each: each.global_batch * each.sequence, ",.0f"),
        "tokens a GPU and step": (lambda each: each.global_batch * each.sequence / each.gpus, ",.0f"),
        "tokens a sequence": (lambda each: each.sequence, ",.0f"),
        "tensor parallel": (lambda each: each.tensor, "d"),
        "pipeline stages": (lambda each: each.pipeline, "d"),
        "GFLOP a token": (lambda each: each.flops_per_token / 1e9, ",.3g"),
    }
    found = []
    for name, (amount, form) in amounts.items():
        asked, known = amount(training), [amount(each) for each in others]
        if not min(known) <= asked <= max(known):
            found.append(f"{asked:{form}} {name}: published are {min(known):{form}} to {max(known):{form}}")
    pairs = {(each.gpu.name, each.gpu.peak(each.precision.name)) for each in others}
    if (training.gpu.name, training.gpu.peak(training.precision.name)) not in pairs:
        found.append(f"{training.precision.name} on {training.gpu.name}: no published run has them together")
    return found


def _run(row: dict[str, str]) -> PublishedRun:
    config = dict(_OTHERS.get(row["model"]) or MODELS[row["model"]].hf_config)
    config["num_hidden_layers"] = int(row["layers"] or config["num_hidden_layers"])
    shape = footprint.shape_of(config)
    sizes = ("gpus", "tp", "pp", "cp", "mbs", "gbs", "seq")
    gpus, tensor, pipeline, context, micro, batch, sequence = (int(row[name]) for name in sizes)
    training = Training(
        shape, find_precision(row["precision"]), gpu_table.kinds()[row["gpu"]], gpus, micro, batch, sequence,
        kept=(0, int(row["bf16_layers"] or 0)), tensor=tensor, pipeline=pipeline, context=context,
        virtual=int(row["vp"] or most_pieces(shape.attention_layers, pipeline)), recomputed=int(row["recompute"] or 0),
    )  # fmt: skip
    names = ("model", "layers", "precision", "gpu", "tp", "pp", "vp", "cp", "mbs", "seq")
    configuration = " ".join(row[name] for name in names)
    return PublishedRun(
        row["source"],
        row["model"],
        configuration,
        training,
        float(row["tokens"] or float(row["tflops"] or 0) * 1e12 / training.flops_per_token),
        {"bf16": footprint.BF16, "fp32": footprint.FP32}[row["gradients"]],
        float(row["memory"]) * 1e9 if row["memory"] else None,
        hashlib.sha256(configuration.encode()).digest()[0] % 2 == 0,
    )
