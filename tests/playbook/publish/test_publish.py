"""`make results`: what is published follows from the records, byte for byte, and runs are published by one command."""

import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from playbook.campaign import ablation_file
from playbook.cli.make import command as make
from playbook.common.failures import Failure
from playbook.compare import comparison, saved
from playbook.profile import breakdown
from playbook.publish import publish
from playbook.record import loading
from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe, words_in

INDEX = publish.RESULTS / "README.md"
MARK = re.compile(r"(<!-- results: \S+ -->\n).*?(<!-- end of results -->)", re.DOTALL)


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    """What is committed: the records, what was made from them, and the pages."""
    folder = tmp_path / "copy"
    shutil.copytree(project / publish.RESULTS, folder / publish.RESULTS)
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A project that has published nothing."""
    folder = tmp_path / "empty"
    (folder / publish.RESULTS).mkdir(parents=True)
    (folder / INDEX).write_text("before\n<!-- results: all -->\n<!-- end of results -->\nafter\n")
    return folder


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_committed_is_what_its_records_make(copy: Path) -> None:
    committed = files(copy)
    made = [*copy.rglob(saved.FILE), *copy.rglob("*.svg")]
    assert made
    for path in made:
        path.unlink()
    for page in publish.pages_of(copy):
        page.write_text(MARK.sub(r"\1\2", page.read_text()))
    publish.rebuild(copy)
    assert files(copy) == committed
    assert publish.rebuild(copy) == []


def test_what_is_made_says_no_path_and_no_clock(copy: Path, project: Path) -> None:
    for path in [*copy.rglob(saved.FILE), *copy.rglob("*.svg")]:
        text = path.read_text()
        assert str(project) not in text and str(copy) not in text and "<metadata>" not in text
    for path in copy.rglob(saved.FILE):
        written = json.loads(path.read_text())
        runs = {child.name: child for child in path.parent.iterdir() if child.is_dir()}
        assert {run["path"] for arm in written["arms"] for run in arm["runs"]} < set(runs)
        assert written["created"] in {run_folder.read_facts(runs[run["path"]]).outcome["ended"]
                                      for arm in written["arms"] for run in arm["runs"]}  # fmt: skip


def test_another_record_makes_other_tables_and_pictures(copy: Path) -> None:
    before = files(copy)
    folder = copy / publish.RESULTS / "h200-llama3-8b-8-layers"
    metrics = sorted(folder.glob(f"*/{run_folder.METRICS}.gz"))[0]
    lines = [json.loads(text) for text in gzip.decompress(metrics.read_bytes()).splitlines()]
    for line in lines:  # twice as slow by every clock
        line["time"] *= 2
        line |= {"step_time_s": 2 * line["step_time_s"]} if "step_time_s" in line else {}
    metrics.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    (folder / publish.PICTURES / "of-yesterday.svg").write_text("<svg/>")
    publish.rebuild(copy)
    after = files(copy)
    changed = {path for path in after if after[path] != before.get(path)}
    name = folder.relative_to(copy)
    assert {name / "README.md", INDEX, name / saved.FILE, name / publish.PICTURES / "step-times.svg"} <= changed
    assert not (folder / publish.PICTURES / "of-yesterday.svg").exists()


def test_runs_are_published_by_their_comparison(empty: Path, make_run, tmp_path: Path) -> None:
    pair = [make_run("bf16", environment={"host": "node17"}), make_run("nvfp4", step=0.1)]
    groups = [[loading.load(path)] for path in pair]
    result = comparison.compare(groups, reproduce="make compare ITERS=60 GBS=8")
    saved.write(result, tmp_path / "compared" / saved.FILE)
    added = publish.add(empty, [tmp_path / "compared"], "gb300-tiny")
    folder = empty / publish.RESULTS / "gb300-tiny"
    assert added == [folder / "bf16", folder / "nvfp4"]
    assert json.loads((folder / publish.ABOUT).read_text()) == {"command": "make compare ITERS=60 GBS=8"}
    publish.rebuild(empty)
    written = saved.read(folder)
    assert written["reproduce"] == "make compare ITERS=60 GBS=8" and "node17" not in json.dumps(written)
    assert written["contrasts"][0]["step_time"]["figure"]["value"] == pytest.approx(2.0, rel=1e-3)
    page = (empty / INDEX).read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "| gb300-tiny |" in page
    assert publish.add(empty, pair, "gb300-tiny") == []  # they are there
    assert publish.add(empty, [make_run("bf16", name="again", step=0.201)], "gb300-tiny") == [folder / "bf16-2"]
    publish.rebuild(empty)
    assert [len(arm["runs"]) for arm in saved.read(folder)["arms"]] == [2, 1]
    assert not [path for path in (empty / publish.RESULTS).iterdir() if path.name.startswith(".")]


def test_a_failed_run_is_listed_and_not_compared(empty: Path, make_run) -> None:
    memory = {"verdict": "out_of_memory", "cause": "CUDA out of memory on node17"}
    publish.add(empty, [make_run("bf16"), make_run("nvfp4", outcome=memory)], "one")
    publish.rebuild(empty)
    page = (empty / INDEX).read_text()
    assert "| 2 | nvfp4: out\\_of\\_memory; bf16: 200.0 ms (" in page
    assert not (empty / publish.RESULTS / "one" / saved.FILE).exists()


def test_a_run_by_itself_is_listed_with_its_figures(empty: Path, make_run) -> None:
    publish.add(empty, [make_run("bf16", step=0.2)], "one")
    publish.add(empty, [make_run("nvfp4", name="other", arithmetic="emulated", step=0.4)], "two")
    publish.rebuild(empty)
    native, emulated = [line for line in (empty / INDEX).read_text().splitlines() if line.startswith("| ")][-2:]
    assert re.search(r"\| 1 \| 200\.0 ms \(\d+\.\d to \d+\.\d\), .*MODEL\\_TFLOP/s/GPU \([\d.]+ to [\d.]+\) \|", native)
    assert "| 1 | 400.0 ms (" in emulated and "TFLOP" not in emulated


def test_a_resumed_run_says_where(empty: Path, make_run) -> None:
    publish.add(empty, [make_run("bf16", parity={"start_iteration": 19})], "one")
    publish.rebuild(empty)
    assert "| 1 | resumed at iteration 19, " in (empty / INDEX).read_text()


def test_a_run_on_a_shared_gpu_has_no_step_time(empty: Path, make_run) -> None:
    run = make_run("bf16", step=0.2)
    sample = {"device": 0, "used_bytes": 60 * 10**9, "process_bytes": 20 * 10**9, "power_w": 300.0}
    lines = [json.dumps({"time": 1000.0 + at, **sample}) + "\n" for at in range(20)]
    (run / "device.jsonl").write_text("".join(lines))
    publish.add(empty, [run], "one")
    publish.rebuild(empty)
    page = (empty / INDEX).read_text()
    assert "| 1 | shared its GPU: its losses count, its step times do not |" in page and "200.0 ms" not in page


def test_what_repeats_a_folder_stands_below_the_list(empty: Path, make_run) -> None:
    publish.add(empty, [make_run("bf16")], "one")
    publish.add(empty, [make_run("nvfp4", name="other")], "two")
    run_folder.write_json(empty / publish.RESULTS / "two" / publish.ABOUT, {"command": "make nvfp4 ITERS=60"})
    publish.rebuild(empty)
    assert "\n\nTo repeat them:\n\n    # two\n    make nvfp4 ITERS=60\n\n<!--" in (empty / INDEX).read_text()


def test_runs_that_were_copied_here_lie_beside_their_comparison(empty: Path, make_run, tmp_path: Path) -> None:
    pair = [make_run("bf16"), make_run("nvfp4", step=0.1)]
    result = comparison.compare([[loading.load(path)] for path in pair])
    saved.write(result, pair[0].parent / "compared" / saved.FILE)
    moved = pair[0].parent.rename(tmp_path / "copied here")
    folder = empty / publish.RESULTS / "one"
    assert publish.add(empty, [moved / "compared"], "one") == [folder / "bf16", folder / "nvfp4"]


def test_a_profile_is_shown_without_its_trace(empty: Path, make_run) -> None:
    run = make_run("bf16", environment={"profiled": [56, 60]})
    rows = [breakdown.Row("matrix products", 7.5, 4, "cutlass_gemm_a|b", 0.5), breakdown.Row(breakdown.IDLE, 2.5)]
    run_folder.write_json(run / run_folder.PROFILE, asdict(breakdown.Breakdown(10.0, 5, rows, on_gpu=True)))
    (run / run_folder.TRACE).write_bytes(b"large")
    (copied,) = publish.add(empty, [run], "profile")
    assert not (copied / run_folder.TRACE).exists()
    run_folder.write_json(copied.parent / publish.ABOUT, {"command": "make profile PRECISION=bf16"})
    page = empty / INDEX
    page.write_text(
        "<!-- results: profile -->\n<!-- end of results -->\n<!-- results: all -->\n<!-- end of results -->\n"
    )
    publish.rebuild(empty)
    told = page.read_text()
    assert "| matrix products | 7.50 | 75.0 | 4 | 50% cutlass\\_gemm\\_a\\|b |" in told
    assert "| a step, mean of 5 | 10.00 | 100.0 |" in told and "    make profile PRECISION=bf16\n" in told
    assert "profile: matrix products 75.0 %, idle: no kernel runs 25.0 %" in told


def test_a_measured_runs_step_times_are_not_listed(empty: Path, make_run) -> None:
    publish.add(empty, [make_run("nvfp4", environment={"measured": [57, 60]})], "measured")
    page = empty / INDEX
    page.write_text("<!-- results: all -->\n<!-- end of results -->\n")
    publish.rebuild(empty)
    (row,) = (line for line in page.read_text().splitlines() if line.startswith("| measured "))
    assert row.endswith("| measured in iterations 57 to 60: its step times are no measurement |")


def test_a_comparison_of_runs_that_are_no_longer_compared_goes(empty: Path, make_run) -> None:
    _, nvfp4 = publish.add(empty, [make_run("bf16"), make_run("nvfp4")], "one")
    publish.rebuild(empty)
    made = empty / publish.RESULTS / "one" / saved.FILE
    assert made.exists()
    shutil.rmtree(nvfp4)
    assert made in publish.rebuild(empty)
    assert not made.exists() and not list(made.parent.rglob("*.svg"))


def test_a_refusal_says_what_was_written(empty: Path, make_run, monkeypatch, capsys) -> None:
    monkeypatch.setattr(publish, "PROJECT", empty)
    pair = [make_run("bf16"), make_run("nvfp4")]
    other = make_run("nvfp4", name="other", parity={"seed": 2})
    assert publish.main(["--add", str(pair[0]), str(other), "--to", "one"]) == 1
    assert "Nothing was written." in capsys.readouterr().err
    assert publish.main(["--add", *map(str, pair), "--to", "one"]) == 0
    shutil.copytree(other, empty / publish.RESULTS / "one" / "other")
    assert publish.main(["--add", str(pair[0]), "--to", "two"]) == 1
    told = capsys.readouterr().err
    assert (empty / publish.RESULTS / "two" / "bf16").is_dir()
    assert "Added: assets/results/two/bf16" in told and "Nothing was written" not in told


def test_what_cannot_be_published_is_refused_and_nothing_is_written(empty: Path, make_run, tmp_path: Path) -> None:
    before = files(empty)
    bf16, other = make_run("bf16"), make_run("nvfp4", parity={"seed": 2})
    with pytest.raises(comparison.NotComparable):
        publish.add(empty, [bf16, other], "one")
    with pytest.raises(UsageError, match="has no outcome"):
        publish.add(empty, [make_run("bf16", name="running", outcome={"verdict": "incomplete"})], "one")
    with pytest.raises(UsageError, match="names no folder"):
        publish.add(empty, [bf16], "../one")
    with pytest.raises(UsageError, match="not a run folder"):
        publish.add(empty, [tmp_path / "nowhere"], "one")
    assert files(empty) == before and [path.name for path in (empty / publish.RESULTS).iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("<!-- results: no-such -->\n<!-- end of results -->\n", "holds nothing to show"),
        ("<!-- results: all -->\n", "has no <!-- end of results -->"),
    ],
)
def test_a_wrong_mark_is_told(empty: Path, mark: str, words: str) -> None:
    (empty / INDEX).write_text(mark)
    with pytest.raises(Failure, match=words):
        publish.rebuild(empty)
    assert (empty / INDEX).read_text() == mark


def test_an_ablation_is_published_whole_and_made_anew_from_its_runs(copy: Path, empty: Path) -> None:
    kept = copy / publish.RESULTS / "cpu-tiny-ablation"
    source = kept / "made-as-make-ablate-makes-it"  # beside its runs
    source.mkdir()
    wrong = json.loads((kept / ablation_file.FILE).read_text())
    gaps = [
        run["training_loss_gap"] and run["training_loss_gap"]["value"] for row in wrong["rows"] for run in row["runs"]
    ]
    for row in wrong["rows"]:
        row["gap"] = None
    (source / ablation_file.FILE).write_text(json.dumps(wrong))
    added = publish.add(empty, [source], "tiny")
    assert len(added) == 14 and all(path.is_dir() for path in added)
    with pytest.raises(UsageError, match="by itself"):
        publish.add(empty, [source], "tiny")
    publish.rebuild(empty)
    made = json.loads((empty / publish.RESULTS / "tiny" / ablation_file.FILE).read_text())
    assert [
        run["training_loss_gap"] and run["training_loss_gap"]["value"] for row in made["rows"] for run in row["runs"]
    ] == gaps
    names = ["BF16", "whole", "rht=off", "stochastic=off", "weights=1x16", "tail=0", "tail=2"]
    assert [row["name"] for row in made["rows"]] == names
    assert made["reproduce"] == "make ablate SEEDS='1234 1235'"
    assert (
        made["rows"][1]["gap"]["value"] == pytest.approx(0.635, abs=0.001) and "| tiny |" in (empty / INDEX).read_text()
    )
    for row in made["rows"]:
        for run in row["runs"]:
            facts = run_folder.read_facts(empty / publish.RESULTS / "tiny" / run["run"])
            ingredients = Nvfp4Recipe.of(words_in(row["recipe"])).facts()
            assert facts.parity["seed"] == run["seed"]
            assert facts.precision.get("ingredients", ingredients) == ingredients
            assert facts.precision["bf16_tail_layers"] == (row["bf16_tail_layers"] or 0)


def test_an_ablation_says_nothing_but_what_its_clean_runs_do(copy: Path, empty: Path) -> None:
    kept = copy / publish.RESULTS / "cpu-tiny-ablation"
    source = kept / "made"
    source.mkdir()
    said = json.loads((kept / ablation_file.FILE).read_text())
    said |= {"data": "/data/alice/corpus", "device": "node17", "reproduce": "make ablate ON=node17 DATA=/data/alice/x"}
    said["rows"][1]["runs"][0]["problem"] = "failed: node17"
    failed = kept / said["rows"][-1]["runs"][0]["run"]
    for name, more in [
        (run_folder.ENVIRONMENT, {"host": "node17"}),
        (run_folder.OUTCOME, {"verdict": "failed", "cause": "rank 9 on node18: /data/alice/x is not there"}),
    ]:
        run_folder.write_json(failed / name, json.loads((failed / name).read_text()) | more)
    (source / ablation_file.FILE).write_text(json.dumps(said))
    publish.add(empty, [source], "tiny")
    publish.rebuild(empty)
    made = empty / publish.RESULTS / "tiny" / ablation_file.FILE
    text = "".join(path.read_text() for path in (made, made.parent / publish.ABOUT))
    assert not [word for word in ("node17", "node18", "alice") if word in text]
    assert json.loads(made.read_text())["reproduce"] == ""
    assert '"failed"' in text
    assert made not in publish.rebuild(empty)


def test_what_repeats_each_folder_would_run(project: Path) -> None:
    commands = {}
    for folder in sorted((project / publish.RESULTS).glob("*/")):
        said = publish.read(folder).command
        assert said, f"{folder.name} does not say what made it"
        commands[folder.name] = re.sub(r"^(NVTE_\w+=\S+ )*", "", said.partition(", ")[0])
    for name, command in commands.items():
        if not command.startswith("make "):
            continue
        # As it would be in a container, which needs no GPU to be planned.
        _, target, *given = [*shlex.split(command), "RUNTIME=container", "DRY_RUN=1"]
        (work,) = make.plan([target], dict(word.split("=", 1) for word in given))
        words = [sys.executable, *work.commands[-1][1:]]
        ended = subprocess.run(words, cwd=project, text=True, capture_output=True, check=False)
        assert ended.returncode == 0, f"{name}: {command}\n{ended.stdout}{ended.stderr}"
