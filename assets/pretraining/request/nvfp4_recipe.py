"""The NVFP4 recipe as one value, and what Transformer Engine is told of it. Standard library only: the host plans it.

It is written in words, `rht=off stochastic=off weights=1x16`: by `--nvfp4`, in config.yaml and in the plan.
A new word is a new field of `Nvfp4Recipe`; one that is computed anew is also a field of `Rounding`, and arithmetic in
`numerics/nvfp4.py`, `nvfp4_triton.py` and `nvfp4_numba.py`. All else passes a `Rounding` on; flags, make's
options and records follow.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretraining.errors import UsageError, unknown


def _word(word: str, values: dict[str, Any], *, title: str, short: str = "", engine: str = "") -> Any:
    """A field of the recipe, on as it is by default.

    Args:
        word: what it is called where it is written.
        values: as they are written, the default first.
        title: of the ingredient, for people.
        short: an environment variable that turns it on or off, 1 or 0: to the first value or the second.
        engine: Transformer Engine's own, which turns it off where it is 1; read by its `NVFP4BlockScaling`.
    """
    about = {"word": word, "values": values, "title": title, "short": short, "engine": engine}
    return dataclasses.field(default=next(iter(values.values())), metadata=about)


TENSORS = ("input", "weight", "grad_output")  # of a linear layer, by Transformer Engine's names


@dataclass(frozen=True)
class Rounding:
    """How one matrix is quantized: what the specification and both fast versions of it are asked for.

    Attributes:
        tile: the elements that share a block scale: (1, 16) along each axis, or (16, 16), one result for both.
        rht: rotate blocks along the rows ("columns") first; those along a row never are.
        stochastic: round to one of the two neighbours by chance, so that the mean is exact; else to the nearest.
        four_over_six: "mae" or "mse": each block takes the usual scale or 1.5 times it, whichever has the smaller mean
            absolute or squared error; "" the usual one. Only to nearest.
    """

    tile: tuple[int, int] = (1, 16)
    rht: bool = False
    stochastic: bool = False
    four_over_six: str = ""

    @property
    def of_rows(self) -> Rounding:
        """The same for blocks along a row."""
        return dataclasses.replace(self, rht=False)

    @property
    def is_own_transpose(self) -> bool:
        """Whether one result is the matrix's and its transpose's."""
        return self.tile[0] == self.tile[1]

    @property
    def name(self) -> str:
        """Such as "1x16 RHT stochastic"."""
        tile, chosen = "x".join(map(str, self.tile)), f"4over6 {self.four_over_six}" * bool(self.four_over_six)
        return " ".join(filter(None, (tile, "RHT" * self.rht, "stochastic" * self.stochastic, chosen)))


@dataclass(frozen=True)
class Nvfp4Recipe:
    """What of the NVFP4 training recipe is on (arXiv 2509.25149, section 4); by default all of it.

    Attributes:
        rht: random Hadamard transform on both operands of the weight gradient.
        stochastic: stochastic rounding of output gradients.
        two_d: 16x16 block scales for weights, one quantization for forward and backward; otherwise 1x16 along the
            contraction of each product, two unlike quantizations.
    """

    rht: bool = _word(
        "rht", {"on": True, "off": False},
        title="Hadamard transform", short="NVFP4_RHT", engine="NVTE_NVFP4_DISABLE_RHT",
    )  # fmt: skip
    stochastic: bool = _word(
        "stochastic", {"on": True, "off": False},
        title="stochastic rounding", short="NVFP4_STOCHASTIC", engine="NVTE_NVFP4_DISABLE_STOCHASTIC_ROUNDING",
    )  # fmt: skip
    two_d: bool = _word(
        "weights", {"16x16": True, "1x16": False},
        title="2D scaling", short="NVFP4_2D", engine="NVTE_NVFP4_DISABLE_2D_QUANTIZATION",
    )  # fmt: skip

    def rounding(self, tensor: str) -> Rounding:
        """How one of TENSORS is quantized."""
        if tensor == "weight":
            return Rounding(tile=(16, 16) if self.two_d else (1, 16))
        return Rounding(rht=self.rht, stochastic=self.stochastic and tensor == "grad_output")

    @classmethod
    def of(cls, words: Mapping[str, str]) -> Nvfp4Recipe:
        """The whole recipe but for these words, from `words_in`."""
        chosen = {name: _VALUES[name][words[word]] for word, name in _FIELDS.items() if word in words}
        return cls(**chosen)

    @classmethod
    def recorded(cls, ingredients: Mapping[str, Any]) -> Nvfp4Recipe:
        """What `facts` gave; what an older record does not name was as it is by default."""
        return cls(**{name: value for name, value in ingredients.items() if name in _ABOUT})

    def words(self) -> dict[str, str]:
        """Every word with its value."""
        said = {name: {value: text for text, value in values.items()} for name, values in _VALUES.items()}
        return {word: said[name][getattr(self, name)] for word, name in _FIELDS.items()}

    def changed(self) -> dict[str, str]:
        """The words that are not as in the whole recipe."""
        whole = Nvfp4Recipe().words()
        return {word: value for word, value in self.words().items() if value != whole[word]}

    def facts(self) -> dict[str, Any]:
        """For the record, by field: whether each ingredient is on, and any other value that is not the default."""
        found = dataclasses.asdict(self)
        return {name: value for name, value in found.items() if isinstance(value, bool) or value != _DEFAULTS[name]}

    def without(self, field: str) -> Nvfp4Recipe:
        """The same with the second value of a field: an ingredient turned off."""
        return dataclasses.replace(self, **{field: list(_VALUES[field].values())[1]})


_ABOUT = {each.name: each.metadata for each in dataclasses.fields(Nvfp4Recipe)}
_VALUES: dict[str, dict[str, Any]] = {name: about["values"] for name, about in _ABOUT.items()}
_FIELDS: dict[str, str] = {about["word"]: name for name, about in _ABOUT.items()}
# field: what the ingredient is called
INGREDIENTS: dict[str, str] = {name: about["title"] for name, about in _ABOUT.items()}
# short form in the environment: what it turns off
SHORT: dict[str, str] = {about["short"]: about["title"] for about in _ABOUT.values() if about["short"]}
_DEFAULTS = {each.name: each.default for each in dataclasses.fields(Nvfp4Recipe)}
_ENGINE = {about["engine"]: name for name, about in _ABOUT.items() if about["engine"]}  # variable: field
# word: its values, the default first
VALUES = {word: tuple(_VALUES[name]) for word, name in _FIELDS.items()}
# What can be said in place of the default.
HELP = " ".join(f"{word}={values[1]}" for word, values in VALUES.items())


def native_roundings() -> list[Rounding]:
    """All that Transformer Engine's own kernels do: by the whole recipe, and without each that it can leave out."""
    recipes = [Nvfp4Recipe(), *(Nvfp4Recipe().without(name) for name in _ENGINE.values())]
    return list(dict.fromkeys(recipe.rounding(tensor) for recipe in recipes for tensor in TENSORS))


def differs(ingredients: Mapping[str, Any]) -> str:
    """How the recipe of a record's `Nvfp4Recipe.facts` is not the whole one: "without 2D scaling"; "" where it is."""
    off = " and ".join(INGREDIENTS.get(name, name) for name, on in ingredients.items() if not on)
    others = [f"{INGREDIENTS.get(name, name)} {value}" for name, value in ingredients.items() if isinstance(value, str)]
    return ", ".join([f"without {off}"] * bool(off) + others)


def words_in(text: str) -> dict[str, str]:
    """Words and their values, as in "rht=off weights=1x16", between them blanks or commas.

    Raises:
        UsageError: a word or value that is none, with the nearest that is; or a word twice.
    """
    found: dict[str, str] = {}
    for part in text.replace(",", " ").split():
        word, equals, value = part.partition("=")
        if word not in _FIELDS:
            raise unknown("word in --nvfp4", word, _FIELDS)
        values = _VALUES[_FIELDS[word]]
        if not equals or value not in values:
            raise unknown(f"value of {word} in --nvfp4", value, [f"{word}={each}" for each in values])
        if found.setdefault(word, value) != value:
            raise UsageError(f"--nvfp4 {text}: {word} has two values, {found[word]} and {value}; drop one")
    return found


def as_text(words: Mapping[str, str]) -> str:
    """What `words_in` reads as these."""
    return " ".join(f"{word}={value}" for word, value in words.items())


def in_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The words that short forms stand for, `NVFP4_RHT=0` and its kin. Raises UsageError for other values."""
    return {_ABOUT[name]["word"]: list(_VALUES[name])[on == "0"] for name, (_, on) in _set_in(environment).items()}


def short_forms(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those that are set, by word, as one would type them; Transformer Engine's own where they turn something off."""
    found = _set_in(environment)
    return {_ABOUT[name]["word"]: f"{variable}={environment[variable]}" for name, (variable, _) in found.items()}


def _set_in(environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """By field the variable that says something of it, and what: "1" on, "0" off. Ours goes before the engine's."""
    found = {}
    for name, about in _ABOUT.items():
        short, engine = about["short"], about["engine"]
        if short in environment:
            if environment[short] not in ("0", "1"):
                raise UsageError(f"{short} is {environment[short]!r}; set it to 1 (on, the default) or 0 (off)")
            found[name] = (short, environment[short])
        elif environment.get(engine) == "1":
            found[name] = (engine, "0")
    return found


def passed_on(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a container or a job gets of the caller's: short forms, and all of Transformer Engine's variables."""
    return {name: value for name, value in environment.items() if name in SHORT or name.startswith("NVTE_")}


def engine_switches(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Transformer Engine's other variables that are set, as NAME=value: each may change the arithmetic or the kernels.

    Call before Megatron is imported, which sets some of them.
    """
    others = {name for name in environment if name.startswith("NVTE_")} - _ENGINE.keys()
    return tuple(f"{name}={environment[name]}" for name in sorted(others))


_in_use = Nvfp4Recipe()


def use(recipe: Nvfp4Recipe) -> None:
    """Train by this recipe in this process, natively or emulated. Call before Transformer Engine is imported."""
    global _in_use
    _in_use = recipe
    for variable, name in _ENGINE.items():
        os.environ[variable] = "0" if getattr(recipe, name) else "1"


def in_use() -> Nvfp4Recipe:
    """The recipe of this process: the whole one, unless `use` was called."""
    return _in_use
