"""The NVFP4 recipe from what a person writes to what computes: flag, short form, config file, record, resumption."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import refusal, resolve

from pretraining import packages
from pretraining.errors import UsageError
from pretraining.record import run_folder, schema
from pretraining.request import config_file
from pretraining.request.recipe import nvfp4_recipe
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe
from pretraining.run import ending, run_facts

WHOLE = {"rht": "on", "stochastic": "on", "weights": "16x16"}


@pytest.fixture(scope="module", autouse=True)
def nothing_set() -> Iterator[None]:
    """Of what whoever runs the tests has set."""
    monkeypatch = pytest.MonkeyPatch()
    for name in [each for each in os.environ if nvfp4_recipe.is_variable(each)]:
        monkeypatch.delenv(name)
    yield
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ("", Nvfp4Recipe()),
        ("rht=on stochastic=on weights=16x16", Nvfp4Recipe()),
        ("rht=off", Nvfp4Recipe(rht=False)),
        (" weights=1x16,  stochastic=off ", Nvfp4Recipe(stochastic=False, two_d=False)),
        ("rht=off rht=off", Nvfp4Recipe(rht=False)),
        ("scale=4over6", Nvfp4Recipe(four_over_six="all")),
        ("scale=4over6:weights error=mse rht=off", Nvfp4Recipe(rht=False, four_over_six="weights", chosen_by="mse")),
        ("switch=0.75", Nvfp4Recipe(switch="0.75:bf16")),
        ("switch=.5:forward", Nvfp4Recipe(switch="0.5:forward")),
        ("switch=9:bf16", Nvfp4Recipe(switch="9:bf16")),
        ("switch=0.00001", Nvfp4Recipe(switch="0.00001:bf16")),
        ("switch=1.0", Nvfp4Recipe(switch="1.0:bf16")),
        ("switch=never scale=6 bf16=none", Nvfp4Recipe()),
        ("bf16=proj,qkv", Nvfp4Recipe(in_bf16="qkv,proj")),
        ("rht=off , bf16=qkv, fc2:1,scale=4over6,", Nvfp4Recipe(rht=False, four_over_six="all", in_bf16="qkv,fc2:1")),
        ("bf16=layers:0,2", Nvfp4Recipe(in_bf16="layers:0,2")),
        ("activations=rows", Nvfp4Recipe(activations="rows")),
        ("primary=bf16", Nvfp4Recipe(primary="bf16")),
        ("primary=fp4", Nvfp4Recipe()),
        ("bf16=fc2:0-3", Nvfp4Recipe(in_bf16="fc2")),  # of tiny's four layers
    ],
)
def test_words(words: str, recipe: Nvfp4Recipe) -> None:
    assert resolve("--nvfp4", words).nvfp4 == recipe
    assert Nvfp4Recipe.of(recipe.words()) == Nvfp4Recipe.of(recipe.changed()) == recipe
    assert Nvfp4Recipe.of(nvfp4_recipe.words_in(nvfp4_recipe.as_text(recipe.words(every=True)))) == recipe
    assert Nvfp4Recipe.recorded(recipe.facts()) == recipe
    assert nvfp4_recipe.words_in(nvfp4_recipe.as_text(recipe.words())) == recipe.words()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rth=off", "unknown word in --nvfp4 'rth': did you mean rht?"),
        ("rht", "unknown value of rht in --nvfp4 '': There are rht=on, rht=off."),
        ("rht=of", "unknown value of rht in --nvfp4 'of': did you mean rht=off?"),
        ("rht=0", "There are rht=on, rht=off."),
        ("weights=16x1", "did you mean weights=16x16?"),
        ("weights=2d", "There are weights=16x16, weights=1x16."),
        ("RHT=off", "unknown word"),
        ("rht=off rht=on", "rht has two values, off and on; drop one"),
        ("scale=4over5", "did you mean scale=4over6?"),
        ("activations=row", "There are activations=tensor, activations=rows."),
        ("switch=0.5:fprop", "There are 0.5:bf16, 0.5:forward, 0.5:fp8, 0.5:fp8_blockwise, 0.5:mxfp8."),
        ("switch=1.5", "'1.5' is neither a fraction of the iterations, 0.0 to 1.0, nor a number of them"),
        ("switch=-1", "'-1' is neither"),
        ("switch=nan", "'nan' is neither"),
        ("switch=1e3", "'1e3' is neither"),
        ("switch=", "'' is neither"),
        ("switch=99999", "--switch 99999:bf16 comes after the last of"),
        ("bf16=layers:0-2", "leaves nothing in NVFP4, which is --precision bf16"),  # the last is in BF16 anyway
        ("bf16=qkv,proj,fc1,fc2", "leaves nothing in NVFP4"),
        ("bf16=fc2:9", "bf16=fc2:9 in --nvfp4 names layer 9; the model has 4, 0 to 3"),
        ("bf16=", "unknown product in bf16= of --nvfp4 '': There are qkv, proj, fc1, fc2, layers:0,1."),
        ("bf16", "unknown value of bf16 in --nvfp4 ''"),
        ("bf16=qkv,rht", "unknown product in bf16= of --nvfp4 'rht'"),
        ("bf16=qkv bf16=fc1", "bf16 has two values, qkv and fc1; drop one"),
        ("error=mse", "error=mse is how scale=4over6 chooses; write both, or leave it out"),
    ],
)
def test_wrong_words(words: str, said: str) -> None:
    assert said in refusal("--nvfp4", words)


def test_what_is_added_to_the_recipe_is_said() -> None:
    added = Nvfp4Recipe(two_d=False, four_over_six="weights", switch="0.5:forward")
    said = "without 2D scaling, four over six of weights, late switch at 0.5:forward"
    assert nvfp4_recipe.differs(added.facts()) == said and nvfp4_recipe.differs(Nvfp4Recipe().facts()) == ""
    assert added.rounding("weight").name == "1x16 4over6 mae" and added.rounding("input").name == "1x16 RHT"
    rows = Nvfp4Recipe(activations="rows")
    assert nvfp4_recipe.differs(rows.facts()) == "activations scaled by rows"
    names = ["1x16 RHT by row", "16x16", "1x16 RHT stochastic"]
    assert [rows.rounding(each).name for each in nvfp4_recipe.TENSORS] == names
    whole = Nvfp4Recipe(four_over_six="all", chosen_by="mse")
    assert [whole.rounding(each).four_over_six for each in nvfp4_recipe.TENSORS] == ["mse", "mse", ""]
    facts = run_facts.describe_precision(resolve("--nvfp4", "switch=0.25", "--train-iters", "10"), on_gpu=False)
    assert facts["switches_at"] == 2 and facts["ingredients"]["switch"] == "0.25:bf16"


def test_what_is_kept_in_bf16_is_said_and_goes_with_the_other_layers(make_checkpoint, tmp_path: Path) -> None:
    chosen = resolve("--nvfp4", "bf16=layers:1,fc1", "--bf16-tail-layers", "0", "--bf16-head-layers", "1")
    assert nvfp4_recipe.differs(chosen.nvfp4.facts()) == "in BF16 fc1,layers:1"
    assert resolve(*chosen.as_flags()) == chosen
    facts = run_facts.describe_precision(chosen, on_gpu=False)
    assert facts["ingredients"]["in_bf16"] == "fc1,layers:1" and facts["bf16_head_layers"] == 1
    make_checkpoint(tmp_path, 2)
    run_folder.write_json(tmp_path / run_folder.ENVIRONMENT, {"schema": 1, "model": "tiny", "precision": facts})
    given = ("--resume", str(tmp_path))
    assert resolve(*given).nvfp4 == resolve(*given, "--nvfp4", "bf16=fc1:0-3,layers:1").nvfp4 == chosen.nvfp4
    assert "bf16=fc1,layers:1, and this asks for" in refusal(*given, "--nvfp4", "bf16=fc1")
    reference = resolve("--model", "tiny", "--emulate", "reference", "--nvfp4", "bf16=qkv", on_gpu=True)
    assert reference.nvfp4 == Nvfp4Recipe(stochastic=False, in_bf16="qkv")
    said = refusal("--model", "nemotron3-nano", "--nvfp4", "bf16=qkv", on_gpu=True)
    assert "not every layer of nemotron3-nano has qkv, proj, fc1, fc2" in said


def test_what_the_engine_does_not_compute_is_refused_natively() -> None:
    assert "scale=4over6:weights works, or rht=off" in refusal("--nvfp4", "scale=4over6", on_gpu=True)
    for words in ("scale=4over6:weights", "scale=4over6 rht=off"):
        assert resolve("--nvfp4", words, on_gpu=True).nvfp4.four_over_six
    emulated = resolve("--nvfp4", "scale=4over6 switch=0.5", "--emulate", on_gpu=True)
    assert emulated.nvfp4 == Nvfp4Recipe(four_over_six="all", switch="0.5:bf16")


ROWS = "activations=rows rht=off bf16=proj"


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ("activations=rows", "rht=off and bf16=proj"),
        ("activations=rows rht=off bf16=proj:0,1", "bf16=proj"),
        (f"{ROWS} scale=4over6", "scale=6 or 4over6:weights"),
        (f"{ROWS} switch=0.5:forward", "no switch of the forward pass"),
    ],
)
def test_rows_that_the_engine_does_not_scale_are_refused_natively(words: str, missing: str) -> None:
    assert f"they need {missing} beside it; or --emulate (EMULATE=1)" in refusal("--nvfp4", words, on_gpu=True)
    assert resolve("--nvfp4", words, "--emulate", on_gpu=True).nvfp4.activations == "rows"


def test_rows_that_the_engine_scales(monkeypatch) -> None:
    for words in (ROWS, f"{ROWS} scale=4over6:weights", f"{ROWS} switch=0.5", f"{ROWS},fc1"):
        assert resolve("--nvfp4", words, on_gpu=True).nvfp4.activations == "rows"
    split = ("--tensor-parallel", "2")
    assert resolve("--nvfp4", ROWS, "--emulate", *split, on_gpu=True, processes=2).tensor_parallel == 2
    said = refusal("--nvfp4", ROWS, *split, on_gpu=True, processes=2)
    assert "no row of an activation that is split over 2 processes" in said and "--tensor-parallel 1" in said
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (10, 3))
    chosen = resolve("--nvfp4", ROWS, on_gpu=True)
    for release in ("2.18.0", "2.20.2"):
        monkeypatch.setattr(packages, "installed", lambda release=release: {"transformer-engine": release})
        if release == "2.20.2":
            return ending.check_capability(chosen)
        with pytest.raises(UsageError, match=r"activations=rows needs Transformer Engine 2\.19, and 2\.18\.0 is here"):
            ending.check_capability(chosen)


@pytest.mark.parametrize(("release", "refused"), [("2.14.1", True), ("2.18.0", False), ("2.20.2", False)])
def test_an_engine_that_would_ignore_four_over_six_is_refused(release: str, refused: bool, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (10, 3))
    monkeypatch.setattr(packages, "installed", lambda: {"transformer-engine": release})
    ending.check_capability(resolve("--nvfp4", "rht=off", on_gpu=True))
    ending.check_capability(resolve("--nvfp4", "scale=4over6", "--emulate", on_gpu=True))
    chosen = resolve("--nvfp4", "scale=4over6:weights", on_gpu=True)
    if not refused:
        return ending.check_capability(chosen)
    said = (
        r"4over6:weights needs Transformer Engine 2\.18, and 2\.14\.1 is here.*NeMo 26\.08 has 2\.17, so take a newer"
    )
    with pytest.raises(UsageError, match=said):
        ending.check_capability(chosen)
    monkeypatch.setattr(packages, "installed", lambda: {"transformer-engine": "2.7.0+abc"})
    with pytest.raises(UsageError, match=r"nvfp4 needs Transformer Engine 2\.8, and 2\.7\.0\+abc is here: NeMo 25\.11"):
        ending.check_capability(resolve("--nvfp4", "rht=off", on_gpu=True))


def test_transformer_engines_variables_for_four_over_six(monkeypatch) -> None:
    monkeypatch.setenv("NVTE_NVFP4_4OVER6", "weights")
    monkeypatch.setenv("NVTE_NVFP4_4OVER6_ERR_MODE", "mse")
    assert resolve().nvfp4 == Nvfp4Recipe(four_over_six="weights", chosen_by="mse")
    monkeypatch.setenv("NVTE_NVFP4_4OVER6", "some")
    assert "NVTE_NVFP4_4OVER6 is 'some'; Transformer Engine takes none, all, weights" in refusal()


def test_the_whole_recipe_is_recorded_as_it_always_was() -> None:
    assert Nvfp4Recipe().facts() == {"rht": True, "stochastic": True, "two_d": True}
    assert Nvfp4Recipe.recorded({}) == Nvfp4Recipe()
    assert run_facts.describe_precision(resolve("--nvfp4", "weights=1x16"), on_gpu=False)["ingredients"] == {
        "rht": True, "stochastic": True, "two_d": False,
    }  # fmt: skip
    assert "ingredients" not in run_facts.describe_precision(resolve("--precision", "bf16"), on_gpu=False)


def test_short_forms(monkeypatch) -> None:
    monkeypatch.setenv("NVFP4_2D", "0")
    monkeypatch.setenv("NVTE_NVFP4_DISABLE_RHT", "1")
    monkeypatch.setenv("NVTE_NVFP4_DISABLE_STOCHASTIC_ROUNDING", "0")
    assert resolve().nvfp4 == Nvfp4Recipe(rht=False, two_d=False)
    assert resolve("--nvfp4", "weights=16x16").nvfp4 == Nvfp4Recipe(rht=False), "a word goes before its short form"
    monkeypatch.setenv("NVFP4_RHT", "1")
    assert resolve().nvfp4 == Nvfp4Recipe(two_d=False), "ours goes before the engine's"
    monkeypatch.setenv("NVFP4_2D", "no")
    assert "NVFP4_2D is 'no'; set it to 1 (on, the default) or 0 (off)" in refusal()


def test_another_precision_has_no_recipe(monkeypatch) -> None:
    assert "--nvfp4 is nvfp4's recipe and does nothing for bf16" in refusal("--disable-fp4", "--nvfp4", "rht=off")
    monkeypatch.setenv("NVFP4_RHT", "0")
    assert resolve("--disable-fp4").nvfp4 is None  # what is set for both sides of a comparison


def test_the_reference_quantizer_rounds_to_nearest_and_knows_no_words(monkeypatch) -> None:
    reference = resolve("--emulate", "reference", on_gpu=True)
    assert reference.nvfp4 == Nvfp4Recipe(stochastic=False)
    assert resolve(*reference.as_flags(), on_gpu=True) == reference
    said = refusal("--emulate", "reference", "--nvfp4", "rht=off weights=1x16", on_gpu=True)
    assert said.endswith("leave rht=off and weights=1x16 out")
    monkeypatch.setenv("NVFP4_RHT", "0")
    assert "leave rht=off out" in refusal("--emulate", "reference", on_gpu=True)
    assert resolve("--emulate", on_gpu=True).nvfp4 == Nvfp4Recipe(rht=False)


def test_flags_say_all_of_it_whatever_is_set_where_they_are_parsed(monkeypatch) -> None:
    chosen = resolve("--nvfp4", "stochastic=off")
    monkeypatch.setenv("NVFP4_RHT", "0")
    monkeypatch.setenv("NVTE_NVFP4_DISABLE_2D_QUANTIZATION", "1")
    monkeypatch.setenv("NVTE_NVFP4_4OVER6", "all")
    assert resolve(*chosen.as_flags()) == chosen
    whole = resolve("--nvfp4", "rht=on weights=16x16 scale=6")
    assert whole.nvfp4 == Nvfp4Recipe() and resolve(*whole.as_flags()) == whole
    switched = resolve("--nvfp4", "switch=0.5", "--train-iters", "8")
    assert switched.switches_at == 4 and resolve(*switched.as_flags()) == switched


def test_a_config_file_restores_it_word_by_word(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "c.yaml"
    arguments = resolve("--nvfp4", "rht=off weights=1x16").as_flags()
    file.write_text(json.dumps({config_file.PLAYBOOK: {config_file.ARGUMENTS: arguments}}))
    given = ("--config", str(file))
    assert resolve(*given).nvfp4 == Nvfp4Recipe(rht=False, two_d=False)
    assert resolve(*given, "--nvfp4", "rht=on").nvfp4 == Nvfp4Recipe(two_d=False)
    assert resolve(*given, "--precision", "bf16").nvfp4 is None
    monkeypatch.setenv("NVFP4_2D", "1")
    assert resolve(*given).nvfp4 == Nvfp4Recipe(rht=False)


@pytest.fixture
def past(tmp_path: Path, make_checkpoint) -> Path:
    """A run that kept a checkpoint and trained without the Hadamard transform."""
    make_checkpoint(tmp_path, 2)
    about = {"name": "nvfp4", "arithmetic": "emulated", "ingredients": Nvfp4Recipe(rht=False).facts()}
    run_folder.write_json(tmp_path / run_folder.ENVIRONMENT, {"schema": 1, "model": "tiny", "precision": about})
    return tmp_path


def test_a_resumed_run_goes_on_as_it_began(past: Path, monkeypatch) -> None:
    given = ("--resume", str(past))
    assert resolve(*given).nvfp4 == resolve(*given, "--nvfp4", "rht=off").nvfp4 == Nvfp4Recipe(rht=False)
    said = refusal(*given, "--nvfp4", "rht=on")
    assert "was trained with rht=off stochastic=on weights=16x16, and this asks for rht=on stochastic=on" in said
    assert resolve(*given, "--evaluate", "--nvfp4", "rht=on").nvfp4 == Nvfp4Recipe()
    assert resolve(*given, "--evaluate").nvfp4 == Nvfp4Recipe(rht=False)
    monkeypatch.setenv("NVFP4_2D", "0")
    assert "weights=1x16: leave --nvfp4 and the like out" in refusal(*given)


@pytest.mark.parametrize("precision", ["nvfp4", "fp8"])
@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("in_bf16", True, "in_bf16 is true and not a text"),
        ("switch", False, "switch is false and not a text"),
        ("primary", 7, "primary is 7 and not a text"),
        ("rht", "off", 'rht is "off" and not true or false'),
        ("in_bf16", "attention", 'in_bf16 is "attention", which'),
        ("switch", "never:bf16", 'switch is "never:bf16", which'),
        ("four_over_six", "none", 'four_over_six is "none", which'),
    ],
)
def test_a_damaged_recipe_is_no_recipe(past: Path, precision: str, name: str, value, found: str) -> None:
    file = past / run_folder.ENVIRONMENT
    about = json.loads(file.read_text())
    about["precision"] |= {"name": precision, "ingredients": {name: value}}
    run_folder.write_json(file, about)
    said = refusal("--model", "tiny", "--resume", str(past), "--precision", precision, on_gpu=True)
    assert said.startswith(f"{file} is damaged: precision.ingredients.{found}") and "undamaged copy" in said


def test_each_field_of_the_recipe_has_a_shape_in_the_record() -> None:
    shapes = schema.ENVIRONMENT["precision"]["ingredients"]
    assert all(shapes[name].fits(value) for name, value in vars(Nvfp4Recipe()).items())


def test_what_a_process_uses_and_transformer_engine_is_told(monkeypatch) -> None:
    monkeypatch.setattr(nvfp4_recipe, "_in_use", Nvfp4Recipe())
    monkeypatch.setattr(os, "environ", {"NVTE_NVFP4_DISABLE_2D_QUANTIZATION": "1"})
    nvfp4_recipe.use(Nvfp4Recipe(rht=False))
    assert nvfp4_recipe.in_use() == Nvfp4Recipe(rht=False)
    assert os.environ == {
        "NVTE_NVFP4_DISABLE_RHT": "1",
        "NVTE_NVFP4_DISABLE_STOCHASTIC_ROUNDING": "0",
        "NVTE_NVFP4_DISABLE_2D_QUANTIZATION": "0",
        "NVTE_NVFP4_4OVER6": "none",
        "NVTE_NVFP4_4OVER6_ERR_MODE": "MAE",
        "NVTE_NVFP4_ROW_SCALED_ACTIVATION": "0",
    }


@pytest.mark.parametrize("recipe", [Nvfp4Recipe(rht=False), Nvfp4Recipe(two_d=False)], ids=str)
def test_what_one_test_uses_the_next_does_not(recipe: Nvfp4Recipe, monkeypatch) -> None:
    monkeypatch.setattr(nvfp4_recipe, "_in_use", Nvfp4Recipe())
    assert resolve().nvfp4 == Nvfp4Recipe()
    nvfp4_recipe.use(recipe)
    assert resolve().nvfp4 == recipe


def test_other_switches_of_the_engine_are_facts_and_are_passed_on() -> None:
    others = {"NVTE_B": "2 3", "NVTE_A": ""}
    recipe = {"NVTE_NVFP4_DISABLE_RHT": "1", "NVFP4_2D": "0"}
    everything = {"HF_TOKEN": "secret", "N": "1", **others, **recipe}
    assert nvfp4_recipe.engine_switches(everything) == ("NVTE_A=", "NVTE_B=2 3")
    assert nvfp4_recipe.passed_on(everything) == {**others, **recipe}


def test_weights_are_kept_in_bf16_where_a_word_asks_for_it(megatron) -> None:
    assert megatron("primary_weights") == {"primary=fp4": False, "primary=bf16": True, "bf16=qkv": True}


A_WORD = '    toy: str = _word("toy", {"six": "six", "four": "four"}, title="toy of", short="NVFP4_SIX")\n'
ITS_USE = """
import sys, types
name = "pretraining.request.recipe.nvfp4_recipe"
recipe = sys.modules[name] = types.ModuleType(name)
exec(sys.stdin.read(), recipe.__dict__)
from playbook.cli.make import command
from playbook.plan import place, plan
from playbook.publish import publishable
from pretraining.request import flags, settings
args = flags.parser("x").parse_args(["--nvfp4", "toy=four"])
chosen = settings.resolve(args, on_gpu=False, processes=1)
said = "rht=on stochastic=on weights=16x16 scale=6 error=mae activations=tensor switch=never bf16=none primary=fp4"
assert chosen.nvfp4.toy == "four" and f"{said} toy=four" in chosen.as_flags()
assert settings.resolve(flags.parser("x").parse_args(chosen.as_flags()), on_gpu=False, processes=1) == chosen
assert chosen.nvfp4.facts()["toy"] == "four" and "toy" in publishable._INGREDIENTS
made = plan.make_plan(chosen, place.Place("cpu"), 1)
assert made.choices["NVFP4 recipe"] == place.Choice("toy of four", "asked for")
assert made.request()["nvfp4"]["toy"] == "four" and "toy=four" in flags.parser("x").format_help()
[work] = command.plan(["nvfp4"], {"NVFP4_SIX": "off"})
assert work.environment == {"NVFP4_SIX": "0"} and recipe.in_environment(work.environment) == {"toy": "four"}
"""


def test_a_new_word_of_the_recipe_is_one_field() -> None:
    """Flags, make's options, plan, request and record take it from there; its arithmetic is what is left to write."""
    source = Path(nvfp4_recipe.__file__).read_text(encoding="utf-8")
    begun = source.index("    @classmethod\n    def of(")
    subprocess.run(
        [sys.executable, "-c", ITS_USE],
        input=source[:begun] + A_WORD + source[begun:],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        check=True,
    )
