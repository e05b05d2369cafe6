"""The variants of an ablation: NVFP4 recipes in the words of `--nvfp4`, and how many last layers stay in BF16."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from pretraining.errors import UsageError, unknown
from pretraining.request.recipe.nvfp4_recipe import INGREDIENTS, Nvfp4Recipe, as_text, words_in

REMEDIES = ("switch=0.82:bf16", "scale=4over6")  # what the default set tries beside taking something away
_WHOLE, _TAIL = "whole", "tail"


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        recipe: the words of the NVFP4 recipe that are not as in the whole one, each with its value.
        tail: last layers in BF16, None for as many as the recipe keeps.
    """

    precision: str
    recipe: str = ""
    tail: int | None = None

    @property
    def name(self) -> str:
        """As every table calls it, and as `VARIANTS=` takes it."""
        if self.precision == "bf16":
            return "BF16"
        return " ".join(filter(None, (self.recipe, "" if self.tail is None else f"{_TAIL}={self.tail}"))) or _WHOLE


BF16, WHOLE = Variant("bf16"), Variant("nvfp4")


def of(recipe: Nvfp4Recipe, tail: int | None = None) -> Variant:
    """The variant that trains by this recipe."""
    return Variant("nvfp4", as_text(recipe.changed()), tail)


def default(layers: int, head: int, tail: int) -> list[Variant]:
    """Those beside BF16 and the whole recipe, what is said to matter most first.

    Given are the layers of the model, and how many the whole recipe keeps in BF16 at its start and end.
    """
    tails = [Variant("nvfp4", tail=other) for other in (0, 1, 2) if other != tail and head + other < layers]
    without = [of(Nvfp4Recipe().without(each)) for each in INGREDIENTS]
    return [*tails[:1], *without, *map(read, REMEDIES), *tails[1:]]


def read_all(text: str) -> list[Variant]:
    """Those of "whole | rht=off | switch=0.82:forward tail=0" beside the whole recipe, which is always one.

    Raises UsageError for an unknown word, with the nearest that is one, for the whole recipe, and for one named twice.
    """
    found = [(part.strip(), read(part)) for part in text.split("|")]
    for said, variant in found:
        if variant == WHOLE and said != _WHOLE:
            raise UsageError(f"VARIANTS: {said} is the whole recipe, which is trained anyway; leave it out")
    for variant, count in Counter(variant for _, variant in found).items():
        if count > 1:
            raise UsageError(f"VARIANTS names {variant.name} {count} times; SEEDS= repeats it")
    return [variant for _, variant in found if variant != WHOLE]


def read(text: str) -> Variant:
    """The variant that is written so. Raises UsageError."""
    words = re.sub(r"\s*,\s*(?=\w+=)", " ", text).split()  # other commas are within a value
    if not words:
        raise UsageError("VARIANTS has an empty one; between two of | is a recipe, such as rht=off")
    if words == [_WHOLE]:
        return WHOLE
    if _WHOLE in words:
        raise UsageError(f"VARIANTS, {text.strip()}: {_WHOLE} is the recipe without any change; leave one out")
    known = [*Nvfp4Recipe().words(every=True), _TAIL]
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in known and (equals or word == words[0]):
            raise unknown("word in VARIANTS", name, [_WHOLE, *known])
    tails = {word for word in words if word.startswith(f"{_TAIL}=")}
    others = [word for word in words if word not in tails]
    try:
        recipe = Nvfp4Recipe.of(words_in(" ".join(others)))
    except UsageError as error:
        raise UsageError(f"VARIANTS, {text.strip()}: {error}") from error
    return of(recipe, _layers(tails) if tails else None)


def _layers(tails: set[str]) -> int:
    (word, *more) = tails
    _, _, number = word.partition("=")
    if more or not re.fullmatch(r"\d{1,9}", number, re.ASCII):
        raise UsageError(f"VARIANTS: {' '.join(sorted(tails))} is no number of last layers in BF16; write tail=0")
    return int(number)
