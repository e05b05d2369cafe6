"""The models this playbook trains, and every default that depends on the model, in one table.

A model is a Megatron-Bridge recipe together with a Hugging Face config. The recipes would download that config
from a gated repository even for mock data, so it lies here, in `assets/models/`, and the recipe is given it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pretraining.errors import unknown

HF_CONFIGS = Path(__file__).resolve().parents[2] / "models"

MOCK = "mock"
PYTHON_STDLIB = "python-stdlib"


@dataclass(frozen=True)
class Model:
    """A named model with its defaults."""

    name: str
    recipe: str  # the pretraining recipe's function
    family: str = "llama.llama3"  # its module below `megatron.bridge.recipes`
    on_cpu: bool = False  # small enough to train without a GPU
    train_iters: int = 50
    warmup_iters: int = 2  # over which the learning rate rises
    global_batch_size: int = 64  # sequences a step
    micro_batch_size: int = 4  # sequences a forward pass and process
    sequence_length: int = 4096  # tokens
    data: str = MOCK  # random tokens, or PYTHON_STDLIB: real text as bytes, see `data/builtin_text.py`
    eval_iters: int = 0  # evaluation batches after training; 0 where the data is mock
    learning_rate: tuple[float, float] | None = None  # peak and final; None: the recipe's own, 3e-4 falling to 3e-5
    tensor_parallel: int = 1  # processes that share one copy of the model in its recipe
    pipeline_parallel: int = 1
    expert_parallel: int = 1  # processes that share its experts, among those and its replicas
    virtual_pipeline: int = 1  # pieces of the layers that each pipeline stage holds in its recipe
    recipe_context_parallel: int = 1  # by which its recipe splits the sequence; the playbook does not, see `parallel`

    @cached_property
    def hf_config(self) -> dict[str, Any]:
        return json.loads((self.hf_folder / "config.json").read_text(encoding="utf-8"))

    @property
    def hf_folder(self) -> Path:
        return HF_CONFIGS / self.name

    @property
    def num_layers(self) -> int:
        return self.hf_config["num_hidden_layers"]


_1B = "llama32_1b_pretrain_config"
_ON_BYTES = {"data": PYTHON_STDLIB, "eval_iters": 8}
_ON_CPU = {"on_cpu": True, "global_batch_size": 32, "learning_rate": (2e-3, 2e-4), **_ON_BYTES}
_OF_STUDIES = {
    "global_batch_size": 128,
    "micro_batch_size": 32,
    "sequence_length": 1024,
    "learning_rate": (6e-4, 6e-5),
}
_SPLIT_NANO = {"micro_batch_size": 1, "tensor_parallel": 4, "expert_parallel": 8}
_SPLIT_70B = {"tensor_parallel": 4, "pipeline_parallel": 4, "virtual_pipeline": 5, "recipe_context_parallel": 2}
_SPLIT_405B = {"tensor_parallel": 8, "pipeline_parallel": 8, "virtual_pipeline": 2, "recipe_context_parallel": 4}

# The 8B settings are those of NVIDIA's published runs, so that figures compare. tiny's settings were
# chosen by trial on 2 cores: both precisions end below the text's bigram entropy within a minute of training, and
# a higher learning rate than this one makes the gap between two runs a matter of luck.
MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model("llama31-8b", "llama31_8b_pretrain_config", recipe_context_parallel=2),
        Model("llama31-70b", "llama31_70b_pretrain_config", **_SPLIT_70B),
        Model("llama31-405b", "llama31_405b_pretrain_config", **_SPLIT_405B),
        Model("llama3-8b", "llama3_8b_pretrain_config", recipe_context_parallel=2),
        Model("llama3-70b", "llama3_70b_pretrain_config", **_SPLIT_70B),
        Model("llama32-1b", _1B),
        Model("llama32-3b", "llama32_3b_pretrain_config"),
        Model("nemotron3-nano", "nemotron_3_nano_pretrain_config", "nemotronh.nemotron_3_nano", **_SPLIT_NANO),
        Model("tiny", _1B, train_iters=120, warmup_iters=20, micro_batch_size=32, sequence_length=128, **_ON_CPU),
        Model("small", _1B, train_iters=400, warmup_iters=40, micro_batch_size=16, sequence_length=256, **_ON_CPU),
        # For ablations: bytes need next to no embedding, so what it has is in the layers that a precision is about.
        # On an H200 its emulated NVFP4 took 0.43 s a step: nine minutes for all 1,200. It reads the text 16 times
        # (DATA= names a longer one). Rate and warm-up as is usual at this size.
        Model("llama-120m", _1B, train_iters=1200, warmup_iters=120, **_OF_STUDIES, **_ON_BYTES),
        # For studies on text of one's own: `make data TOKENIZER=bpe:16384` makes what it reads. 105M tokens.
        Model("llama-110m", _1B, train_iters=800, warmup_iters=80, **_OF_STUDIES),
    )
}

DEFAULT_ON_GPU = "llama31-8b"
DEFAULT_ON_CPU = "tiny"
ABLATED_ON_GPU = "llama-120m"


def find_model(name: str) -> Model:
    """The model called `name`. Raises UsageError with the nearest name and the whole list."""
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name]
