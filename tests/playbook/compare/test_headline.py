"""No headline says what its own notes take back: step times that are unusable, and logs that tell no precision."""

import json
import re
from pathlib import Path

import pytest

from playbook import report
from playbook.compare import comparison, model
from playbook.compare.model import Comparison
from playbook.record import loading
from playbook.report import terminal

LOG = Path(__file__).parents[2] / "logs" / "cpu-fp32-0.3.1.log"
RATIO = re.compile(
    r"times the|times as fast|speed-up|cost of emulation|\d[x×]\b|at [0-9.]+ of the speed", re.IGNORECASE
)


def spread_out(folder: Path, spread: float) -> Path:
    """The run with step times whose interquartile range is `spread` of their median."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "step_time_s" in line:
            line["step_time_s"] *= (1, 1 - spread, 1 + spread, 1 - spread / 2, 1 + spread / 2)[line["iteration"] % 5]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def compare(*groups: list[Path], force: bool = False) -> tuple[Comparison, dict]:
    loaded = [[loading.load(path) for path in paths] for paths in groups]
    return comparison.compare(loaded, force=force), comparison.named(loaded)


def everything_said(result: Comparison, runs: dict, folder: Path, capsys) -> dict[str, str]:
    """What each rendering says besides the notes."""
    terminal.print_comparison(result)
    written = {path.name: path for path in report.write(result, runs, folder)}
    page = re.sub(r"<(style|svg)[\s\S]*?</\1>", "", written["report.html"].read_text())
    return {
        "verdict": result.verdict,
        "terminal": capsys.readouterr().out,
        "page": page,
        "markdown": written["comparison.md"].read_text(),
        "csv": written["comparison.csv"].read_text(),
        "json": json.dumps(json.loads(written["comparison.json"].read_text())["contrasts"]),
        "pictures": " ".join(path.name for path in (folder / "plots").iterdir()),
    }


@pytest.mark.parametrize(("precision", "arithmetic"), [("nvfp4", "native"), ("nvfp4", "emulated"), ("bf16", "native")])
@pytest.mark.parametrize("which", ["A", "B", "both", "one of three"])
def test_unusable_step_times_give_no_ratio_anywhere(make_run, tmp_path, capsys, precision, arithmetic, which) -> None:
    repeats = 3 if which == "one of three" else 1
    old = [make_run("bf16", name=f"old{at}", step=0.2) for at in range(repeats)]
    new = [make_run(precision, name=f"new{at}", step=0.1, arithmetic=arithmetic) for at in range(repeats)]
    bad = {"A": old, "B": new, "both": [*old, *new], "one of three": new[1:2]}[which]
    for path in bad:
        spread_out(path, 0.6)
    result, runs = compare(old, new)
    assert result.contrasts[0].step_time is None
    named = {"A": "A", "B": "B", "both": "B, A", "one of three": "B2"}[which]
    assert result.verdict.startswith(f"Nothing is said of the speed of B: step times of {named} are unusable.")
    if (which, arithmetic) == ("B", "native") or "three" in which:  # a drawing takes a second
        for where, text in everything_said(result, runs, tmp_path / "report", capsys).items():
            assert not RATIO.search(text), (where, RATIO.search(text))
        assert "speed.png" not in (path.name for path in (tmp_path / "report" / "plots").iterdir())


@pytest.mark.parametrize(("spread", "usable"), [(0.1, True), (0.22, True), (0.28, False)])
def test_the_limit_of_the_ratio_is_that_of_the_note(make_run, spread: float, usable: bool) -> None:
    paths = make_run("bf16", step=0.2), spread_out(make_run("nvfp4", step=0.1), spread)
    result, _ = compare(*([path] for path in paths))
    times = result.arms[1].runs[0].step_times
    assert (times.spread <= model.UNUSABLE) is usable
    assert (result.contrasts[0].step_time is not None) is usable
    assert any("step times are unusable" in said for said in result.arms[1].runs[0].warnings) is not usable
    assert any(arm.unusable for arm in result.arms) is not usable


def test_of_three_arms_only_the_unusable_has_no_speed(make_run, capsys) -> None:
    paths = make_run("bf16", step=0.2), spread_out(make_run("fp8", step=0.15), 0.6), make_run("nvfp4", step=0.1)
    result, _ = compare(*([path] for path in paths))
    assert [contrast.step_time is None for contrast in result.contrasts] == [True, False]
    assert "Nothing is said of the speed of B: step times of B are unusable. " in result.verdict
    assert "NVFP4 is 2.00 times as fast as BF16" in result.verdict
    terminal.print_comparison(result)
    assert "0.500x" in (said := capsys.readouterr().out) and "0.750x" not in said


def a_log(folder: Path, name: str, scale: float) -> Path:
    """The iterations of a real log alone, which tell no precision, each `scale` times as long."""
    lines = [
        line
        for line in LOG.read_text().splitlines()
        if "elapsed time per iteration" in line or "[after training" in line
    ]
    longer = [
        re.sub(r"(iteration \(ms\): )([\d.]+)", lambda found: f"{found[1]}{1000 * scale}", line) for line in lines
    ]
    path = folder / name
    path.write_text("\n".join(longer) + "\n")
    return path


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (1 / 1.68, "B is 1.68 times as fast (0.60 of the step) (95 % interval 1.680 to 1.680, within this run only)"),
        (1.68, "B is slower, at 0.60 of the speed (1.68 times the step) (95 % interval"),
        (1.0, "No difference in speed is shown between B (unknown precision) and A (unknown precision): 1.00 times"),
    ],
)
def test_two_logs_of_unknown_precision_say_which_is_faster(tmp_path: Path, scale: float, words: str) -> None:
    result, _ = compare([a_log(tmp_path, "a.log", 1.0)], [a_log(tmp_path, "b.log", scale)], force=True)
    assert {arm.precision for arm in result.arms} == {"unknown precision"}
    assert words in result.verdict
    ratio = result.contrasts[0].step_time
    assert ratio.what == "speed ratio" and ratio.figure.value == pytest.approx(1 / scale)
