"""A figure is one row of `METRICS`: whatever shows figures shows one that is added there."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import cases
import pytest

from playbook import report
from playbook.compare import figures
from playbook.compare.figures import Metric
from playbook.compare.stats import Figure
from playbook.report import terminal


def test_a_toy_figure_is_said_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Metric("toys", "Toys found", "toys", "toys/step", lambda of: Figure(len(of.times) / 7, ""), against="ratio")
    monkeypatch.setattr(figures, "METRICS", (*figures.METRICS, toy))
    result, runs = cases.gb300()
    report.write(result, runs, tmp_path)
    out = io.StringIO()
    terminal.print_comparison(result, out)
    cell = r" +4\.429 \(4\.429-4\.429\)"
    assert re.search(rf"^toys, toys/step \(range\){cell}{cell} *$", out.getvalue(), re.MULTILINE)
    assert "Toys found        1.00 times, B against A" in out.getvalue()
    content = json.loads((tmp_path / report.FILE).read_text())
    for arm in content["arms"]:
        assert arm["toys"]["spread"] == "range of 3 runs"
        assert [run["toys"]["value"] for run in arm["runs"]] == [31 / 7] * 3
    assert content["contrasts"][0]["toys"]["unit"] == "x"
    table = (tmp_path / report.TABLE).read_text()
    assert table.count(f",toys,{31 / 7},toys/step,") == 8 and "B against A,nvfp4,,toys found,1.0,x," in table
    markdown = (tmp_path / report.MARKDOWN).read_text()
    assert "| Toys found (toys/step; range of 3 runs) | 4.429 (4.429 to 4.429) |" in markdown
    page = (tmp_path / report.PAGE).read_text()
    assert re.search(r"Toys found<small>toys/step; range of 3 runs</small></th><td>4.429", page)
    assert "<dt>Toys found</dt>" in page
