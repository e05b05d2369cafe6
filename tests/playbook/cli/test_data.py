"""`make data`, around the script that does the work."""

import signal
import sys
from pathlib import Path

from playbook.cli import data


def test_a_killed_script_ran_out_of_memory(monkeypatch, capsys, tmp_path: Path) -> None:
    """With threads nothing is left that could say so."""
    (tmp_path / "killed.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setattr(data, "SCRIPT", tmp_path / "killed.py")
    monkeypatch.setattr(data.local_python, "python", lambda: sys.executable)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert data.run(["--runtime", "local", "--input", "x.jsonl", "--tokenizer", "bytes"]) == 137
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == (
        "data: it was killed; if nobody did that, memory ran out: the same command with fewer --workers goes on from "
        "here\n"
    )
