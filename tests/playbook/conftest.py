"""Run folders as training leaves them, made by hand or by a stand-in: real files, no training."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from warm_python import WarmPython

from pretraining.record import run_folder

LAUNCHER = Path(__file__).parent / "fakes" / "launcher.py"

PARITY = {
    "model": "tiny",
    "parameters": 853376,
    "num_layers": 4,
    "sequence_length": 128,
    "global_batch_size": 32,
    "train_iters": 60,
    "start_iteration": 0,
    "learning_rate": 0.003,
    "min_learning_rate": 0.0003,
    "decay_style": "cosine",
    "decay_iters": 60,
    "seed": 1234,
    "data": "python-stdlib-3.11.7-508919032030",
    "world_size": 1,
    "device": "NVIDIA GB300",
    "transformer_engine": None,
}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder: `make_run("nvfp4", step=0.1, loss=1.01, parity={"seed": 1})`."""

    def make(
        precision: str,
        *,
        name: str = "",
        arithmetic: str = "native",
        step: float = 0.2,
        loss: float = 1.0,
        iterations: int = 60,
        parity: dict[str, Any] | None = None,
        outcome: dict[str, Any] | None = None,
        environment: dict[str, Any] | None = None,
        validation: float | None = 2.4,
    ) -> Path:
        folder = tmp_path / "runs" / (name or precision)
        folder.mkdir(parents=True)
        facts = PARITY | (parity or {})
        started = facts["start_iteration"]
        content = {
            "schema": 1,
            "precision": {"name": precision, "arithmetic": arithmetic, "bf16_head_layers": 0, "bf16_tail_layers": 1},
            "mock_data": False,
            "tokens_per_step": facts["global_batch_size"] * facts["sequence_length"],
            "flops_per_token": 5309184.0,
            "text": {"bigram_entropy": 2.4037},
            "parity": {name: value for name, value in facts.items() if value != "absent"},
        }
        run_folder.write_json(folder / run_folder.ENVIRONMENT, content | (environment or {}))
        lines: list[dict[str, Any]] = [
            {
                "kind": "train",
                "iteration": number,
                "loss": loss * (2 + 1 / number),
                "step_time_s": 50.0 if number == started + 1 else step * (1 + 0.01 * (number % 5 - 2)),
                "grad_norm": 1.0,
                "skipped": False,
            }
            for number in range(started + 1, iterations + 1)
        ]
        if validation:
            lines.append({"kind": "eval", "split": "validation", "iteration": iterations, "loss": validation})
        (folder / run_folder.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        ended = {"peak_memory": {"bytes": 2_000_000_000, "kind": "torch allocated"}} | (outcome or {})
        if ended.get("verdict") != run_folder.Verdict.INCOMPLETE:
            verdict, cause = ended.pop("verdict", run_folder.Verdict.SUCCEEDED), ended.pop("cause", "")
            run_folder.write_outcome(folder, run_folder.Verdict(verdict), cause=cause, exit_code=0, details=ended)
        return folder

    return make


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where run folders go."""
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def warm_launcher(environment, project: Path) -> Iterator[WarmPython]:
    """Pythons that have imported what the launcher does."""
    paths = os.pathsep.join([str(project / "assets"), str(project / "scripts")])
    python = WarmPython(
        "import playbook.cli.train, playbook.cli.entry, playbook.report.page", environment(PYTHONPATH=paths)
    )
    yield python
    python.close()


@pytest.fixture
def job(environment, project: Path, warm_launcher: WarmPython, runs: Path):
    """`job("compare", "--seed", "3", code=0)`: what it said on stdout and on stderr."""

    def start(name: str, *flags: str, code: int = 0, **more: str) -> tuple[str, str]:
        paths = os.pathsep.join([str(project / "assets"), str(project / "scripts")])
        standard = ("--runtime", "cpu", "--model", "tiny", "--train-iters", "40", "--runs", str(runs))
        words = [str(LAUNCHER), name, *standard, *flags]
        ended = warm_launcher.run(words, environment(PYTHONPATH=paths, FAKE_STEP="0", **more), 120)
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout, ended.stderr

    return start
