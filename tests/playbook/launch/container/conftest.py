"""Containers that trainings ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from playbook.launch.container import engine, spec
from playbook.plan import place
from playbook.plan.gpus import Gpu
from pretraining.request import flags as training_flags
from pretraining.request import settings


@pytest.fixture
def container_of(tmp_path: Path) -> Callable[..., spec.Container]:
    """What a training with these flags asks for, by an engine with a GB300."""
    gpu = Gpu(0, "GPU-1b7e90aa-4f0c-2b17-9c35-6f1d20b6ce44", "NVIDIA GB300", (10, 3), None)
    where = place.Place("container", gpu=gpu, engine=engine.EngineKind(gpus="cdi"), image="nemo")

    def asked(*flags: str) -> spec.Container:
        args = training_flags.parser("x").parse_args([*flags, "--run-dir", str(tmp_path / "run")])
        chosen = settings.resolve(args, on_gpu=True, processes=1)
        return spec.training(chosen, where, chosen.run_dir, [])

    return asked
