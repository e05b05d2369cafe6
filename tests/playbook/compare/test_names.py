"""What the arms of a comparison are called: by their precision, and where that is not enough by what differs."""

import csv
import io
import itertools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from playbook import report
from playbook.cli import entry
from playbook.compare import comparison, gate, saved
from playbook.compare.model import Comparison
from playbook.record import loading
from playbook.report import canvas, export, page, terminal
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe, words_in


@dataclass(frozen=True)
class Asked:
    """One configuration: its NVFP4 recipe in words, the layers it keeps in BF16 at its end, and its parity facts."""

    precision: str
    words: str = ""
    tail: int = 1
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> dict[str, Any]:
        recipe = {"ingredients": Nvfp4Recipe.of(words_in(self.words)).facts()} if self.precision == "nvfp4" else {}
        return {"name": self.precision, "bf16_head_layers": 0, "bf16_tail_layers": self.tail} | recipe


BF16, NVFP4, NO_RHT = Asked("bf16", tail=0), Asked("nvfp4"), Asked("nvfp4", "rht=off")


@pytest.fixture
def arms(make_run):
    """`arms(BF16, NVFP4, seeds=3)`: the comparison of so many runs of each."""
    number = itertools.count()

    def compared(*asked: Asked, seeds: int = 1, arithmetic: str = "native", **more: Any) -> Comparison:
        def run(at: int, seed: int) -> Path:
            about = {"precision": asked[at].about | {"arithmetic": arithmetic}}
            loss, facts = 1 + at * (0.01 + seed / 10_000), {"seed": seed} | asked[at].facts
            return make_run(asked[at].precision, name=str(next(number)), loss=loss, parity=facts, environment=about)

        groups = [loading.load_all([run(at, seed) for seed in range(seeds)]) for at in range(len(asked))]
        return comparison.compare(groups, **more)

    return compared


def labels(of: Comparison) -> list[str]:
    return [arm.label for arm in of.arms]


def changed(words: str, tail: int = 1) -> Asked:
    return Asked("nvfp4", words, tail)


@pytest.mark.parametrize(
    ("asked", "called"),
    [
        ((BF16, NVFP4), ["bf16", "nvfp4"]),
        ((BF16, NO_RHT), ["bf16", "nvfp4"]),  # the only one of its precision: a note says the recipe
        ((BF16, NVFP4, NO_RHT), ["bf16", "nvfp4", "nvfp4 rht=off"]),
        ((NO_RHT, NVFP4), ["nvfp4 rht=off", "nvfp4"]),
        ((NVFP4, changed("bf16=qkv,proj")), ["nvfp4", "nvfp4 bf16=qkv,proj"]),
        ((NVFP4, changed("switch=0.82:bf16"), NO_RHT), ["nvfp4", "nvfp4 switch=0.82:bf16", "nvfp4 rht=off"]),
        ((NVFP4, changed("", tail=0), Asked("fp8")), ["nvfp4", "nvfp4 tail=0", "fp8"]),
        ((changed("", tail=0), changed("rht=off", tail=0)), ["nvfp4 tail=0", "nvfp4 rht=off tail=0"]),
        ((Asked("fp8"), Asked("fp8", tail=2)), ["fp8 head=0", "fp8 head=0 tail=2"]),  # which keeps one at each end
        ((BF16, BF16), ["bf16", "bf16"]),  # the control: they are the same
    ],
)  # fmt: skip
def test_arms_of_one_precision_are_called_by_what_of_their_recipes_is_changed(arms, asked, called) -> None:
    assert labels(arms(*asked)) == called


@pytest.mark.parametrize(
    ("fact", "values", "called"),
    [
        ("learning_rate", (0.003, 0.001), ["learning_rate=0.003", "learning_rate=0.001"]),
        ("global_batch_size", (32, 64, 64), ["global_batch_size=32", "global_batch_size=64", "global_batch_size=64"]),
        ("finetune", ("absent", "lora"), ["finetune=none: pretraining", "finetune=lora"]),
        ("data", ("mock", "a-text-whose-name-goes-on-and-on"), ["data=mock", "data=a-text-whose-name-goes-on-an..."]),
        ("engine_switches", (["A=1"], ["B=1"]), ["engine_switches=['A=1']", "engine_switches=['B=1']"]),
        ("overrides", ("absent", {"model.dropout": "0.1"}), ["overrides=none", "model.dropout=0.1"]),
        ("tuned", ("absent", True), ["tuned=False", "tuned=True"]),
        ("seed", ("absent", 5), ["", ""]),  # what one does not tell names neither
    ],
)
def test_arms_of_one_recipe_are_called_by_a_fact_that_differs(arms, fact, values, called) -> None:
    found = arms(*(replace(NVFP4, facts={fact: value}) for value in values), force=True)
    assert labels(found) == [f"nvfp4 {each}".rstrip() for each in called]


def test_only_those_still_alike_get_a_further_word(arms) -> None:
    found = arms(NVFP4, NO_RHT, replace(NVFP4, facts={"global_batch_size": 64, "train_iters": 50}), BF16, force=True)
    assert labels(found) == ["nvfp4 global_batch_size=32", "nvfp4 rht=off", "nvfp4 global_batch_size=64", "bf16"]


THREE = (BF16, NVFP4, NO_RHT)
CALLED = ["bf16, emulated", "nvfp4, emulated", "nvfp4 rht=off, emulated"]


@pytest.fixture
def three(arms) -> Comparison:
    """Three arms of three seeds each, emulated."""
    return arms(*THREE, seeds=3, arithmetic="emulated")


def test_every_sentence_and_output_says_the_name(three: Comparison) -> None:
    assert labels(three) == CALLED
    assert "The training loss of NVFP4, emulated lies +1.0" in three.verdict
    assert "The training loss of NVFP4 rht=off, emulated lies +2.0" in three.verdict
    assert "C (nvfp4 rht=off, emulated) takes 1.00 times the BF16 step" in three.verdict
    assert page.title(three) == "nvfp4, emulated, nvfp4 rht=off, emulated against bf16, emulated"
    assert [look.label for look in canvas.looks(three)] == [f"{arm.name} {arm.label}" for arm in three.arms]
    rows = csv.DictReader(io.StringIO(export.as_csv(three)))
    assert {row["label"] for row in rows if row["arm"].startswith("C")} == {CALLED[2]}
    markdown = export.as_markdown(three, [])
    assert "## C nvfp4 rht=off, emulated against A bf16, emulated" in markdown
    assert "|  | A bf16, emulated | B nvfp4, emulated | C nvfp4 rht=off, emulated |" in markdown


def test_the_written_files_and_the_terminal_say_the_name(three: Comparison, tmp_path: Path) -> None:
    runs = {arm.name: [loading.load(Path(run.path)) for run in arm.runs] for arm in three.arms}
    report.write(three, runs, tmp_path / "written")
    written = json.loads((tmp_path / "written" / saved.FILE).read_text())
    assert [arm.get("setting") for arm in written["arms"]] == [None, None, "rht=off"]
    text = (tmp_path / "written" / saved.PAGE).read_text()
    assert text.count(">C nvfp4 rht=off, emulated<") >= 3  # heads of tables, and legends
    out = io.StringIO()
    terminal.print_comparison(three, out)
    assert "\nC: nvfp4 rht=off, " in out.getvalue() and "\n   emulated ×3 " in out.getvalue()


def test_a_speed_up_says_which_of_two_it_is(arms) -> None:
    result = arms(*THREE)
    assert [each.step_time.sentence.partition(", ")[2] for each in result.contrasts] == [
        "nvfp4 over bf16", "nvfp4 rht=off over bf16",
    ]  # fmt: skip
    against = arms(NO_RHT, NVFP4, Asked("fp8"), arithmetic="emulated", baseline="A").contrasts[1]
    assert against.step_time.sentence.startswith("1.00 times the NVFP4 rht=off step")


@pytest.mark.parametrize("arithmetic", ["native", "emulated"])
@pytest.mark.parametrize(
    ("wanted", "found"), [("nvfp4 rht=off", "A"), ("nvfp4", "B"), ("fp8", "C"), ("c", "C")]
)  # fmt: skip
def test_an_arm_is_named_as_baseline_by_what_it_is_called(arms, arithmetic: str, wanted: str, found: str) -> None:
    """Not the first of that precision, where one has the precision alone for a name."""
    of = arms(NO_RHT, NVFP4, Asked("fp8", tail=2), arithmetic=arithmetic, baseline=wanted)
    assert of.baseline == found
    assert arms(NO_RHT, NVFP4, arithmetic=arithmetic, baseline=of.arms[1].label).baseline == "B"


def test_a_baseline_is_named_by_its_precision_where_none_is_called_so(arms) -> None:
    assert arms(changed("stochastic=off"), NO_RHT, BF16, baseline="nvfp4").baseline == "A"


def test_a_control_is_titled_by_the_letters_of_its_arms(arms) -> None:
    result = arms(BF16, BF16)
    assert page.title(result) == "B bf16 against A bf16"
    assert "The training loss of B lies +1.00 % from A" in result.verdict


def test_the_gate_says_the_name(arms, tmp_path: Path, capsys) -> None:
    written = [saved.write(arms(*THREE), tmp_path / "old" / saved.FILE)]
    content = json.loads(written[0].read_text())
    content["arms"][2]["step_time"]["value"] *= 1.5
    (tmp_path / "new.json").write_text(json.dumps(content))
    arguments = [str(written[0]), "--current", str(tmp_path / "new.json")]
    assert entry.run("gate", lambda: gate.main(arguments)) == 1
    lines = capsys.readouterr().out.splitlines()
    (worse,) = [line for line in lines if line.endswith("WORSE")]
    assert worse.startswith("C: nvfp4 rht=off") and any(line.startswith("B: nvfp4  ") for line in lines)


def test_a_long_setting_is_cut_where_it_is_drawn(arms) -> None:
    look = canvas.looks(arms(BF16, NVFP4, changed("rht=off stochastic=off weights=1x16"), arithmetic="emulated"))[2]
    assert look.label == "C nvfp4 rht=off stochastic=off weights=1x16, emulated"
    assert look.within(60) == look.label
    assert look.within(30) == "C nvfp4 rht=off sto\N{HORIZONTAL ELLIPSIS}, emulated"
    assert len(look.within(30)) <= 30
