"""The files beside the page: CSV and Markdown have the same figures, and nothing of anybody's is overwritten."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import cases
import pytest
from PIL import Image

from playbook import report
from pretraining.errors import UsageError


def test_the_csv_has_every_figure_unrounded(written: Callable[[str], Path]) -> None:
    result, _ = cases.gb300()
    with (written("gb300") / report.TABLE).open(newline="") as file:
        rows = {(row["arm"], row["run"], row["figure"]): row for row in csv.DictReader(file)}
    step = rows["B", "", "step_time"]
    known = result.arm("B").step_time
    assert (float(step["value"]), step["unit"], step["spread"]) == (known.value, "s", "range of 3 runs")
    assert (float(step["low"]), float(step["high"]), int(step["count"])) == (known.low, known.high, 3)
    times = result.arm("A").runs[2].step_times
    assert float(rows["A", "3", "step_time median"]["value"]) == times.median
    assert float(rows["A", "3", "step_time outliers"]["value"]) == times.outliers
    ratio = result.contrasts[0].step_time.figure
    assert float(rows["B against A", "", "speed-up"]["value"]) == ratio.value
    assert rows["B against A", "", "peak memory"]["low"] == ""
    assert ("A", "1", "peak memory, device used") in rows


def test_the_markdown_has_the_table_and_the_pictures(written: Callable[[str], Path]) -> None:
    folder = written("three-arms")
    lines = (folder / report.MARKDOWN).read_text().splitlines()
    assert "|  | A bf16 | B nvfp4 | C mxfp8 |" in lines
    step = next(line for line in lines if line.startswith("| Step time (s; "))
    assert step.count("|") == 5
    pictures = [line.split("](")[1].rstrip(")") for line in lines if line.startswith("![")]
    assert len(pictures) == len(list((folder / report.PLOTS).iterdir()))
    for picture in pictures:
        with Image.open(folder / picture) as image:
            assert image.width == 1000 and image.format == "PNG"
    assert "    make compare RUNS='a b c'" in lines


@pytest.mark.parametrize("name", [report.PAGE, report.TABLE, report.MARKDOWN, "plots/loss.png"])
def test_a_file_of_somebody_else_is_not_overwritten(
    tmp_path: Path, case: Callable[[str], cases.Case], name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="is not of a report; it is not overwritten"):
        report.write(*case("cpu"), tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(name).name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_link_is_not_followed(tmp_path: Path, written: Callable[[str], Path]) -> None:
    target = tmp_path / "elsewhere.html"
    target.write_bytes((written("cpu") / report.PAGE).read_bytes())
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / report.PAGE).symlink_to(target)
    with pytest.raises(UsageError, match="not overwritten"):
        report.check_target(tmp_path / "report")


def test_a_report_replaces_an_earlier_one_whole(tmp_path: Path, case: Callable[[str], cases.Case]) -> None:
    report.write(*case("cpu"), tmp_path)
    assert (tmp_path / "plots" / "memory.png").exists()
    paths = report.write(*case("raw-logs"), tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(paths)
    assert not (tmp_path / "plots" / "memory.png").exists()


def test_a_disk_that_is_full_leaves_the_earlier_report(
    tmp_path: Path, case: Callable[[str], cases.Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    report.write(*case("cpu"), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    synced = []

    def full(file: int) -> None:
        synced.append(file)
        if len(synced) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        report.write(*case("raw-logs"), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
