"""The plan of a run: every choice as a value with its reason, printed first and stored as `plan.json`."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from playbook import PROJECT
from playbook.runtimes import cpu, local
from pretraining import record
from pretraining.errors import UsageError
from pretraining.settings import Settings

RUNTIMES = ("auto", "cpu", "local")
# Read by the NVFP4 layers (numerics/nvfp4.py); part of what a run was asked to do.
SWITCHES = ("NVFP4_RHT", "NVFP4_STOCHASTIC", "NVFP4_2D")


@dataclass(frozen=True)
class Choice:
    """A value and why it is that."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Plan:
    """What will run.

    Attributes:
        settings: the training's own settings.
        runtime: "cpu" or "local".
        processes: the world size.
        choices: what to print, in order.
    """

    settings: Settings
    runtime: str
    processes: int
    choices: dict[str, Choice]

    def request(self) -> dict[str, Any]:
        """What was asked for, as comparable facts: two runs with the same request do the same work."""
        settings = self.settings
        return {
            "model": settings.model.name,
            "precision": settings.precision.name,
            "bf16_head_layers": settings.bf16_head_layers,
            "bf16_tail_layers": settings.bf16_tail_layers,
            "train_iters": settings.train_iters,
            "warmup_iters": settings.warmup_iters,
            "global_batch_size": settings.global_batch_size,
            "micro_batch_size": settings.micro_batch_size,
            "sequence_length": settings.sequence_length,
            "data": settings.data,
            "seed": settings.seed,
            "resume": str(settings.resume) if settings.resume else None,
            "runtime": self.runtime,
            "processes": self.processes,
            "switches": {name: os.environ.get(name, "1") for name in SWITCHES},
        }

    def write(self, folder: Path, command: list[str]) -> None:
        """Write `plan.json` into the run folder."""
        record.write_json(
            folder / record.PLAN,
            {
                "schema": record.SCHEMA,
                "created": record.utc_now(),
                "choices": {name: asdict(choice) for name, choice in self.choices.items()},
                "request": self.request(),
                "command": command,
                "git_commit": git_commit(),
            },
        )


def choose_runtime(asked: str) -> tuple[str, Choice]:
    """Which runtime, and why. `cpu` only where no NVIDIA GPU is, or where it was asked for.

    Raises:
        UsageError: an unknown name, or a GPU is there that this Python cannot train on.
    """
    if asked not in RUNTIMES:
        raise UsageError(f"RUNTIME={asked} is not one of {', '.join(RUNTIMES)}")
    if asked != "auto":
        if asked == "local":
            local.check()
        return asked, Choice(asked, "asked for")
    gpu = local.gpu()
    if gpu is None:
        return "cpu", Choice("cpu", "no NVIDIA GPU on this machine")
    local.check()
    return "local", Choice("local", f"{gpu}, and {local.python()} has megatron.bridge")


def make_plan(settings: Settings, runtime: str, reason: Choice, processes: int, given: set[str]) -> Plan:
    """Collect the choices to show.

    Args:
        settings: resolved.
        runtime, reason: from `choose_runtime`.
        processes: the world size.
        given: the settings' names that the user chose.
    """

    def choice(value: Any, name: str, otherwise: str) -> Choice:
        return Choice(value, "asked for" if name in given else otherwise)

    model, precision = settings.model, settings.precision
    arithmetic = "emulated exactly on the CPU" if runtime == "cpu" else "on the GPU's tensor cores"
    kept = f"first {settings.bf16_head_layers} and last {settings.bf16_tail_layers} of {model.num_layers} layers"
    choices = {
        "runtime": reason,
        "model": choice(model.name, "model", f"the default {'without' if runtime == 'cpu' else 'with'} a GPU"),
        "precision": Choice(precision.name, arithmetic),
    }
    if precision.name != "bf16":
        choices["kept in BF16"] = choice(kept, "bf16_tail_layers", f"the default for {precision.name}")
    batch = f"{settings.global_batch_size} x {settings.sequence_length} tokens, micro batches of"
    choices |= {
        "iterations": choice(settings.train_iters, "train_iters", f"{model.name}'s default"),
        "batch": choice(f"{batch} {settings.micro_batch_size}", "global_batch_size", f"{model.name}'s default"),
        "data": choice(settings.data, "data", f"{model.name}'s default"),
    }
    return Plan(settings, runtime, processes, choices)


def training_command(plan: Plan, folder: Path, flags: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command that trains, and the environment variables it adds.

    Args:
        plan: what to run.
        folder: the run folder.
        flags: the training script's.
    """
    runtime = cpu if plan.runtime == "cpu" else local
    return runtime.command(plan.processes, [*flags, "--run-dir", str(folder)])


def git_commit() -> str | None:
    """The project's commit, with "-dirty" where files differ from it; None outside a git checkout."""
    try:
        described = subprocess.run(
            ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def show(plan: Plan, folder: Path) -> None:
    """Print the plan: a line a choice, value then reason."""
    width = max(len(name) for name in plan.choices)
    values = max(len(str(choice.value)) for choice in plan.choices.values())
    for name, choice in plan.choices.items():
        print(f"  {name:<{width}}  {choice.value!s:<{min(values, 46)}}  {choice.reason}")
    relative = folder.relative_to(PROJECT) if folder.is_relative_to(PROJECT) else folder
    print(f"  {'run folder':<{width}}  {relative}")
    sys.stdout.flush()
