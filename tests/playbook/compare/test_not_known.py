"""Facts that neither log tells are not equal: the comparison says so first, and judges no losses."""

import json
import re
from pathlib import Path

import pytest

from playbook import report
from playbook.compare import comparison
from playbook.compare.comparison import NotComparable
from playbook.compare.parity import MUST_BE_KNOWN
from playbook.record import loading
from playbook.report import terminal

LOG = (Path(__file__).parents[2] / "logs" / "h200-fp8-0.4.0.log").read_text()
REAL_DATA = LOG.replace("Building MockGPT", "Building GPT")
LINES = "".join(
    line for line in LOG.splitlines(keepends=True) if "elapsed time per iteration" in line or "[after tr" in line
)
WITH_FILES = REAL_DATA.replace("  random_seed: ", "  blend: (['/data/text_document'], None)\n  random_seed: ")
WITHOUT = {
    "seed": re.sub(r"\[rng\][^\[]*", "", WITH_FILES),
    "learning_rate": re.sub(r"\n  lr: .*", "", WITH_FILES),
    "data": REAL_DATA,
}


def compare(folder: Path, a: str, b: str, *, force: bool = False):
    """Two logs with these texts, the second a little slower."""
    (folder / "a.log").write_text(a)
    slower = re.sub(r"(iteration \(ms\): )([\d.]+)", lambda found: f"{found[1]}{1.004 * float(found[2]):.1f}", b)
    (folder / "b.log").write_text(slower)
    runs = {name: [loading.load(folder / f"{name.lower()}.log")] for name in "AB"}
    return comparison.compare(list(runs.values()), force=force), runs


def test_all_that_must_be_known_is_of_a_log_that_is_whole(tmp_path: Path) -> None:
    result, _ = compare(tmp_path, WITH_FILES, WITH_FILES)
    assert (result.doubt, result.not_known) == ("", [])
    assert "No difference in training loss" in result.verdict or "The training loss of" in result.verdict


@pytest.mark.parametrize("missing", WITHOUT)
@pytest.mark.parametrize("of_both", [True, False])
def test_one_fact_that_is_not_known_is_said_first(tmp_path: Path, missing: str, of_both: bool) -> None:
    result, _ = compare(tmp_path, WITHOUT[missing], WITHOUT[missing] if of_both else WITH_FILES)
    assert result.verdict.startswith(f"Whether these runs did the same work is not known. Not checked: {missing}. ")
    assert result.not_known == [missing] and missing in result.unchecked
    assert "training loss" not in result.verdict and result.contrasts[0].equal_loss is None


@pytest.mark.parametrize("of_both", [True, False])
def test_logs_that_give_only_some_sizes_of_their_models_are_refused(tmp_path: Path, of_both: bool) -> None:
    cut = re.sub(r"\n  (hidden_size|ffn_hidden_size): .*", "", WITH_FILES)
    with pytest.raises(NotComparable) as refusal:
        compare(tmp_path, cut, cut if of_both else WITH_FILES)
    other = "hidden_size, ffn_hidden_size not in the log" if of_both else "known"
    said = f"settings: A hidden_size, ffn_hidden_size not in the log, B {other}"
    assert [str(found) for found in refusal.value.differences] == [said]
    forced, _ = compare(tmp_path, cut, cut if of_both else WITH_FILES, force=True)
    assert "not known. Not checked: hidden_size, ffn_hidden_size." in forced.verdict
    assert "training loss" not in forced.verdict


def test_without_settings_they_are_refused_and_forced_say_so_everywhere(tmp_path: Path, capsys) -> None:
    with pytest.raises(NotComparable) as refusal:
        compare(tmp_path, LINES, LINES)
    assert [str(found) for found in refusal.value.differences] == ["settings: A not in the log, B not in the log"]
    result, runs = compare(tmp_path, LINES, LINES, force=True)
    names = ", ".join(name for name in MUST_BE_KNOWN if name != "global_batch_size")  # which each iteration tells
    words = f"whether these runs did the same work is not known. Not checked: all settings ({names})."
    terminal.print_comparison(result)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(f"FORCED: {words}")
    report.write(result, runs, tmp_path / "report")
    said = {path.name: path.read_text() for path in (tmp_path / "report").iterdir() if path.suffix in (".md", ".html")}
    assert len(said) == 2
    for text in (*said.values(), json.dumps(result.verdict)):
        assert words in text.replace("\\_", "_").replace("\\(", "(").replace("\\)", ")")
    for text in (*said.values(), printed, result.verdict):
        assert "same tokens" not in text and "No difference in training loss" not in text
