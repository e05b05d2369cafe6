"""Figures in words, and which of them the tables have."""

from __future__ import annotations

import cases
import pytest

from playbook.compare.stats import Figure
from playbook.report import wording


@pytest.mark.parametrize(
    ("figure", "value", "interval"),
    [
        (Figure(5.39, "s", 5.384, 5.396), "5.390 s", "5.384 to 5.396"),
        (Figure(0.476, "s", 0.452, 0.497), "476.0 ms", "452.0 to 497.0"),
        (Figure(48635.2, "tokens/s", 48000.0, 49000.0), "48,635 tokens/s", "48,000 to 49,000"),
        (Figure(1.68, "x", 1.62, 1.74), "1.68×", "1.62 to 1.74"),
        (Figure(1.6812, "x", 1.6783, 1.6841), "1.681×", "1.678 to 1.684"),
        (Figure(1.0, "x", 1.0, 1.0), "1.00×", "1.00 to 1.00"),
        (Figure(0.0272, "J/token"), "27.20 mJ/token", ""),
        (Figure(207.8, "GB"), "207.80 GB", ""),
        (Figure(2.3114, "nats a token"), "2.3114 nats a token", ""),
        (Figure(0.0, "s"), "0 ms", ""),
    ],
)
def test_a_figure_in_words(figure: Figure, value: str, interval: str) -> None:
    assert wording.value(figure).replace("\N{NO-BREAK SPACE}", " ") == value
    assert wording.interval(figure) == interval


def test_a_difference_has_a_sign() -> None:
    gap = Figure(0.5, "%", -0.25, 1.25)
    assert wording.value(gap, signed=True) == "+0.50\N{NO-BREAK SPACE}%"
    assert wording.interval(gap, signed=True) == "−0.25 to +1.25"


def test_a_row_has_one_unit_and_as_many_digits_everywhere() -> None:
    rows = {row.label: row for row in wording.rows(cases.three_arms()[0])}
    assert rows["Step time"].note.startswith("s; ")
    assert {len(cell.value.partition(".")[2]) for cell in rows["Step time"].cells} == {3}
    memory = next(row for label, row in rows.items() if label.startswith("Peak memory"))
    assert [cell.value for cell in memory.cells][-1] == wording.NOT_KNOWN
    assert memory.cells[0].small[-1].endswith(" GiB")
    assert "Tokens a second and GPU" not in rows  # one GPU


def test_no_gpu_figures_of_an_emulation() -> None:
    labels = [row.label for row in wording.rows(cases.on_cpu()[0])]
    assert "Step time" in labels
    assert not {"Model FLOP/s a GPU", "MFU", "Energy a step"} & set(labels)


def test_only_native_arms_have_an_mfu_peak() -> None:
    assert wording.mfu_peaks(cases.on_cpu()[0]) == []
    (bf16, nvfp4) = wording.mfu_peaks(cases.gb300()[0])
    assert bf16.startswith("MFU of A: of 2,450 TFLOP/s") and nvfp4.startswith("MFU of B: of 14,700 TFLOP/s")
