"""Makes the modules beside the tests importable, and gives them each Megatron-Bridge in turn."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.append(str(Path(__file__).parent))

import version_environments as environments

from pretraining import nemo_images


class Release(NamedTuple):
    """A Megatron-Bridge: its version, an interpreter, and the PYTHONPATH that its packages and the playbook are on."""

    version: str
    python: str
    path: str


@pytest.fixture(scope="module", params=(environments.OWN, *environments.NEWER))
def release(request: pytest.FixtureRequest, environment) -> Release:
    """One version. Skipped, with the reason printed, where it cannot be had."""
    try:
        python, folders = environments.command_of(request.param)
    except environments.Missing as missing:
        print(f"\nnot tested: {missing}")
        pytest.skip(str(missing))
    return Release(request.param, python, os.pathsep.join([*folders, environment()["PYTHONPATH"]]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which NeMo image each release stands for, and which could not be tried, where these tests ran."""
    if not any("tests/versions/" in report.nodeid for report in terminalreporter.getreports("passed")):
        return
    terminalreporter.section("Megatron-Bridge and NeMo images")
    for version in (environments.OWN, *environments.NEWER):
        terminalreporter.line(f"{version}: NeMo {nemo_images.with_bridge(version)}")
    for version in nemo_images.ON_NO_INDEX:
        terminalreporter.line(f"{version}: NeMo {nemo_images.with_bridge(version)}, not tried: on no package index")
