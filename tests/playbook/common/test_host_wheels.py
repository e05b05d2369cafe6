"""The launcher's environment has ready wheels wherever the playbook runs: the package index is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).resolve().parents[3] / "requirements" / "host.txt"


@pytest.mark.parametrize("version", ["3.11", "3.12"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_package_is_a_ready_wheel(version: str, machine: str, tmp_path: Path) -> None:
    words = ["--dry-run", "--ignore-installed", "--only-binary", ":all:", "--target", str(tmp_path), "--quiet"]
    words += ["--python-version", version, "--implementation", "cp", "--report", str(tmp_path / "report.json")]
    for tag in ("manylinux2014", "manylinux_2_28"):
        words += ["--platform", f"{tag}_{machine}"]
    ended = subprocess.run(
        [sys.executable, "-m", "pip", "install", *words, "-r", str(REQUIREMENTS)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if "Failed to establish a new connection" in ended.stderr:
        pytest.skip("the package index is out of reach")
    assert ended.returncode == 0, ended.stderr
    installed = json.loads((tmp_path / "report.json").read_text())["install"]
    pinned = [line for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    assert len(installed) == len(pinned), "a package that is installed and not pinned"
    assert all(each["download_info"]["url"].endswith(".whl") for each in installed)
