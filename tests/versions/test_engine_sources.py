"""The contract with each Transformer Engine: `make test-versions`. A process a release, see engine_contract.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import version_environments as environments

from pretraining import packages
from pretraining.request.recipe import nvfp4_recipe

pytestmark = pytest.mark.versions

ENGINES = ("2.12.0", "2.14.1", "2.16.1", "2.18.0", "2.20.2")
SINCE = {  # the first of these releases that reads a variable
    "NVTE_NVFP4_4OVER6": packages.FOUR_OVER_SIX,
    "NVTE_NVFP4_4OVER6_ERR_MODE": packages.FOUR_OVER_SIX,
    "NVTE_NVFP4_ROW_SCALED_ACTIVATION": (2, 16),
}


@pytest.fixture(scope="module", params=ENGINES)
def answers(request: pytest.FixtureRequest, environment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one release answers."""
    try:
        folder = environments.engine_sources(request.param)
    except environments.Missing as missing:
        print(f"\nnot tested: {missing}")
        pytest.skip(str(missing))
    path = tmp_path_factory.mktemp("engines") / "answers.json"
    contract = Path(__file__).with_name("engine_contract.py")
    ended = subprocess.run(
        [sys.executable, str(contract), str(path), str(folder)],
        env=environment(PYTHONPATH=os.pathsep.join((str(folder), environment()["PYTHONPATH"]))),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return {"version": request.param, **json.loads(path.read_text())}


def _release(answers: dict[str, Any]) -> tuple[int, ...]:
    return tuple(map(int, answers["version"].split(".")))[:2]


def test_the_release_is_the_one_asked_for(answers) -> None:
    assert answers["versions"]["transformer-engine"] == answers["version"]


def test_classes_keywords_and_attributes_are_there(answers) -> None:
    assert answers["names_and_keywords"] == []


def test_every_variable_that_is_set_is_read(answers) -> None:
    assert set(SINCE) < set(nvfp4_recipe.ENGINE_VARIABLES)
    assert answers["variables"] == [name for name, since in SINCE.items() if _release(answers) < since]


def test_the_probe_admits_the_reference_quantizer(answers) -> None:
    found = answers["probed"]
    since = (packages.FOUR_OVER_SIX, 6), (packages.ROW_SCALED, 1)
    assert len(found) == 4 + sum(more for release, more in since if _release(answers) >= release), found
    for words, said in found.items():
        assert len(said) == 6 and set(said.values()) == {"equal to the specification"}, words
