"""What `--data` may name besides the built-in data: Megatron datasets, weighted and by split.

corpus/mine                       one .bin/.idx pair, by its prefix
corpus/a corpus/b                 several, as they are long
0.7 corpus/a 0.3 corpus/b         several, by weight
train=corpus/a valid=corpus/b     by split: each of train, valid and test is one of the above
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from pretraining.errors import UsageError, unknown
from pretraining.inputs import contents

SPLITS = ("train", "valid", "test")
ALL = "all"


@dataclass(frozen=True)
class Blend:
    """Datasets to draw from."""

    prefixes: tuple[str, ...]  # absolute, without ending
    weights: tuple[float, ...] | None = None  # one each, or None for by length

    def as_megatron(self) -> tuple[list[str], list[float] | None]:
        """The pair that Megatron's `blend` is."""
        return list(self.prefixes), list(self.weights) if self.weights else None


def parse(data: str) -> dict[str, Blend]:
    """The blend of each split, or of ALL where Megatron is to split it.

    A path with a space is fine alone; among others it is quoted, as in a shell.

    Raises:
        UsageError: a file is missing, a weight has no dataset, an unknown split.
    """
    if _exists(data):
        return {ALL: Blend((_prefix(data),))}
    try:
        words = shlex.split(data)
    except ValueError as error:
        raise UsageError(f"--data {data}: {error}; quotes come in pairs") from error
    parts: dict[str, list[str]] = {}
    split = ALL
    for word in words:
        name, equals, rest = word.partition("=")
        if equals and not _exists(word):
            if name not in SPLITS:
                raise unknown("split in --data", name, SPLITS)
            split, word = name, rest
        parts.setdefault(split, [])
        if word:
            parts[split].append(word)
    if len(parts) > 1 and ALL in parts:
        raise UsageError(f"--data {data}: {' '.join(parts[ALL])} belongs to no split; begin with train=")
    if not parts or (ALL not in parts and "train" not in parts):
        raise UsageError(f"--data {data}: name what to train on, as train=PREFIX")
    return {split: _blend(data, given) for split, given in parts.items()}


def _blend(data: str, words: list[str]) -> Blend:
    weights, prefixes = [], []
    for word in words:
        if (weight := _number(word)) is None or _exists(word):
            prefixes.append(_prefix(word))
        else:
            weights.append(weight)
        if len(weights) not in (0, len(prefixes), len(prefixes) + 1):
            break
    if weights and len(weights) != len(prefixes):
        raise UsageError(f"--data {data}: a weight before every dataset or before none, as in 0.7 a 0.3 b")
    if not prefixes:
        raise UsageError(f"--data {data}: a split without a dataset")
    if not all(0 < weight < math.inf for weight in weights):
        raise UsageError(f"--data {data}: a weight is a finite number above 0")
    return Blend(tuple(prefixes), tuple(weights) or None)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _exists(prefix: str) -> bool:
    plain = prefix.removesuffix(".bin").removesuffix(".idx")
    return any(Path(plain + end).is_file() for end in (".bin", ".idx"))


def _prefix(word: str) -> str:
    """The absolute prefix of a dataset that is there. Raises UsageError."""
    prefix = Path(word.removesuffix(".bin").removesuffix(".idx")).absolute()
    found = {end: prefix.with_name(prefix.name + end).is_file() for end in (".bin", ".idx")}
    for end in found:
        if wrong := contents.pointer(prefix.with_name(prefix.name + end)):
            raise UsageError(f"--data {word}: {wrong}")
    if all(found.values()):
        return str(prefix)
    if any(found.values()):
        missing = next(end for end, there in found.items() if not there)
        raise UsageError(f"--data {word}: {prefix}{missing} is missing; a Megatron dataset is a .bin and an .idx file")
    raise UsageError(
        f"--data {word}: there is no {prefix}.bin and .idx; give the prefix of a Megatron dataset without its "
        "ending, which `make data` writes, or mock or python-stdlib"
    )


def as_words(blends: dict[str, Blend]) -> str:
    """The words that `parse` reads as exactly these blends: one plain prefix, or each quoted where it needs to be."""
    if list(blends) == [ALL] and len(blends[ALL].prefixes) == 1:
        return blends[ALL].prefixes[0]
    words = []
    for split, blend in blends.items():
        weights = blend.weights or ("",) * len(blend.prefixes)
        own = [word for weight, prefix in zip(weights, blend.prefixes, strict=True) for word in (weight, prefix)]
        own = [shlex.quote(f"{word:g}" if isinstance(word, float) else word) for word in own if word != ""]
        words += own if split == ALL else [f"{split}={own[0]}", *own[1:]]
    return " ".join(words)


def prefixes(blends: dict[str, Blend]) -> list[str]:
    """Every dataset of these, each once."""
    return list(dict.fromkeys(prefix for blend in blends.values() for prefix in blend.prefixes))
