"""The NVFP4 recipe from what a person writes to what computes: flag, short form, config file, record, resumption."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.errors import UsageError
from pretraining.record import run_folder
from pretraining.request import config_file, nvfp4_recipe, settings
from pretraining.request import flags as training_flags
from pretraining.request.nvfp4_recipe import Nvfp4Recipe
from pretraining.run import run_facts

WHOLE = {"rht": "on", "stochastic": "on", "weights": "16x16"}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch) -> None:
    for name in [each for each in os.environ if each in nvfp4_recipe.SHORT or each.startswith("NVTE_")]:
        monkeypatch.delenv(name)


def resolve(*flags: str, on_gpu: bool = False) -> settings.Settings:
    return settings.resolve(training_flags.parser("x").parse_args(list(flags)), on_gpu=on_gpu, processes=1)


def refusal(*flags: str, on_gpu: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(*flags, on_gpu=on_gpu)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ("", Nvfp4Recipe()),
        ("rht=on stochastic=on weights=16x16", Nvfp4Recipe()),
        ("rht=off", Nvfp4Recipe(rht=False)),
        (" weights=1x16,  stochastic=off ", Nvfp4Recipe(stochastic=False, two_d=False)),
        ("rht=off rht=off", Nvfp4Recipe(rht=False)),
    ],
)
def test_words(words: str, recipe: Nvfp4Recipe) -> None:
    assert resolve("--nvfp4", words).nvfp4 == recipe
    assert Nvfp4Recipe.of(recipe.words()) == Nvfp4Recipe.of(recipe.changed()) == recipe
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
    ],
)
def test_wrong_words(words: str, said: str) -> None:
    assert said in refusal("--nvfp4", words)


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
    assert resolve(*chosen.as_flags()) == chosen


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


def test_what_a_process_uses_and_transformer_engine_is_told(monkeypatch) -> None:
    monkeypatch.setattr(nvfp4_recipe, "_in_use", Nvfp4Recipe())
    monkeypatch.setattr(os, "environ", {"NVTE_NVFP4_DISABLE_2D_QUANTIZATION": "1"})
    nvfp4_recipe.use(Nvfp4Recipe(rht=False))
    assert nvfp4_recipe.in_use() == Nvfp4Recipe(rht=False)
    assert os.environ == {
        "NVTE_NVFP4_DISABLE_RHT": "1",
        "NVTE_NVFP4_DISABLE_STOCHASTIC_ROUNDING": "0",
        "NVTE_NVFP4_DISABLE_2D_QUANTIZATION": "0",
    }


def test_other_switches_of_the_engine_are_facts_and_are_passed_on() -> None:
    others = {"NVTE_B": "2 3", "NVTE_A": ""}
    recipe = {"NVTE_NVFP4_DISABLE_RHT": "1", "NVFP4_2D": "0"}
    everything = {"HF_TOKEN": "secret", "N": "1", **others, **recipe}
    assert nvfp4_recipe.engine_switches(everything) == ("NVTE_A=", "NVTE_B=2 3")
    assert nvfp4_recipe.passed_on(everything) == {**others, **recipe}


A_WORD = '    scale: str = _word("scale", {"six": "six", "four": "four"}, title="block scale of", short="NVFP4_SIX")\n'
ITS_USE = """
import sys, types
name = "pretraining.request.nvfp4_recipe"
recipe = sys.modules[name] = types.ModuleType(name)
exec(sys.stdin.read(), recipe.__dict__)
from playbook.cli.make import command
from playbook.plan import place, plan
from playbook.publish import publishable
from pretraining.request import flags, settings
args = flags.parser("x").parse_args(["--nvfp4", "scale=four"])
chosen = settings.resolve(args, on_gpu=False, processes=1)
assert chosen.nvfp4.scale == "four" and "rht=on stochastic=on weights=16x16 scale=four" in chosen.as_flags()
assert settings.resolve(flags.parser("x").parse_args(chosen.as_flags()), on_gpu=False, processes=1) == chosen
assert chosen.nvfp4.facts()["scale"] == "four" and "scale" in publishable._INGREDIENTS
made = plan.make_plan(chosen, place.Place("cpu"), 1)
assert made.choices["NVFP4 recipe"] == place.Choice("block scale of four", "asked for")
assert made.request()["nvfp4"]["scale"] == "four" and "scale=four" in flags.parser("x").format_help()
[work] = command.plan(["nvfp4"], {"NVFP4_SIX": "off"})
assert work.environment == {"NVFP4_SIX": "0"} and recipe.in_environment(work.environment) == {"scale": "four"}
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
