"""`make ablate`: its order, what it reuses, what ends it, and its gaps. The training script is a stand-in."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from playbook.campaign import ablate_job, ablation, ablation_report, reuse, variants
from playbook.campaign.variants import BF16, WHOLE, Variant
from playbook.cli import train
from playbook.plan.gpus import Gpu
from playbook.plan.place import Place
from playbook.record import loading
from pretraining.errors import UsageError
from pretraining.record import code_state, run_folder
from pretraining.request.recipe.nvfp4_recipe import HELP, Nvfp4Recipe, as_text, words_in

LAUNCHER = Path(__file__).parents[1] / "fakes" / "launcher.py"
NAMES = ["tail=0", "rht=off", "weights=1x16 scale=4over6"]
ASKED = ("--seeds", "1 2", "--num-layers", "2", "--variants", " | ".join(NAMES))
ORDER = [
    ("BF16", 1), ("whole", 1), ("BF16", 2), ("whole", 2), *((name, seed) for name in NAMES for seed in (1, 2)),
]  # fmt: skip
LOSS = json.dumps({"bf16 1": 1.0, "nvfp4 1": 1.01, "bf16 2": 2.0, "nvfp4 2": 2.04})


def steps(said: str) -> list[tuple[str, int]]:
    found = re.findall(r"^run (\d+) of 10, (.+), seed (\d):", said, re.MULTILINE)
    assert [int(number) for number, *_ in found] == list(range(1, len(found) + 1))
    return [(name, int(seed)) for _, name, seed in found]


def newest(runs: Path) -> dict:
    return json.loads(max(runs.glob("*-ablation-tiny/ablation.json")).read_text())


def test_an_ablation_that_is_cut_goes_on_and_takes_divergence_for_a_result(
    job, runs: Path, environment, project, until
):
    # Cut in the seventh run, which would never end.
    paths = os.pathsep.join([str(project / "assets"), str(project / "scripts")])
    asked = ("--runtime", "cpu", "--model", "tiny", "--train-iters", "40", "--runs", str(runs), *ASKED)
    cut = subprocess.Popen(
        [sys.executable, str(LAUNCHER), "ablate", *asked],
        env=environment(PYTHONPATH=paths, FAKE_STEP="0.001", FAKE="slow", FAKE_SWITCH="rht", FAKE_LOSS=LOSS),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until(lambda: len(list(runs.glob("*/environment.json"))) == 7)
        cut.send_signal(signal.SIGINT)
        said, errors = cut.communicate(timeout=60)
    finally:
        cut.kill()
    assert cut.returncode == 130 and "6 of 10 runs are done; the same command goes on there" in errors
    assert steps(said) == ORDER[:7] and "reusing" not in said

    said, errors = job("ablate", *ASKED, FAKE="diverged", FAKE_SWITCH="rht", FAKE_LOSS=LOSS)
    assert steps(said) == ORDER and said.count(": reusing ") == 6
    assert errors.count("diverged") == 2 and "the loss is nan at iteration 2" in errors
    found = newest(runs)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == list(dict.fromkeys(name for name, _ in ORDER))
    for name in ("whole", "tail=0", NAMES[-1]):  # against BF16 of the same seed
        values = [run["training_loss_gap"]["value"] for run in rows[name]["runs"]]
        assert values == pytest.approx([1.0, 2.0]) and rows[name]["gap"]["value"] == pytest.approx(1.5)
    gone = rows["rht=off"]
    assert gone["gap"] is None and gone["to_bf16"] == gone["to_whole"] == "diverged"
    assert rows[NAMES[-1]]["to_whole"] == "not judged" and "Nothing is judged: two seeds do not" in found["verdict"]
    assert "Diverged: rht=off (seed 1) and rht=off (seed 2)." in found["verdict"]
    asked_for = [loading.load(runs / run["run"]).plan["request"] for row in rows.values() for run in row["runs"]]
    assert [each["seed"] for each in asked_for] == [1, 2] * 5
    off = [Nvfp4Recipe.of(each.get("nvfp4", {})).changed() for each in asked_for[::2]]
    assert off == [{}, {}, {}, {"rht": "off"}, {"weights": "1x16", "scale": "4over6"}]
    assert [each["bf16_tail_layers"] for each in asked_for[::2]] == [0, 1, 0, 1, 1]

    # One that fails is named, and made again the next time; one that diverged is a result, and is not.
    shutil.rmtree(runs / rows[NAMES[-1]]["runs"][1]["run"])
    said, errors = job("ablate", *ASKED, FAKE="killed", FAKE_SWITCH="two_d", code=1)
    assert "nvfp4: killed:" in errors and "Seed 2 of weights=1x16 scale=4over6: killed: " in said and "Written:" in said
    assert said.count(": reusing ") == 9 and newest(runs)["rows"][-1]["to_bf16"] == "killed"
    said, _ = job("ablate", *ASKED, FAKE_LOSS=LOSS, FAKE_CODE="000000000001")
    assert said.count(": reusing ") == 9 and newest(runs)["rows"][-1]["gap"]["value"] == pytest.approx(1.5)
    now = code_state.digest()
    assert f"Not one state of the code: 9 runs of {now} and 1 runs of 000000000001." in said
    said, _ = job("ablate", *ASKED)
    assert said.count(", whose code was 000000000001 (commit ") == 1 and said.count(": reusing ") == 10


def test_without_bf16_there_is_nothing_to_set_the_rest_against(job, runs: Path) -> None:
    said, errors = job("ablate", "--seeds", "1", FAKE="diverged", FAKE_ONLY="bf16", code=1)
    assert "bf16: diverged" in errors and "BF16 diverged with seed 1" in said
    assert len(list(runs.iterdir())) == 1


def test_a_dry_run_prints_every_command_in_order(job, runs: Path) -> None:
    said, _ = job("ablate", "--dry-run", *ASKED)
    assert [(name, int(seed)) for name, seed in re.findall(r"^# (.+), seed (\d)$", said, re.MULTILINE)] == ORDER
    recipes = [Nvfp4Recipe.of(words_in(words)).changed() for words in re.findall(r" --nvfp4 '([^']+)' ", said)]
    assert [as_text(words) for words in recipes if words] == [NAMES[1]] * 2 + [NAMES[2]] * 2
    assert said.startswith("# 10 runs: BF16, whole, tail=0, rht=off and weights=1x16 scale=4over6, each with 2 seeds")
    assert subprocess.run(["bash", "-n", "-c", said], check=False).returncode == 0
    assert not runs.exists() or not list(runs.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--seed", "7"), "make ablate takes no --seed: SEEDS= names the seeds"),
        (("--seeds", "seven"), "SEEDS=seven: seeds are whole numbers"),
        (("--seeds", "7 7"), "SEEDS=7 7: one seed or more is needed, none below 0 and none twice"),
        (("--seeds", ""), "SEEDS=: one seed or more is needed"),
        (("--bf16-tail-layers", "2"), "takes no BF16_TAIL: VARIANTS='tail=0' tries none"),
        (("--precision", "fp8"), "takes no --precision"),
        (("--repeat", "2"), "takes no REPEAT"),
        (("--emulate", "reference"), "takes no EMULATE=reference: that emulator has no ingredient to switch off"),
        (("--run-dir", "x"), "takes no --run-dir"),
        (("--variants", "whole | rth=off"), "unknown word in VARIANTS 'rth': did you mean rht?"),
        (("--variants", "hole"), "unknown word in VARIANTS 'hole': did you mean whole?"),
        (("--variants", "rht=of"), "VARIANTS, rht=of: unknown value of rht in --nvfp4 'of': did you mean rht=off?"),
        (("--variants", "whole rht=off"), "whole rht=off: whole is the recipe without any change"),
        (("--variants", "rht=off |"), "VARIANTS has an empty one"),
        (("--variants", ""), "VARIANTS has an empty one"),
        (("--variants", "tail=x"), "tail=x is no number of last layers in BF16"),
        (("--variants", "tail=4"), "leave none of tiny's 4 layers in nvfp4"),
        (("--variants", "rht=on weights=16x16"), "VARIANTS: rht=on weights=16x16 is the whole recipe, which"),
        (("--variants", "tail=1"), "VARIANTS: tail=1 trains as whole does here"),
        (("--variants", "switch=1.0:forward"), "VARIANTS: switch=1.0:forward trains as whole does here"),
        (("--variants", "switch=0.5:bf16 | switch=60:bf16"), "switch=60:bf16 trains as switch=0.5:bf16 does here"),
        (("--variants", "rht=off, stochastic=off | stochastic=off rht=off"), "rht=off stochastic=off 2 times; SEEDS="),
        (("--variants", "error=mse"), "error=mse is how scale=4over6 chooses"),
        (("--variants", "switch=400:bf16"), "comes after the last of 120 iterations"),
        (("--train-iters", "8"), "leaves fewer than 5 iterations to time"),
    ],
)
def test_wrong_usage(flags: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        train.run(["ablate", "--runtime", "cpu", "--dry-run", "--runs", str(tmp_path), *flags])
    with pytest.raises(UsageError, match="SEEDS= are those of make compare and ablate"):
        train.run(["nvfp4", "--runtime", "cpu", "--seeds", "1"])
    with pytest.raises(UsageError, match="VARIANTS= are those of make ablate"):
        train.run(["compare", "--runtime", "cpu", "--variants", "rht=off"])


def test_a_switch_that_is_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVFP4_RHT", "0")
    with pytest.raises(UsageError, match=r"VARIANTS='rht=off' tries this beside the whole one; leave NVFP4_RHT=0 out"):
        train.run(["ablate", "--runtime", "cpu", "--dry-run"])
    monkeypatch.delenv("NVFP4_RHT")
    with pytest.raises(
        UsageError, match=r"VARIANTS='weights=1x16' tries this .*; leave --nvfp4, --switch, or what the config"
    ):
        train.run(["ablate", "--runtime", "cpu", "--dry-run", "--nvfp4", "rht=on weights=1x16"])


def test_the_variants_of_a_model() -> None:
    def said(*sizes: int) -> list[str]:
        return [each.name for each in variants.default(*sizes)]

    recipes = ["rht=off", "stochastic=off", "weights=1x16", "switch=0.82:bf16", "scale=4over6"]
    assert said(12, 0, 1) == ["tail=0", *recipes, "tail=2"]
    assert said(32, 0, 4) == ["tail=0", *recipes, "tail=1", "tail=2"]
    assert said(2, 0, 1) == ["tail=0", *recipes]


@pytest.mark.parametrize("name", list(Nvfp4Recipe().words(every=True)))
def test_every_word_of_the_recipe_makes_a_variant(name: str) -> None:
    example = next(word for word in HELP.split() if word.startswith(f"{name}="))
    (found,) = variants.read_all(f"whole | tail=0, {example}")
    assert found.name == f"{as_text(words_in(example))} tail=0" and found == variants.read(found.name)


def test_what_an_engine_lacks_is_left_out_of_the_default_set_and_refused_where_it_is_named(capsys) -> None:
    where = Place("local", choices={}, gpu=Gpu(0, "GPU-0", "NVIDIA B200", (10, 0), 190 * 10**9))

    def steps_of(*flags: str) -> list[str]:
        return [step.variant.name for step in ablate_job._steps(train.parser("x").parse_args(flags), [1], where)]

    assert "scale=4over6" not in steps_of()
    assert re.search("^scale=4over6 is left out: .*scale=4over6:weights works", capsys.readouterr().err, re.MULTILINE)
    assert steps_of("--variants", "scale=4over6:weights")[2:] == ["scale=4over6:weights"]
    with pytest.raises(UsageError, match="choose no scale of a tensor with a Hadamard transform"):
        steps_of("--variants", "scale=4over6")


def test_how_long_it_takes_is_told_by_runs_of_this_size(make_run, tmp_path: Path) -> None:
    asked = [{"model": "tiny", "precision": name, "train_iters": 40, "seed": 3} for name in ("bf16", "nvfp4", "nvfp4")]
    for name, seconds in (("bf16", 50.0), ("nvfp4", 90.0)):
        assert reuse.seconds(asked, tmp_path / "runs") is None
        request = {"model": "tiny", "precision": name, "train_iters": 40, "seed": 1}
        run = make_run(name, outcome={"seconds": seconds})
        run_folder.write_json(run / run_folder.PLAN, {"request": request})
    assert reuse.seconds(asked, run.parent) == 230.0
    assert reuse.seconds([{**asked[0], "train_iters": 80}], run.parent) is None


def test_on_a_gpu_it_takes_its_own_model_unless_told_otherwise() -> None:
    where = Place("local", choices={}, gpu=Gpu(0, "GPU-0", "NVIDIA H200", (9, 0), 150 * 10**9))

    def steps_of(*flags: str) -> list[ablate_job.Step]:
        args = train.parser("x").parse_args(["--emulate", *flags])
        return ablate_job._steps(args, [1, 2], where)

    steps = steps_of()
    assert len(steps) == 18 and {each.plan.settings.model.name for each in steps} == {"llama-120m"}
    assert steps[0].plan.choices["model"].reason == "make ablate's default with a GPU"
    assert [each.plan.settings.emulate for each in steps[:2]] == [None, "triton"]
    assert {each.plan.settings.model.name for each in steps_of("--model", "llama32-1b")} == {"llama32-1b"}


@pytest.fixture
def ablated(make_run: Callable[..., Path]):
    """`ablated({WHOLE: [1.0, 2.0]})`: the ablation of runs with these gaps, per cent, a seed each; None diverges."""

    def make(gaps: dict[Variant, list[float | None]]) -> ablation.Ablation:
        study = ablation.Study()
        for seed in range(max(map(len, gaps.values()))):
            base = make_run("bf16", name=f"bf16-{seed}", parity={"seed": seed}, loss=1 + seed / 10)
            study.add(BF16, loading.load(base))
        for at, (variant, values) in enumerate(gaps.items()):
            for seed, gap in enumerate(values):
                how = {"outcome": {"verdict": "diverged", "cause": "the loss is nan"}} if gap is None else {}
                run = make_run(
                    "nvfp4", name=f"nvfp4-{at}-{seed}", arithmetic="emulated", parity={"seed": seed},
                    loss=(1 + seed / 10) * (1 + (gap or 0) / 100), validation=2.4 * (1 + 2 * (gap or 0) / 100), **how,
                )  # fmt: skip
                study.add(variant, loading.load(run))
        return study.result(created="now")

    return make


def row(of: ablation.Ablation, variant: Variant) -> ablation.Row:
    return next(each for each in of.rows if each.name == variant.name)


RHT, SR = map(variants.read, ("rht=off", "stochastic=off"))
NO_TAIL, TWO = Variant("nvfp4", tail=0), Variant("nvfp4", tail=2)


def test_gaps_are_those_of_the_same_seed(ablated) -> None:
    of = ablated({WHOLE: [1.0, -0.5, 0.1]})
    found = row(of, WHOLE)
    assert [run.training_loss_gap.value for run in found.runs] == pytest.approx([1.0, -0.5, 0.1])
    assert [run.validation_loss_gap.value for run in found.runs] == pytest.approx([2.0, -1.0, 0.2])
    half = 4.302653 * 0.754983 / 3**0.5  # t of 2 degrees of freedom, 97.5 %
    assert (found.gap.value, found.gap.low, found.gap.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), rel=1e-5)
    assert found.gap.spread == "95 % t-interval over 3 seeds" and found.bf16_tail_layers == 1


def test_variants_are_set_apart_by_what_the_seed_does_not_explain(ablated) -> None:
    luck = [3.0, -2.0, 0.5, -1.0]  # of BF16 with each seed: in every gap alike
    gaps = {
        WHOLE: [0.1, -0.1, 0.0, 0.1],
        RHT: [0.0, 0.1, -0.1, 0.1],
        SR: [2.1, 2.0, 1.9, 2.1],
        NO_TAIL: [-2.0, -2.1, -2.1, -2],
    }
    of = ablated({variant: [gap + each for gap, each in zip(own, luck, strict=True)] for variant, own in gaps.items()})
    assert {each.name: (each.to_bf16, each.to_whole) for each in of.rows} == {
        "BF16": ("", ""),
        "whole": ("not told apart", ""),
        "rht=off": ("not told apart", "not told apart"),
        "stochastic=off": ("not told apart", "above"),
        "tail=0": ("not told apart", "below"),
    }
    apart = row(of, SR).from_whole
    assert apart.value == pytest.approx(2.0) and apart.low > 1.5
    assert "Above the whole recipe: stochastic=off (+2.00 % (" in of.verdict
    assert "Not told from the whole recipe: rht=off." in of.verdict
    assert re.search(r"4 seeds that spread so show differences over [\d.]+ % eight times in ten\.", of.verdict)


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_judge_nothing(ablated, seeds: int) -> None:
    of = ablated({WHOLE: [9.0, 9.1][:seeds], RHT: [90.0, 90.1][:seeds]})
    assert row(of, WHOLE).to_bf16 == row(of, RHT).to_whole == "not judged"
    assert row(of, RHT).gap.low is None and row(of, RHT).from_whole is None
    few = "one seed does" if seeds == 1 else "two seeds do"
    assert f"Nothing is judged: {few} not tell how seeds differ; SEEDS= with 3 or more does." in of.verdict


def test_the_power_is_said_beforehand(ablated) -> None:
    of = ablated({WHOLE: [0.5, -0.5, 0.1], RHT: [0.0, 0.0, 0.1]})
    said = ablation.power(row(of, WHOLE).runs, 7)
    assert re.fullmatch(
        r"3 seeds whose gaps spread like these show a variant's difference to the whole recipe over 1.\d % eight "
        "times in ten",
        said,
    )
    for count, few in enumerate(("no seed has", "one seed has", "two seeds have")):
        said = ablation.power(row(of, WHOLE).runs[:count], 7)
        assert said == f"{few} a loss gap: no difference will be judged, which takes 3 (SEEDS=)"


@pytest.mark.parametrize("mock", [False, True])
def test_more_seeds_tell_nothing_on_mock_data(make_run, mock: bool) -> None:
    study = ablation.Study()
    for variant in (BF16, WHOLE):
        study.add(variant, loading.load(make_run(variant.precision, environment={"mock_data": mock})))
    assert study.on_mock is mock
    assert ("SEEDS=" in study.result(created="").verdict) is not mock


def test_a_run_of_other_work_has_no_gap(make_run) -> None:
    study = ablation.Study()
    study.add(BF16, loading.load(make_run("bf16")))
    found = study.add(WHOLE, loading.load(make_run("nvfp4", parity={"global_batch_size": 64})))
    assert found.training_loss_gap is None and found.problem.startswith("not comparable: global_batch_size: A 32, B 64")


def test_what_it_leaves(ablated, tmp_path: Path) -> None:
    of = ablated({WHOLE: [0.2, -0.2], NO_TAIL: [None, None], RHT: [1.0, None]})
    written = ablation_report.write(of, tmp_path / "ablation")
    assert [path.name for path in written] == ["ablation.json", "ablation.md", "ablation.png"]
    assert written[2].read_bytes().startswith(b"\x89PNG")
    text = written[1].read_text()
    runs = [run.run for each in of.rows for run in each.runs]
    assert len(runs) == 8 and all(f"| {run} |" in text for run in runs)
    assert "- seed 0 of tail=0: diverged: the loss is nan" in text
    assert "| rht=off | 1 |" in text and "+1.00, diverged" in text
    content = json.loads(written[0].read_text())
    assert content["kind"] == "nvfp4-playbook-ablation" and content["schema"] == 2
    assert str(tmp_path) not in text + json.dumps(content)


@pytest.mark.parametrize("seeds", [1, 2, 3, 8])
def test_the_terminals_table_is_no_wider_than_120_columns(ablated, capsys, seeds: int) -> None:
    long = variants.read(
        "rht=off stochastic=off weights=1x16 scale=4over6:activations error=mse switch=0.825:forward tail=0"
    )
    gaps = [-12.5, -17.25, -11.5, -13, -12, -11, -15, -12][:seeds]
    of = ablated({WHOLE: gaps, long: [-each for each in gaps], RHT: [0.5 + each for each in gaps]})
    ablate_job.show(of)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120 and sum("error=mse" in line for line in lines) >= 1
    assert max(len(ablation_report._said(each)) for each in of.rows) <= 70  # of the picture's width
    assert ("-17.25" in "".join(lines)) == (seeds == 2)  # each seed's where nothing is judged
    assert "".join(lines).count("-12.50 %") == 2 or seeds > 1  # once in the table, once in the verdict
