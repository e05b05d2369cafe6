"""`make gate`: which changes of which figures make it fail."""

import json
from pathlib import Path

import pytest

from playbook.cli import entry
from playbook.compare import comparison, gate, saved
from playbook.record import loading


@pytest.fixture
def compared(make_run, tmp_path: Path):
    """`compared("name", step=0.1)` writes a comparison of two runs, NVFP4 being so; gives its folder.

    With `losses`, of as many runs each, a seed a loss.
    """

    def make(name: str, *, losses=(1.0,), both=None, **nvfp4) -> Path:
        groups = [[], []]
        for at, loss in enumerate(losses):
            own = (both or {}) | {"parity": (both or {}).get("parity", {}) | {"seed": 1234 + at}}
            groups[0].append(loading.load(make_run("bf16", name=f"{name}-bf16-{at}", **own)))
            own |= nvfp4 | {"loss": loss, "validation": nvfp4.get("validation", 2.4 * loss)}
            groups[1].append(loading.load(make_run("nvfp4", name=f"{name}-nvfp4-{at}", **own)))
        result = comparison.compare(groups)
        return saved.write(result, tmp_path / "runs" / name / "comparison.json").parent

    return make


def said(capsys, *arguments: object) -> tuple[int, str]:
    code = entry.run("gate", lambda: gate.main([str(argument) for argument in arguments]))
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_the_same_figures_pass(compared, capsys) -> None:
    code, text = said(capsys, compared("old"), "--current", compared("new"))
    assert code == 0
    assert "Within tolerance: 4 of 4 figures." in text and "Losses are not held" in text


@pytest.mark.parametrize(
    ("change", "figure", "verdict"),
    [
        ({"step": 0.21}, "step time", "WORSE"),
        ({"step": 0.19}, "step time", "BETTER"),
        ({"outcome": {"peak_memory": {"bytes": 2_050_000_000, "kind": "torch allocated"}}}, "peak memory", "WORSE"),
    ],
)
def test_a_figure_outside_its_tolerance_fails_either_way(compared, capsys, change, figure: str, verdict: str) -> None:
    code, text = said(capsys, compared("old"), "--current", compared("new", **change))
    assert code == 1
    (line,) = [line for line in text.splitlines() if line.endswith(verdict)]
    assert line.startswith("B: nvfp4") and figure in line


@pytest.mark.parametrize(
    ("losses", "code", "verdict"),
    [
        ((1.0, 1.001, 0.999), 0, "ok"),
        ((1.02, 1.021, 1.019), 1, "WORSE"),
        ((0.98, 0.979, 0.981), 1, "BETTER"),
        ((1.02, 0.98, 1.03), 0, "not shown"),  # no three seeds tell this from nothing
    ],
)
def test_a_loss_is_held_over_seeds(compared, capsys, losses, code: int, verdict: str) -> None:
    old, new = compared("old", losses=(1.0, 1.0, 1.0)), compared("new", losses=losses)
    assert said(capsys, old, "--current", new)[0] == 0
    found, text = said(capsys, old, "--current", new, "--tolerance", "loss=0.5")
    lines = [line for line in text.splitlines() if line.startswith("B: nvfp4") and "training loss" in line]
    assert (found, len(lines)) == (code, 1) and lines[0].endswith(verdict) and "over seeds" in lines[0]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ({}, {}, "over the same 3 seeds or more, and bf16 has seeds 1234 then and 1234 now: make compare SEEDS="),
        ({"losses": (1, 1, 1)}, {"losses": (1, 1, 1, 1)}, "1234 1235 1236 then and 1234 1235 1236 1237 now"),
        ({"losses": (1, 1, 1), "both": {"parity": {"data": "mock"}}},) * 2 + ("trained on mock data",),
    ],
)
def test_a_loss_that_cannot_be_held_is_refused(compared, capsys, old, new, says: str) -> None:
    code, text = said(capsys, compared("old", **old), "--current", compared("new", **new), "--tolerance", "loss=1")
    assert code == 2 and says in " ".join(text.split())


@pytest.mark.parametrize("which", ["old", "new"])
def test_step_times_that_spread_too_far_are_no_pass_and_no_change(compared, capsys, which: str) -> None:
    both = {name: compared(name) for name in ("old", "new")}
    file = both[which] / "comparison.json"
    written = json.loads(file.read_text())
    times = written["arms"][1]["runs"][0]["step_times"]
    times["third_quartile"] = times["first_quartile"] + 0.26 * times["median"]
    file.write_text(json.dumps(written))
    code, text = said(capsys, both["old"], "--current", both["new"], "--tolerance", "speed=50")
    assert code == 1 and "1 of 4 figures" in text and "say nothing of speed" in text
    assert [line.split()[0] for line in text.splitlines() if line.endswith("UNUSABLE")] == ["B:"]
    assert "WORSE" not in text and "BETTER" not in text


def test_tolerances_are_stated(compared, capsys) -> None:
    old, new = compared("old"), compared("new", step=0.21)
    assert said(capsys, old, "--current", new, "--tolerance", "speed=6")[0] == 0
    assert said(capsys, old, "--current", new, "--tolerance", "speed=4")[0] == 1
    for wrong in ("sped=3", "speed=fast", "speed=-1", "speed=nan"):
        assert said(capsys, old, "--current", new, "--tolerance", wrong)[0] == 2


def test_the_newest_other_comparison_is_the_current_one(compared, capsys, tmp_path: Path) -> None:
    old = compared("old")
    code, text = said(capsys, old, "--runs", tmp_path / "runs")
    assert (code, "has no other comparison" in text) == (2, True)
    newer = compared("newer", step=0.25)
    path = newer / "comparison.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created": "2030-01-01T00:00:00Z"}))
    compared("older")
    code, text = said(capsys, old, "--runs", tmp_path / "runs")
    assert (code, f"current   {path}" in text) == (1, True)


def test_other_work_is_not_held_against_it_but_other_software_is(compared, capsys) -> None:
    old = compared("old")
    written = json.loads((old / "comparison.json").read_text())
    for arm in written["arms"]:
        arm["runs"][0]["facts"]["torch"] = "3.0"
    (old / "comparison.json").write_text(json.dumps(written))
    new = compared("new")
    assert said(capsys, old, "--current", new)[0] == 0
    for arm in written["arms"]:
        arm["runs"][0]["facts"]["global_batch_size"] = 64
    (old / "comparison.json").write_text(json.dumps(written))
    code, text = said(capsys, old, "--current", new)
    assert code == 2
    assert "global_batch_size 64 then and 32 now" in text


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda written: written["arms"][0]["runs"][0]["facts"].update(tuned=True),
            "tuned True then and not recorded now",
        ),
        (lambda written: written.update(forced=True), "forced is held against nothing"),
    ],
)
def test_what_only_one_of_them_has_is_seen(compared, capsys, edit, says: str) -> None:
    old = compared("old")
    written = json.loads((old / "comparison.json").read_text())
    edit(written)
    (old / "comparison.json").write_text(json.dumps(written))
    code, text = said(capsys, old, "--current", compared("new"))
    assert code == 2 and says in text


def test_a_baseline_may_be_cut_to_what_is_to_be_held(compared, capsys) -> None:
    file = compared("old") / "comparison.json"
    written = json.loads(file.read_text())
    for arm in written["arms"]:
        for figure in ("peak_memory", "peak_memory_kind", *(() if arm["name"] == "B" else ("step_time",))):
            del arm[figure]
        arm["runs"] = [{"facts": run["facts"], "step_times": {"median": 0.2}} for run in arm["runs"]]
    written["arms"][1]["step_time"] = {"value": written["arms"][1]["step_time"]["value"]}
    file.write_text(json.dumps(written))
    more = {"outcome": {"peak_memory": {"bytes": 9_000_000_000, "kind": "torch allocated"}}}
    code, text = said(capsys, file, "--current", compared("same", **more))
    assert code == 0 and "Within tolerance: 1 of 1 figures." in text and "200 -> 200 ms" in text
    code, text = said(capsys, file, "--current", compared("slow", step=0.21))
    assert code == 1 and "1 of 1 figures left" in text


def test_a_figure_that_is_gone_is_no_pass(compared, capsys) -> None:
    old, new = compared("old"), compared("new")
    written = json.loads((new / "comparison.json").read_text())
    for arm in written["arms"]:
        arm["peak_memory"] = None
    (new / "comparison.json").write_text(json.dumps(written))
    code, text = said(capsys, old, "--current", new)
    assert code == 2 and "has a peak memory, and the comparison held against it none" in text


def test_an_emulator_is_not_held_against_another(compared, capsys) -> None:
    facts = {"name": "nvfp4", "arithmetic": "emulated", "bf16_head_layers": 0, "bf16_tail_layers": 1}
    triton, again, reference, unknown = (
        compared(name, environment={"precision": facts | emulator})
        for name, emulator in (
            ("triton", {"emulator": "triton"}), ("again", {"emulator": "triton"}),
            ("reference", {"emulator": "reference"}), ("unknown", {}),
        )
    )  # fmt: skip
    assert said(capsys, triton, "--current", again)[0] == 0
    chosen = compared(
        "chosen", environment={"precision": facts | {"ingredients": {"rht": True, "four_over_six": "all"}}}
    )
    assert said(capsys, chosen, "--current", chosen)[0] == 0
    for other, label in ((reference, "reference-emulated"), (unknown, "emulated")):
        assert said(capsys, triton, "--current", other) == (
            2,
            "gate: the baseline has nvfp4, triton-emulated, and the comparison held against it only bf16, "
            f"nvfp4, {label}\n",
        )
    written = json.loads((unknown / "comparison.json").read_text())
    for arm in written["arms"]:
        del arm["emulator"]  # as comparisons were before it was recorded
    (unknown / "comparison.json").write_text(json.dumps(written))
    assert said(capsys, unknown, "--current", unknown)[0] == 0
    assert said(capsys, unknown, "--current", triton)[0] == 0


def test_an_arm_that_is_gone_is_said(compared, capsys) -> None:
    old = compared("old")
    written = json.loads((old / "comparison.json").read_text())
    written["arms"][1]["precision"] = "mxfp8"
    (old / "comparison.json").write_text(json.dumps(written))
    assert said(capsys, old, "--current", compared("new")) == (
        2, "gate: the baseline has mxfp8, and the comparison held against it only bf16, nvfp4\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"), ("", "cannot read"), ("{}", "not a comparison of this playbook"),
        ('{"kind": "nvfp4-playbook-comparison", "schema": 1}', "by an earlier playbook"),
        ('{"kind": "nvfp4-playbook-comparison", "schema": 9}', "by a newer playbook: update this one"),
        ('{"kind": "nvfp4-playbook-comparison", "schema": 2}', "was it edited?"),
    ],
)  # fmt: skip
def test_a_baseline_that_is_none(compared, capsys, tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "comparison.json"
    if content is not None:
        path.write_text(content)
    code, text = said(capsys, path, "--current", compared("new"))
    assert (code, len(text.splitlines())) == (2, 1)
    assert says in text
