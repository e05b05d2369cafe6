"""Overrides in Hydra's grammar: what a value means is what Hydra says, or is refused."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from pretraining.errors import UsageError
from pretraining.megatron import fields, grammar
from pretraining.request import flags as training_flags
from pretraining.request import overrides

Backend = enum.Enum("Backend", {"auto": 1, "none": 2})
Impl = Literal["none", "local"]


def converted(hint: Any, text: str) -> Any:
    return fields.convert(hint, overrides.Word(text))


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "1_000", 1000),
        (int, "1e3", 1000),
        (int, "010", 10),
        (float, "1e-4", 1e-4),
        (float, ".5", 0.5),
        (float, "3", 3.0),
        (bool, "TRUE", True),
        (int | None, "null", None),
        (int | None, "NULL", None),
        (str | None, "null", None),
        (str | None, "'null'", "null"),
        (str | None, '"None"', "None"),
        (str, "12", "12"),
        (str, "1_000", "1_000"),
        (str, "1e-4", "1e-4"),
        (str, "007", "007"),
        (str, "true", "true"),
        (str, "yes", "yes"),
        (str, "", ""),
        (str, "''", ""),
        (str, "a b", "a b"),
        (str, "'a, b'", "a, b"),
        (str, '"[x]"', "[x]"),
        (str, "'it\\'s'", "it's"),
        (str, "it's", "it's"),
        (str, "9999,8,2", "9999,8,2"),
        (str, "a=b", "a=b"),
        (str, "1:30", "1:30"),
        (str, "2026-01-01", "2026-01-01"),
        (str, "http://host:80/p?q=1", "http://host:80/p?q=1"),
        (str, "café (v2) #3", "café (v2) #3"),
        (Path, "/a/b c", Path("/a/b c")),
        (Path, "12", Path("12")),
        (list[str], "[core_attn,mlp]", ["core_attn", "mlp"]),
        (list[str], "['a, b', \"null\"]", ["a, b", "null"]),
        (list[str], "[yes, on, a#b]".replace("#", "/"), ["yes", "on", "a/b"]),
        (list[float], "[1, 2.5, 1e-4]", [1.0, 2.5, 1e-4]),
        (tuple[float, float], "[0.9, 0.95]", (0.9, 0.95)),
        (list[int] | None, "[]", []),
        (list[int | None], "[1, null]", [1, None]),
        (list[list[int]], "[[1,2],[3]]", [[1, 2], [3]]),
        (dict, "{a:1}", {"a": 1}),
        (dict, "{a: 1, b: [x, null], c: {d: 'e f'}}", {"a": 1, "b": ["x", None], "c": {"d": "e f"}}),
        (dict | None, "{}", {}),
        (Any, "[1, a, '2']", [1, "a", "2"]),
        (Any, "'5'", "5"),
        (Any, "1:30", "1:30"),
        (Any, "0x10", "0x10"),
        (int | str, "12", 12),
        (int | str, "12x", "12x"),
        (Impl | None, "none", "none"),
        (Impl | None, "null", None),
        (Backend | None, "none", Backend.none),
    ],
)
def test_a_value_means_what_hydra_says(hint: Any, text: str, value: Any) -> None:
    found = converted(hint, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("hint", "text", "said"),
    [
        (int, "8.9", "'8.9' is not a whole number"),
        (int, "true", "'true' is not a whole number"),
        (int, "inf", "'inf' is not a whole number"),
        (int, "nan", "'nan' is not a whole number"),
        (int, "0x10", "'0x10' is not a whole number"),
        (int, "1:30", "'1:30' is not a whole number"),
        (int, "null", "'null' is not a whole number"),
        (int | None, "None", "write null for none"),
        (str | None, "None", "write null for none, and 'None' in quotes for the text"),
        (str, "null", "'null' is not text"),
        (float, "1,2", "it reads as several values to try in turn"),
        (float, "", "'' is not a number"),
        (bool, "yes", "'yes' is not true or false"),
        (bool, "on", "'on' is not true or false"),
        (bool, "1", "'1' is not true or false"),
        (str, "[a]", "'[a]' is not text"),
        (str, "'open", "Hydra's grammar does not read it"),
        (list[int], "[1, 2", "Hydra's grammar does not read it"),
        (list[int], "[1, 2]]", "Hydra's grammar does not read it"),
        (list[int], "(1, 2)", "Hydra's grammar does not read it"),
        (list[int], "1,2", "[a,b] is a list"),
        (list[int], "range(1,3)", "it reads as several values"),
        (list[int], "[1.5]", "'[1.5]' is not "),
        (tuple[float, float], "[0.9]", "'[0.9]' is not "),
        (dict, "{a: 1", "Hydra's grammar does not read it"),
        (dict, "{a}", "Hydra's grammar does not read it"),
        (str, "${oc.env:HOME}", "is not resolved here"),
        (dict, "{a: ${model.x}}", "is not resolved here"),
    ],
)
def test_what_means_nothing_else_is_refused(hint: Any, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as told:
        converted(hint, text)
    assert said in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("hint", "value", "found"),
    [(float, "1e-4", 1e-4), (str | None, "null", "null"), (str, "'a'", "'a'"), (list[float], ["1e-4", 2], [1e-4, 2.0])],
)
def test_a_value_of_yaml_stays_what_yaml_says(hint: Any, value: Any, found: Any) -> None:
    assert fields.convert(hint, value) == found


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 1, -2.5, 1e-4, 1e22, float("inf"), "a", "a b", "null", "it's", "\\", "a\\", "\\'", "[x", "1", ""),
        *("1e-4", "é", "a,b", "x\ny", 'say "x"', "a\\b'c\\", ["a", None, "null", ["x y"]], []),
        {"a": 1, "b c": {"d": [1, 2.0]}, "_target_": "torch.float32", "x:y": "z"},
    ],
)
def test_what_is_written_is_read_again(value: Any) -> None:
    found = grammar.read(grammar.write(value))
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["12", "null", "None", "a b", " a", "it's", "'a'", "[a]", "9999,8,2", "café", ""])
def test_text_of_a_field_is_read_again(text: str) -> None:
    assert converted(str | None, fields.as_override(text)) == text


def test_a_dict_changes_the_keys_that_it_names() -> None:
    """As Hydra does. YAML's, of a file, is the whole."""

    @dataclass
    class Config:
        mixed_precision: None = None
        given: dict[str, Any] = field(default_factory=lambda: {"a": 1, "b": {"c": 2, "d": 3}})

    assert fields.set_field(Config(), "given", overrides.Word("{b: {c: 4}, e: 5}")) == {
        **{"a": 1, "b": {"c": 4, "d": 3}, "e": 5},
    }
    assert fields.set_field(Config(), "given.b", overrides.Word("{c: 4}")) == {"c": 4, "d": 3}
    assert fields.set_field(Config(), "given.b", {"c": 4}) == {"c": 4}


@pytest.mark.parametrize(
    ("words", "quoted"),
    [
        (["model.x=[1,", "2]"], "'model.x=[1, 2]'"),
        (["--seed", "3", "optimizer.betas=[0.9,", "0.95]"], "'optimizer.betas=[0.9, 0.95]'"),
        (["model.x={a:", "1,", "b=2}", "optimizer.lr=1"], "'model.x={a: 1, b=2}'"),
        (["logger.wandb_exp_name=my", "run"], "'logger.wandb_exp_name=my run'"),
        (["optimizer.lr=", "1e-4"], "'optimizer.lr= 1e-4'"),
    ],
)
def test_a_blank_that_splits_a_value_is_explained(words: list[str], quoted: str) -> None:
    with pytest.raises(UsageError) as told:
        training_flags.parser("x").parse_args(words)
    assert "a blank splits the value; quote it, as " + quoted in str(told.value)


@pytest.mark.parametrize(
    "words",
    [["optimizer.lr=1", "model.x=[1, 2]"], ["model.x=", "optimizer.lr=1"], ["model.x={a: 1}", "--seed", "3"]],
)
def test_whole_values_are_taken(words: list[str]) -> None:
    assert training_flags.parser("x").parse_args(words).overrides == [word for word in words if "=" in word]
