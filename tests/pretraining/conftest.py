"""A Python of its own for what changes a process for good, as `pretraining.megatron.cpu.enable()` does."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainings import in_both


@pytest.fixture(scope="session")
def in_python(environment) -> Callable[..., Any]:
    """`in_python("answer = 6 * 7")` runs the code in a process of its own and gives what it left in `answer`."""

    def run(code: str, *arguments: str, **more: str) -> Any:
        lines = f"import json, sys\n{textwrap.dedent(code)}\nprint('ANSWER', json.dumps(answer), flush=True)\n"
        ended = subprocess.run(
            [sys.executable, "-c", lines, *arguments],
            env=environment(**more), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-3000:]
        return json.loads([line for line in ended.stdout.splitlines() if line.startswith("ANSWER ")][-1][7:])

    return run


@pytest.fixture(scope="session")
def asked(environment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answers of `probe.py`, by the name of its function."""
    folder = tmp_path_factory.mktemp("probe")
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("probe.py")), str(folder)],
        env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())


@pytest.fixture(scope="session")
def megatron(asked) -> Callable[[str], Any]:
    """`megatron("splits")`: one answer of `probe.py`; its traceback fails the test."""

    def answer(name: str) -> Any:
        found = asked[name]
        assert not (isinstance(found, dict) and set(found) == {"error"}), found["error"]
        return found

    return answer


@pytest.fixture(scope="session")
def runs(train) -> dict[str, Path]:
    """One unbroken run of each precision, as a user starts it, with checkpoints after iterations 3 and 6."""
    return in_both(lambda precision: train(precision, "--save", "3", fresh=True)[0])
