"""`make compare`: which finished runs it reuses, and what ends it. The training script is a stand-in."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from playbook.cli import train
from pretraining.errors import UsageError
from pretraining.record import code_state, run_folder


def reused(said: str) -> dict[str, str]:
    """Precision to run folder."""
    return dict(re.findall(r"^(\w+): reusing (\S+) \(FRESH=1 trains again\)$", said, re.MULTILINE))


def folders(runs: Path, precision: str) -> list[str]:
    return sorted(path.name for path in runs.glob(f"*-{precision}-tiny"))


def test_compare_trains_both_and_then_neither(job, runs: Path) -> None:
    said, _ = job("compare")
    assert reused(said) == {} and len(folders(runs, "bf16")) == len(folders(runs, "nvfp4")) == 1
    (written,) = runs.glob("*-comparison-tiny/comparison.json")
    assert json.loads(written.read_text())
    assert said.index("\nnvfp4:") > said.index("bf16:")
    assert "Written:" in said and str(written) in said
    said, _ = job("compare")
    assert reused(said) == {"bf16": folders(runs, "bf16")[0], "nvfp4": folders(runs, "nvfp4")[0]}
    assert len(folders(runs, "bf16")) == len(folders(runs, "nvfp4")) == 1


def test_fresh_trains_both_again(job, runs: Path) -> None:
    job("compare")
    said, _ = job("compare", "--fresh")
    assert reused(said) == {} and len(folders(runs, "bf16")) == len(folders(runs, "nvfp4")) == 2
    said, _ = job("compare")
    assert reused(said) == {"bf16": folders(runs, "bf16")[1], "nvfp4": folders(runs, "nvfp4")[1]}  # the newest


def test_a_finished_run_is_compared_with_a_new_one(job, runs: Path) -> None:
    job("bf16")
    said, _ = job("compare")
    assert set(reused(said)) == {"bf16"} and len(folders(runs, "nvfp4")) == 1


@pytest.mark.parametrize(
    "flags",
    [
        ("--seed", "7"), ("--train-iters", "41"), ("--global-batch-size", "16"), ("--seq-length", "64"),
        ("--micro-batch-size", "8"), ("--data", "mock"), ("--warmup-iters", "1"), ("--nproc", "2"),
    ],
)  # fmt: skip
def test_other_work_is_not_reused(job, runs: Path, flags: tuple[str, ...]) -> None:
    job("compare")
    job("compare", *flags, "--dry-run")  # it is a request that can be
    for precision in ("bf16", "nvfp4"):
        plan = run_folder.read_run(runs / folders(runs, precision)[0]).plan
        assert plan["request"]["precision"] == precision
    if "--nproc" not in flags:  # the stand-in is one process
        assert reused(job("compare", *flags)[0]) == {}


def test_nvfp4_in_another_recipe_is_not_reused(job) -> None:
    job("compare")
    assert set(reused(job("compare", NVFP4_RHT="0")[0])) <= {"bf16"}
    assert set(reused(job("compare", "--bf16-tail-layers", "2")[0])) == {"bf16"}


def written(runs: Path) -> dict:
    """The newest comparison."""
    return json.loads(max(runs.glob("*-comparison-tiny/comparison.json")).read_text())


def test_repeats_take_turns_and_go_on_at_the_run_that_is_missing(job, runs: Path) -> None:
    said, _ = job("compare", "--repeat", "2")
    assert re.findall(r"^run (\d) of 4, ([AB]):\n(\w+):", said, re.MULTILINE) == [
        ("1", "A", "bf16"), ("2", "B", "nvfp4"), ("3", "B", "nvfp4"), ("4", "A", "bf16"),
    ]  # fmt: skip
    shutil.rmtree(runs / folders(runs, "bf16")[1])
    said, _ = job("compare", "--repeat", "2")
    assert said.count(": reusing ") == 3 and len(re.findall(r"^run \d of 4, A:\n", said, re.MULTILINE)) == 1
    arms = written(runs)["arms"]
    assert [[Path(run["path"]).name for run in arm["runs"]] for arm in arms] == [
        folders(runs, "bf16"), folders(runs, "nvfp4"),
    ]  # fmt: skip


def test_seeds_are_the_repeats_of_a_loss(job, runs: Path) -> None:
    gaps = {"bf16": 0.0, "nvfp4": 0.01}
    losses = json.dumps(
        {f"{name} {seed}": 1 + seed / 10 + gap * seed for name, gap in gaps.items() for seed in (1, 2, 3)}
    )
    said, _ = job("compare", "--seeds", "1 2 3", "--loss-margin", "0.5", FAKE_LOSS=losses)
    assert re.findall(r"^run (\d) of 6, ([AB]), seed (\d):", said, re.MULTILINE) == [
        ("1", "A", "1"), ("2", "B", "1"), ("3", "B", "2"), ("4", "A", "2"), ("5", "A", "3"), ("6", "B", "3"),
    ]  # fmt: skip
    (contrast,) = written(runs)["contrasts"]
    assert contrast["gap_by_seed"] == pytest.approx({"1": 100 / 110, "2": 200 / 120, "3": 300 / 130})
    gap = contrast["training_loss_gap"]
    assert gap["spread"] == "95 % t-interval over 3 seeds" and gap["low"] < 0 < gap["value"] < gap["high"]
    assert contrast["loss_differs"] is contrast["loss_within_margin"] is False
    text = " ".join(said.split())
    assert "No difference in training loss is shown" in text and "They are not shown to be equal within 0.5 %" in text
    assert contrast["step_time"]["figure"]["spread"] == "95 % t-interval over 3 repeats"
    said, _ = job("compare", "--seeds", "3,1", FAKE_LOSS=losses)  # two of them, in another order
    assert said.count(": reusing ") == 4 and "no verdict: 2 seeds, how seeds differ is unknown" in " ".join(
        said.split()
    )


def test_the_control_is_two_runs_of_one_precision(job, runs: Path) -> None:
    job("compare", "--a", "bf16", "--b", "bf16", "--typed", "make compare A=bf16 B=bf16", NVFP4_RHT="1")
    assert len(folders(runs, "bf16")) == 2 and not folders(runs, "nvfp4")
    said, _ = job("compare", "--a", "bf16", "--b", "bf16", "--typed", "make compare A=bf16 B=bf16", NVFP4_RHT="1")
    assert re.findall("reusing (\\S+)", said) == folders(runs, "bf16")
    assert "No difference in speed" in said
    found = written(runs)
    assert [Path(arm["runs"][0]["path"]).name for arm in found["arms"]] == folders(runs, "bf16")
    assert found["contrasts"][0]["step_time"]["differs"] is False
    assert found["reproduce"] == "NVFP4_RHT=1 make compare A=bf16 B=bf16"


def test_a_fresh_comparison_that_was_cut_short_goes_on(job, runs: Path) -> None:
    job("compare")
    job("compare", "--fresh", FAKE="diverged", FAKE_ONLY="nvfp4", code=1)
    assert len(folders(runs, "bf16")) == 2
    (begun,) = runs.glob("*/repeats.json")
    said, _ = job("compare", "--fresh")
    assert f"going on with {begun.parent.name}: 1 of 2 runs are done" in said
    assert len(folders(runs, "bf16")) == 2 and not begun.exists()
    assert (begun.parent / "comparison.json").exists()
    said, _ = job("compare", "--fresh")  # that one is written: this is another
    assert "going on" not in said and len(folders(runs, "bf16")) == 3


@pytest.mark.parametrize("how", ["diverged", "killed", "early"])
def test_an_unsuccessful_run_is_not_reused(job, runs: Path, how: str) -> None:
    _, errors = job("compare", FAKE=how, code=1)
    assert "bf16: " in errors and not folders(runs, "nvfp4")  # the second is not even begun
    assert reused(job("compare")[0]) == {}


def test_an_incomplete_or_damaged_run_is_not_reused(job, runs: Path) -> None:
    job("compare")
    (runs / folders(runs, "bf16")[0] / run_folder.OUTCOME).unlink()
    (runs / folders(runs, "nvfp4")[0] / run_folder.ENVIRONMENT).write_text("{")
    assert reused(job("compare")[0]) == {}


@pytest.mark.parametrize("content", ['{"verdict": "of another time"}', "[]", '"words"', "{}", ""])
def test_a_folder_that_is_none_of_ours_is_no_hindrance(job, runs: Path, content: str) -> None:
    job("compare")
    shutil.copytree(runs / folders(runs, "bf16")[0], runs / "99999999T000000Z-bf16-tiny")
    (runs / "99999999T000000Z-bf16-tiny" / run_folder.OUTCOME).write_text(content)
    assert set(reused(job("compare")[0])) == {"bf16", "nvfp4"}


def lines_of_reuse(said: str) -> list[str]:
    return re.findall(r"^\w+: (reusing .*)$", said, re.MULTILINE)


def test_a_run_of_another_state_of_the_code_is_reused_and_said_and_listed(job, runs: Path) -> None:
    job("bf16", FAKE_CODE="000000000001")
    job("compare", FAKE_CODE="000000000001")
    theirs, now = "whose code was 000000000001 (commit ", code_state.digest()
    said, _ = job("compare")
    for line, precision in zip(lines_of_reuse(said), ("bf16", "nvfp4"), strict=True):
        assert line.startswith(f"reusing {folders(runs, precision)[0]}, {theirs}")
        assert line.endswith(f") and is now {now} (FRESH=1 trains again)")
    assert [found for found in written(runs)["differences"] if found["name"] == "code"] == []
    job("nvfp4")  # of this state: it comes first, and the comparison lists how the two differ
    said, _ = job("compare")
    assert [theirs in line for line in lines_of_reuse(said)] == [True, False]
    assert folders(runs, "nvfp4")[1] in said
    (found,) = [found for found in written(runs)["differences"] if found["name"] == "code"]
    assert found["a"].startswith("000000000001 (commit ") and found["b"].startswith(now) and not found["void"]
    assert f"code: A {found['a']}, B {found['b']}; it does not void the comparison" in " ".join(said.split())


def test_a_record_from_before_the_state_was_kept_is_still_compared(job, runs: Path) -> None:
    job("compare")
    old = runs / folders(runs, "bf16")[0] / run_folder.ENVIRONMENT
    content = json.loads(old.read_text())
    old.write_text(json.dumps({**content, "context": {}}))
    said, _ = job("compare")
    assert "whose code is not recorded (commit " in lines_of_reuse(said)[0]
    assert "code" not in lines_of_reuse(said)[1]
    assert [found for found in written(runs)["differences"] if found["name"] == "code"] == []


def test_runs_of_this_state_of_the_code_come_before_newer_ones(job, runs: Path) -> None:
    job("compare")
    job("compare", "--fresh", FAKE_CODE="000000000001")
    assert reused(job("compare")[0]) == {name: folders(runs, name)[0] for name in ("bf16", "nvfp4")}


def test_of_runs_on_two_machines_the_pair_that_can_be_compared(job, runs: Path) -> None:
    job("compare", FAKE_DEVICE="first")
    job("bf16", FAKE_DEVICE="second")
    said, _ = job("compare")
    assert reused(said) == {"bf16": folders(runs, "bf16")[0], "nvfp4": folders(runs, "nvfp4")[0]}


def test_two_runs_that_cannot_be_compared_are_refused(job) -> None:
    job("bf16", FAKE_DEVICE="first")
    _, errors = job("compare", FAKE_DEVICE="second", code=1)
    assert "device" in errors and "FRESH=1 trains all of them again." in errors
    assert "FORCE=1 compares them all the same; the result will say so." in errors
    assert job("compare", "--force", FAKE_DEVICE="second")[0].count("FORCED: ") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("compare", "--run-dir", "x"), "compare makes two runs, so it takes no --run-dir"),
        (("nvfp4", "--precision", "bf16"), "make nvfp4 trains in nvfp4: make train PRECISION=bf16 is the other"),
        (("nvfp4", "--disable-fp4"), "make nvfp4 trains in nvfp4: make train PRECISION=bf16"),
        (("bf16", "--precision", "nvfp4"), "make bf16 trains in bf16: make train PRECISION=nvfp4 is the other"),
        (("compare", "--precision", "bf16"), "make compare takes no PRECISION=bf16"),
        (("compare", "--precision", "fp8", "--b", "nvfp4"), "PRECISION=fp8 and B=nvfp4 both name the second side"),
        (("nvfp4", "--gpu", "9", "--runtime", "cpu"), "GPU=9: the CPU runtime uses no GPU"),
        (("nvfp4", "--tag", "!!", "--runtime", "cpu"), "TAG=!! is the image of a container"),
        (("nvfp4", "--tag", "!!", "--runtime", "container", "--dry-run"), "TAG=!! is neither a tag of"),
        (("profile", "--run", "nope"), "RUN=nope is no run folder"),
        (("sensitivity", "--run", "nope"), "RUN=nope: nope is not a run folder"),
        (("sensitivity", "--budget", "much"), "BUDGET=much: it is a share of the linear layers' compute"),
        (("sensitivity", "--precision", "bf16"), "measures NVFP4's rounding, and bf16 has none"),
        (("nvfp4", "--nproc", "0"), "NPROC=0: at least one process is needed"),
        (("compare", "--seeds", "1 1"), "SEEDS=1 1: one seed or more is needed, none below 0 and none twice"),
        (("compare", "--seeds", "1 2", "--repeat", "2"), "SEEDS= are the repeats of a comparison"),
        (("compare", "--seeds", "1 2", "--seed", "2"), "SEEDS= are the repeats of a comparison"),
        (("compare", "--loss-margin", "-1"), "LOSS_MARGIN=-1: a percentage above 0 is needed"),
        (("nvfp4", "--loss-margin", "1"), "LOSS_MARGIN= is of make compare"),
        (("compare", "--repeat", "0"), "REPEAT=0: at least one run of each is needed"),
        (("compare", "--b", "nvfp5"), "unknown precision 'nvfp5': did you mean nvfp4?"),
        (("nvfp4", "--a", "bf16"), "A= and B= are the two sides of make compare"),
        (("nvfp4", "--runtime", "gpu"), "RUNTIME=gpu is not one of auto, "),
        (("nvfp4", "--model", "llama31-8b"), "llama31-8b needs a GPU and none was found"),
        (("nvfp4", "--trian-iters", "5"), "did you mean --train-iters?"),
        (("train", "--precision", "bf16", "--emulate"), "--emulate is for nvfp4 and does nothing for bf16"),
        (("compare", "--a", "bf16", "--b", "bf16", "--emulate"), "does nothing for bf16 and bf16"),
        (("nvfp5",), "invalid choice: 'nvfp5'"),
    ],
)
def test_wrong_usage_is_one_line_and_makes_no_folder(job, runs: Path, flags: tuple[str, ...], words: str) -> None:
    said, errors = job(*flags, code=2)
    assert words in errors and errors.startswith("run: ") and errors.count("\n") == 1 and said == ""
    assert not runs.exists() or not list(runs.iterdir())


def test_an_override_after_names_is_none_of_them() -> None:
    given = train.parser("run.py").parse_args(["--checkpoints", "a", "lr=3", "optimizer.lr=1", "optimizer.lr=2"])
    assert (given.checkpoints, given.overrides) == (["a", "lr=3"], ["optimizer.lr=1", "optimizer.lr=2"])


def test_a_run_folder_by_name(job, tmp_path: Path) -> None:
    job("bf16", "--run-dir", str(tmp_path / "mine"))
    assert run_folder.read_run(tmp_path / "mine").verdict is run_folder.Verdict.SUCCEEDED


def test_a_measured_run_is_shown_again_and_takes_nothing_else(tmp_path: Path, capsys) -> None:
    product = {"error": 0.1, "operands": {}}
    cell = {
        "layer": 0,
        "projection": "qkv",
        "parameters": 4,
        "gradient_over_noise": 10.0,
        "products": {"fprop": product},
    }
    whole = {
        "kind": run_folder.SENSITIVITY_KIND,
        "model": "tiny",
        "mock_data": True,
        "iterations": [1, 2],
        "gradient_over_noise": 10.0,
    }
    run_folder.write_json(tmp_path / run_folder.SENSITIVITY, {**whole, "recipe": {}, "layers": [cell]})
    assert train.run(["sensitivity", "--run", str(tmp_path)]) == 0 and "On mock data" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [run_folder.SENSITIVITY]
    with pytest.raises(UsageError, match="shown again, for another BUDGET= perhaps: --train-iters does nothing for it"):
        train.run(["sensitivity", "--run", str(tmp_path), "--train-iters", "3"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("sensitivity",), {"kept in BF16": "D", "iterations": "D", "measured": "D"}),
        (("sensitivity", "--bf16-tail-layers", "1", "--train-iters", "9"), {"kept in BF16": "A", "iterations": "A"}),
        (("sensitivity", "mixed_precision.num_layers_at_end_in_bf16=1"), {"kept in BF16": "A", "measured": "D"}),
        (("sensitivity", "--sensitivity", "3", "train.train_iters=9"), {"measured": "A", "iterations": "A"}),
        (("profile",), {"profiled": "D", "iterations": "D"}),
        (("profile", "--profile", "3"), {"profiled": "A", "iterations": "D"}),
    ],
)
def test_what_a_target_sets_by_default_was_not_asked_for(words, says: dict[str, str], runs: Path, capsys) -> None:
    assert train.run([*words, "--runtime", "cpu", "--dry-run", "--runs", str(runs)]) == 0
    said = capsys.readouterr().out
    for name, who in says.items():
        (line,) = (each for each in said.splitlines() if each.startswith(f"#   {name} "))
        assert ("this target's default" in line, "asked for" in line) == (who == "D", who == "A"), line


def test_a_dry_run_starts_nothing(job, runs: Path) -> None:
    said, _ = job("compare", "--dry-run")
    assert "training.py" in said and "--precision bf16" in said and "--precision nvfp4" in said
    assert not runs.exists() or not list(runs.iterdir())
    assert subprocess.run(["bash", "-n", "-c", said], check=False).returncode == 0
