"""The files beside the page: CSV and Markdown have the same figures, and nothing of anybody's is overwritten.

They come together or not at all, `comparison.json` among them.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cases
import pytest
from PIL import Image

from playbook import report
from playbook.common import file_sets
from playbook.compare import saved
from playbook.report import export
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
    memory = rows["B against A", "", "peak memory"]
    assert (memory["spread"], memory["count"]) == ("range of 3 pairs", "3")
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


@pytest.mark.parametrize("name", [report.FILE, report.PAGE, report.TABLE, report.MARKDOWN, "plots/loss.png"])
def test_a_file_of_somebody_else_is_not_overwritten(
    tmp_path: Path, case: Callable[[str], cases.Case], name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="it is not overwritten"):
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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_comparison_is_among_the_files(written: Callable[[str], Path], case: Callable[[str], cases.Case]) -> None:
    assert saved.read(written("cpu"))["verdict"] == case("cpu")[0].verdict


@pytest.mark.parametrize("earlier", [True, False])
def test_a_disk_that_is_full_leaves_the_earlier_report(
    tmp_path: Path, case: Callable[[str], cases.Case], monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    folder = tmp_path / "report"
    if earlier:
        report.write(*case("cpu"), folder)
    before = contents(tmp_path)

    synced = []

    def full(file: int) -> None:
        synced.append(file)
        if len(synced) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        report.write(*case("raw-logs"), folder)
    assert contents(tmp_path) == before
    assert folder.exists() == earlier


OLD = {"comparison.json": b"old", "report.html": b"old", "plots/gone.png": b"old"}
NEW = {"report.html": b"new", "plots/loss.png": b"new", "comparison.json": b"new"}
MOVES = len(OLD) + len(NEW)


def place_new(folder: Path, earlier: list[str]) -> None:
    files = {name: partial(file_sets.write_synced, content=content) for name, content in NEW.items()}
    file_sets.place(folder, files, earlier)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with an earlier report and a file of somebody else."""
    for name, content in OLD.items():
        (tmp_path / "report" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "report" / name).write_bytes(content)
    (tmp_path / "report" / "notes.txt").write_bytes(b"mine")
    return tmp_path / "report"


def fail_at(move: int, act: Callable[[], object]) -> Callable[[Path, Path], Path]:
    """A `Path.rename` that does `act` at its `move`-th call, from 0."""
    rename, calls = Path.rename, []

    def stand_in(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == move + 1:
            act()
        return rename(self, target)

    return stand_in


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("move", range(MOVES))
def test_a_failure_between_the_files_puts_the_earlier_report_back(
    old: Path, monkeypatch: pytest.MonkeyPatch, move: int
) -> None:
    before = contents(old.parent)
    monkeypatch.setattr(Path, "rename", fail_at(move, interrupt))
    with pytest.raises(KeyboardInterrupt):
        place_new(old, list(OLD))
    assert contents(old.parent) == before


@pytest.mark.parametrize("earlier", [True, False])
def test_a_crash_leaves_no_comparison_without_its_report(old: Path, earlier: bool) -> None:
    for move in range(MOVES if earlier else 1):
        folder = old if earlier else old.with_name(f"new{move}")
        child = os.fork()
        if not child:
            Path.rename = fail_at(move, lambda: os._exit(9))  # no handler runs, as when the power goes
            place_new(folder, list(OLD))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert not earlier or "comparison.json" not in contents(folder) or contents(folder).items() >= OLD.items()
        assert earlier or not folder.exists()
        if earlier:  # nothing is lost either: what was taken away lies beside
            found = contents(folder)
            assert all(any(name.endswith(f"/{old_name}") or name == old_name for name in found) for old_name in OLD)
            for name in OLD:
                (folder / name).write_bytes(b"old")


def test_an_empty_folder_takes_a_report_and_other_files_stay(old: Path, tmp_path: Path) -> None:
    place_new(old, list(OLD))
    assert contents(old) == NEW | {"notes.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    place_new(tmp_path / "empty", [])
    assert contents(tmp_path / "empty") == NEW


@pytest.mark.parametrize("name", ["=cmd|'/C calc'!A0", "+1", "-x", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(name: str) -> None:
    assert export._cell(name) == f"'{name}" and export._cell("bf16") == "bf16"


def test_markdown_has_no_orders_for_a_terminal() -> None:
    assert export.escaped("a\x1b[31m<b>\x9b1m\n# c") == "a\\[31m\\<b\\>1m \\# c"
    assert export.on_one_line("make\n<script>\x1b]0;x\x07") == "make <script>]0;x"
