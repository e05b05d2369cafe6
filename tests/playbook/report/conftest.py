"""Reports of the cases, each written once for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))  # last: tests/engine imports its own conftest by name

import browser as chromium  # noqa: E402
import cases  # noqa: E402

from playbook import report  # noqa: E402


@pytest.fixture(scope="session")
def case() -> Callable[[str], cases.Case]:
    """`case("gb300")`: that comparison and its runs, not to be changed."""
    return cache(lambda name: cases.CASES[name]())


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, case: Callable[[str], cases.Case]) -> Callable[[str], Path]:
    """`written("gb300")`: the folder with the report of that case."""
    folder = tmp_path_factory.mktemp("reports")

    @cache
    def write(name: str) -> Path:
        report.write(*case(name), folder / name)
        return folder / name

    return write


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    """A headless browser; installed on Debian where asked for by INSTALL_BROWSER, as `make test-report` does."""
    if os.environ.get("INSTALL_BROWSER"):
        chromium.install()
    if not chromium.program():
        pytest.skip("no Chromium or Chrome on PATH (`make test-report` installs one on Debian where root)")
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running
