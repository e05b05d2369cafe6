"""A loss gap: with one seed a number, on mock data nothing, and what was published beside it."""

import dataclasses
import io
from pathlib import Path

import pytest

from playbook import report
from playbook.compare import comparison
from playbook.compare.model import Comparison
from playbook.record import loading
from playbook.report import terminal


def compare(a: Path, b: Path) -> Comparison:
    return comparison.compare([[loading.load(a)], [loading.load(b)]])


def printed(result: Comparison) -> str:
    out = io.StringIO()
    terminal.print_comparison(result, out)
    return out.getvalue()


def test_mock_data_has_no_loss_gap_anywhere(make_run, tmp_path: Path) -> None:
    runs = [loading.load(make_run(name, loss=loss, environment={"mock_data": True}))
            for name, loss in (("bf16", 1.0), ("nvfp4", 1.2))]  # fmt: skip
    result = comparison.compare([[run] for run in runs], loss_margin=1.0)
    (contrast,) = result.contrasts
    assert contrast.training_loss_gap is contrast.validation_loss_gap is contrast.loss_within_margin is None
    assert contrast.loss == contrast.published_gap == ""
    assert "The data is mock: its losses say nothing about accuracy." in result.verdict
    report.write(result, {"A": runs[:1], "B": runs[1:]}, tmp_path / "report")
    texts = [path.read_text() for path in (tmp_path / "report").glob("comparison.*")]
    assert len(texts) == 3
    page = (tmp_path / "report" / "report.html").read_text()
    for text in (printed(result), page, *texts):
        assert "loss gap" not in text.lower() and "+20" not in text
    assert not list((tmp_path / "report").rglob("loss-gap*"))


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [("bf16", "nvfp4", True), ("fp8", "nvfp4", True), ("nvfp4", "mxfp8", True), ("bf16", "fp8", False),
     ("nvfp4", "nvfp4", False), ("fp16", "nvfp4", False)],
)  # fmt: skip
def test_the_published_gap_stands_where_it_applies(make_run, a: str, b: str, said: bool) -> None:
    result = compare(make_run(a, name="a"), make_run(b, name="b"))
    assert ("2509.25149" in printed(result)) is said
    assert bool(result.contrasts[0].published_gap) is said


def test_without_a_gap_no_published_one(make_run) -> None:
    runs = [loading.load(make_run(name, validation=None)) for name in ("bf16", "nvfp4")]
    lossless = [dataclasses.replace(run, train=[line | {"loss": None} for line in run.train]) for run in runs]
    assert comparison.compare([[run] for run in lossless], force=True).contrasts[0].published_gap == ""


@pytest.mark.parametrize("loss", [1.2, 1.012, 1.0, 0.97])
def test_one_seed_is_a_number_without_a_verdict(make_run, loss: float) -> None:
    result = compare(make_run("bf16"), make_run("nvfp4", loss=loss))
    (contrast,) = result.contrasts
    gap = contrast.training_loss_gap
    assert (gap.value, gap.low, gap.high, contrast.loss_differs) == (pytest.approx(100 * (loss - 1)), None, None, None)
    assert gap.spread == "no verdict: one seed, how seeds differ is unknown"
    text = " ".join(printed(result).split())
    assert f"{100 * (loss - 1):+.2f} % (no verdict: one seed)" in text
    assert f"lies {100 * (loss - 1):+.2f} % from BF16, no verdict: one seed" in result.verdict
    assert "band" not in text and "SEEDS='1 2 3' judges it." in result.verdict
    assert "nothing about convergence at scale" in result.scope


@pytest.mark.parametrize(
    ("parity", "beside", "not_beside"),
    [
        ({}, "published, of a finished decay: about 1.5 %", "mfu-fp4-training"),
        ({"decay_style": "constant"}, "published, of a held rate: under 1 %", "about 1.5"),
        ({"decay_iters": 1000}, "and not of an unfinished decay", "1.5"),
    ],
)
def test_a_run_is_set_beside_those_of_its_place_in_the_schedule(make_run, parity, beside, not_beside) -> None:
    said = compare(make_run("bf16", parity=parity), make_run("nvfp4", parity=parity)).contrasts[0].published_gap
    assert beside in said and not_beside not in said
