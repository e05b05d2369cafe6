"""Logs as text."""

from pathlib import Path

import pytest

from playbook.record.megatron_log import read_log
from pretraining.record.run_folder import Run


@pytest.fixture
def read(tmp_path: Path):
    """Reads text or bytes as a log."""

    def read_text(content: str | bytes) -> Run:
        path = tmp_path / "train.log"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_log(path)

    return read_text
