"""What the selfcheck's tests share: `import stand_ins`, and one order of operations whatever is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pretraining import packages
from pretraining.selfcheck import FAST_MATH

sys.path.append(str(Path(__file__).resolve().parent))  # last: tests/engine imports its own conftest by name


@pytest.fixture(autouse=True)
def an_old_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of operations of the vectors, whatever is installed."""
    monkeypatch.setattr(packages, "folds_block_scale", lambda: False)
    monkeypatch.delenv(FAST_MATH, raising=False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Of many small operations several threads make no fewer seconds, and each waits by spinning."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
