"""How a command ends when what it says can go nowhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SAYS = "import sys; from playbook.cli import entry; sys.exit(entry.run('say', lambda: print('word') or {code}))"


def ended(project: Path, code: int, redirection: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(project / "assets"), str(project / "scripts")])
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", SAYS.format(code=code)]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-"])
def test_closed_streams_change_no_exit_code(project: Path, code: int, redirection: str) -> None:
    end = ended(project, code, redirection)
    assert (end.returncode, end.stdout, end.stderr) == (code, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_said(project: Path) -> None:
    end = ended(project, 0, ">/dev/full")
    assert (end.returncode, end.stderr) == (1, "say: [Errno 28] No space left on device\n")
