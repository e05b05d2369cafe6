"""overview.md: two screens, whose findings are what their records say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
OVERVIEW = (PROJECT / "overview.md").read_text(encoding="utf-8")
FINDINGS = re.findall(r"^\| (.+) \| (.*\*\*.+) \| \[.+\]\((assets/results/.+)\) \|$", OVERVIEW, re.MULTILINE)


def test_it_is_two_screens() -> None:
    assert len(OVERVIEW.partition("## How to change it")[0].splitlines()) <= 110
    assert len(FINDINGS) > 15


@pytest.mark.parametrize(("finding", "figure", "page"), FINDINGS)
def test_a_figure_is_its_records(finding: str, figure: str, page: str) -> None:
    said = " ".join((PROJECT / page).read_text(encoding="utf-8").split())
    for each in re.findall(r"\*\*(.+?)\*\*", figure):
        assert each in said, f"{finding}: {page} does not say {each}"


@pytest.mark.parametrize("page", [PROJECT / "overview.md", *sorted((PROJECT / "assets/results").rglob("*.md"))])
def test_what_a_page_links_or_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / path).exists(), f"{page}: {path}"
    for path in re.findall(r"`((?:assets|scripts|tests)/[\w./-]+)`", text):
        assert "NAME" in path or (PROJECT / path).exists(), f"{page}: {path}"
