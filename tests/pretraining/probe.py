# ruff: noqa: E402 - cpu.enable() comes before the imports of Megatron
"""Run by the tests in a process of its own: what Megatron-Bridge makes of this project's settings, as JSON.

    python probe.py FOLDER        writes FOLDER/answers.json, a value or {"error": traceback} for each question below

One process for all of it, because the imports take longer than the answers.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any

from pretraining.megatron import cpu

cpu.enable()

import probe_configs as configs
import probe_models as models
import torch
from megatron.core import parallel_state, tensor_parallel

from pretraining.run import rendezvous


def answered(question: Callable[[], Any]) -> Any:
    """The answer, or the traceback."""
    try:
        return question()
    except Exception:
        return {"error": traceback.format_exc()}


def main() -> None:
    """Ask everything."""
    for name in ("MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    rendezvous.describe(0, 1)
    rendezvous.use_own_store(1)
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(0)
    questions = (
        configs.presets, configs.primary_weights, configs.missing_recipes, configs.splits, configs.gpu_configs,
        models.arithmetics, models.product_logits, models.bridge_logits,
        models.on_meta, models.providers, configs.copied_to_mlflow, configs.megatrons_footprints, configs.overridden,
        configs.undone, configs.split_weights, configs.config_files, configs.plugins, configs.resumed,
    )  # fmt: skip
    answers = {question.__name__: answered(question) for question in questions}
    (configs.FOLDER / "answers.json").write_text(json.dumps(answers, indent=1, default=str))


if __name__ == "__main__":
    main()
