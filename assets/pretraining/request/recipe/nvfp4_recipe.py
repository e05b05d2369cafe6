"""The NVFP4 recipe as one value, and what Transformer Engine is told of it. Standard library only: the host plans it.

It is written in words, `rht=off stochastic=off weights=1x16`: by `--nvfp4`, in config.yaml and in the plan.
A new word is a new field of `Nvfp4Recipe`; one that is computed anew is also a field of `Rounding`, and arithmetic in
`numerics/nvfp4.py`, `nvfp4_triton.py` and `nvfp4_numba.py`. What Transformer Engine's kernels do not compute of it says
`recipe_checks.not_native`. All else passes a `Rounding` on; flags, make's options and records follow.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pretraining.errors import UsageError, unknown
from pretraining.request.precisions import NEVER, LateSwitch
from pretraining.request.recipe.kept_in_bf16 import EXAMPLE, KeptInBf16


def _word(
    word: str,
    values: dict[str, Any],
    *,
    title: str,
    short: str = "",
    engine: str = "",
    says: tuple[str, ...] = ("0", "1"),
    read: Callable[[str], Any] | None = None,
    example: str = "",
) -> Any:
    """A field of the recipe.

    Args:
        word: what it is called where it is written.
        values: as they are written, the default first.
        title: of the ingredient, for people; where a value is a word, that follows it.
        short: an environment variable that turns it on or off, 1 or 0: to the first value or the second.
        engine: Transformer Engine's own, read by its `NVFP4BlockScaling`.
        says: what that is set to for each of the values.
        read: what takes any other value; as text it is the value's one spelling. It raises UsageError for a wrong one.
        example: of what it takes.
    """
    about = {"word": word, "values": values, "title": title, "short": short, "engine": engine}
    about |= {"read": read, "example": example or list(values)[1]}
    about["says"] = dict(zip(values.values(), says, strict=False))
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
        by_row: each row has an FP32 scale of its own, and each of the transpose, in place of one for all of the matrix.
            Not for tiles.
    """

    tile: tuple[int, int] = (1, 16)
    rht: bool = False
    stochastic: bool = False
    four_over_six: str = ""
    by_row: bool = False

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
        parts = tile, "RHT" * self.rht, "stochastic" * self.stochastic, chosen, "by row" * self.by_row
        return " ".join(filter(None, parts))


@dataclass(frozen=True)
class Nvfp4Recipe:
    """What of the NVFP4 training recipe is on (arXiv 2509.25149, section 4); by default all of it.

    Attributes:
        rht: random Hadamard transform on both operands of the weight gradient.
        stochastic: stochastic rounding of output gradients.
        two_d: 16x16 block scales for weights, one quantization for forward and backward; otherwise 1x16 along the
            contraction of each product, two unlike quantizations.
        four_over_six: of which tensors each block chooses among two scales, see `Rounding`: "", "weights",
            "activations" or "all"; never of gradients, as in Transformer Engine.
        chosen_by: the error by which it does.
        activations: "rows": each token, and in the weight gradient each channel, has an FP32 scale of its own, as
            Transformer Engine's row-scaled activations have; "" one for the tensor.
        switch: as `LateSwitch.read` reads it, "" for never.
        in_bf16: as `KeptInBf16.read` reads it, "" for no layer but those at the ends.
        primary: "bf16": weights are rounded to BF16 before they are to NVFP4, as the emulation does and Megatron-Bridge
            before 0.4.2; "" as natively since then, from FP32 to NVFP4 at once.
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

    four_over_six: str = _word(
        "scale", {"6": "", "4over6": "all", "4over6:weights": "weights", "4over6:activations": "activations"},
        title="four over six of", engine="NVTE_NVFP4_4OVER6", says=("none", "all", "weights", "activations"),
    )  # fmt: skip
    chosen_by: str = _word(
        "error", {"mae": "mae", "mse": "mse"},
        title="four over six by", engine="NVTE_NVFP4_4OVER6_ERR_MODE", says=("MAE", "MSE"),
    )  # fmt: skip
    activations: str = _word(
        "activations", {"tensor": "", "rows": "rows"},
        title="activations scaled by", engine="NVTE_NVFP4_ROW_SCALED_ACTIVATION",
    )  # fmt: skip
    switch: str = _word(
        "switch", {NEVER: ""}, title="late switch at", read=LateSwitch.read, example="0.82:forward"
    )  # fmt: skip
    in_bf16: str = _word("bf16", {"none": ""}, title="in BF16", read=KeptInBf16.read, example=EXAMPLE)
    primary: str = _word("primary", {"fp4": "", "bf16": "bf16"}, title="primary weights in")

    def rounding(self, tensor: str) -> Rounding:
        """How one of TENSORS is quantized."""
        chosen = self.four_over_six in ("all", "weights" if tensor == "weight" else "activations")
        by = self.chosen_by if chosen else ""
        if tensor == "weight":
            return Rounding(tile=(16, 16) if self.two_d else (1, 16), four_over_six=by)
        if tensor == "grad_output":
            return Rounding(rht=self.rht, stochastic=self.stochastic)
        return Rounding(rht=self.rht, four_over_six=by, by_row=bool(self.activations))

    @property
    def kept_in_bf16(self) -> KeptInBf16 | None:
        """What is, None for no layer but those at the ends."""
        return KeptInBf16.read(self.in_bf16) if self.in_bf16 else None

    @classmethod
    def of(cls, words: Mapping[str, str]) -> Nvfp4Recipe:
        """The whole recipe but for these words, from `words_in`."""
        return cls(
            **{name: _VALUES[name].get(words[word], words[word]) for word, name in _FIELDS.items() if word in words}
        )

    @classmethod
    def recorded(cls, ingredients: Mapping[str, Any]) -> Nvfp4Recipe:
        """What `facts` gave; what an older record does not name was as it is by default."""
        return cls(**{name: value for name, value in ingredients.items() if name in _ABOUT})

    def words(self, *, every: bool = False) -> dict[str, str]:
        """The words of `facts` with their values; or every word, which leaves nothing to what is said elsewhere."""
        said = {name: {value: text for text, value in values.items()} for name, values in _VALUES.items()}
        facts = dataclasses.asdict(self) if every else self.facts()
        return {word: said[name].get(facts[name], facts[name]) for word, name in _FIELDS.items() if name in facts}

    def changed(self) -> dict[str, str]:
        """The words that are not as in the whole recipe."""
        return {word: value for word, value in self.words().items() if value not in list(_VALUES[_FIELDS[word]])[:1]}

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
TITLES: dict[str, str] = {name: about["title"] for name, about in _ABOUT.items()}  # field: what it is called
_DEFAULTS = {each.name: each.default for each in dataclasses.fields(Nvfp4Recipe)}
# Those of the whole recipe, which are on or off; the other fields are what may be added to it.
INGREDIENTS: dict[str, str] = {name: title for name, title in TITLES.items() if isinstance(_DEFAULTS[name], bool)}
# short form in the environment: what it turns off
SHORT: dict[str, str] = {about["short"]: about["title"] for about in _ABOUT.values() if about["short"]}
ENGINE_VARIABLES = {about["engine"]: name for name, about in _ABOUT.items() if about["engine"]}  # variable: field
WORDS = tuple(_FIELDS)
# What can be said in place of the default.
HELP = " ".join(f"{about['word']}={about['example']}" for about in _ABOUT.values())
# Each of a word's other values, of one that is read an example.
EXAMPLES = tuple(
    f"{about['word']}={value}"
    for about in _ABOUT.values()
    for value in (list(about["values"])[1:] or [about["example"]])
)


def native_roundings() -> list[Rounding]:
    """What Transformer Engine's own kernels do by the whole recipe, and without each ingredient of it."""
    recipes = [Nvfp4Recipe(), *(Nvfp4Recipe().without(name) for name in INGREDIENTS)]
    return list(dict.fromkeys(recipe.rounding(tensor) for recipe in recipes for tensor in TENSORS))


def differs(ingredients: Mapping[str, Any]) -> str:
    """How the recipe of a record's `Nvfp4Recipe.facts` is not the whole one: "without 2D scaling"; "" where it is."""
    off = " and ".join(TITLES.get(name, name) for name, on in ingredients.items() if not on)
    others = [f"{TITLES.get(name, name)} {value}" for name, value in ingredients.items() if isinstance(value, str)]
    return ", ".join([f"without {off}"] * bool(off) + others)


def words_in(text: str) -> dict[str, str]:
    """Words and their values, as in "rht=off weights=1x16 bf16=qkv,proj", between them blanks or commas.

    Raises:
        UsageError: a word or value that is none, with the nearest that is; or a word twice.
    """
    found: dict[str, str] = {}
    told = re.sub(r"\s*,\s*", ",", text).strip(", \t\n")
    for part in re.split(r"\s+|,(?=[^\s,=]*=)", told) if told else ():  # a comma may also be within a value
        word, equals, value = part.partition("=")
        if word not in _FIELDS:
            raise unknown("word in --nvfp4", word, _FIELDS)
        values, read = _VALUES[_FIELDS[word]], _ABOUT[_FIELDS[word]]["read"]
        if equals and read and value not in values:
            value = str(read(value))
        elif not equals or value not in values:
            raise unknown(f"value of {word} in --nvfp4", value, [f"{word}={each}" for each in values])
        if found.setdefault(word, value) != value:
            raise UsageError(f"--nvfp4 {text}: {word} has two values, {found[word]} and {value}; drop one")
    return found


def is_spelled(name: str, value: str) -> bool:
    """Whether a record may hold this value of a word or a field: one of its own, or one that is read as it is."""
    about = _ABOUT[_FIELDS.get(name, name)]
    if value in about["values"] or value in about["values"].values():
        return True
    try:
        return about["read"] is not None and str(about["read"](value)) == value
    except UsageError:
        return False


def as_text(words: Mapping[str, str]) -> str:
    """What `words_in` reads as these."""
    return " ".join(f"{word}={value}" for word, value in words.items())


def in_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The words that short forms stand for, `NVFP4_RHT=0` and its kin. Raises UsageError for other values."""
    return {_ABOUT[name]["word"]: value for name, (_, value) in _set_in(environment).items()}


def short_forms(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those that are set, by word, as one would type them; Transformer Engine's own where they turn something off."""
    found = _set_in(environment)
    return {_ABOUT[name]["word"]: f"{variable}={environment[variable]}" for name, (variable, _) in found.items()}


def _set_in(environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """By field the variable that says something of it, and the value as it is written; ours before the engine's."""
    found = {}
    for name, about in _ABOUT.items():
        short, engine, values = about["short"], about["engine"], list(about["values"])
        if short in environment:
            if environment[short] not in ("0", "1"):
                raise UsageError(f"{short} is {environment[short]!r}; set it to 1 (on, the default) or 0 (off)")
            found[name] = (short, values[environment[short] == "0"])
        elif engine in environment:
            says = list(about["says"].values())
            said = environment[engine].upper() if says[0].isupper() else environment[engine]
            if said not in says:
                raise UsageError(f"{engine} is {environment[engine]!r}; Transformer Engine takes {', '.join(says)}")
            if said != says[0]:
                found[name] = (engine, values[says.index(said)])
    return found


def is_variable(name: str) -> bool:
    """Whether an environment variable says something of the recipe."""
    return name in SHORT or name in ENGINE_VARIABLES


def passed_on(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a container or a job gets of the caller's: short forms, and all of Transformer Engine's variables."""
    return {name: value for name, value in environment.items() if name in SHORT or name.startswith("NVTE_")}


def engine_switches(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Transformer Engine's other variables that are set, as NAME=value: each may change the arithmetic or the kernels.

    Call before Megatron is imported, which sets some of them.
    """
    others = {name for name in environment if name.startswith("NVTE_")} - ENGINE_VARIABLES.keys()
    return tuple(f"{name}={environment[name]}" for name in sorted(others))


_in_use = Nvfp4Recipe()


def use(recipe: Nvfp4Recipe) -> None:
    """Train by this recipe in this process, natively or emulated. Call before Transformer Engine is imported."""
    global _in_use
    _in_use = recipe
    for variable, name in ENGINE_VARIABLES.items():
        os.environ[variable] = _ABOUT[name]["says"][getattr(recipe, name)]


def in_use() -> Nvfp4Recipe:
    """The recipe of this process: the whole one, unless `use` was called."""
    return _in_use
