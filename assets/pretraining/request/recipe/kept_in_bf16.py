"""Which linear layers stay in BF16 while the others train in NVFP4, as `bf16=` of the recipe says.

qkv,proj                the first and the last product of attention, in every layer
layers:0,1,28-31        all four products of these layers, counted from 0
qkv,fc2:30,31           one product of every layer, and another one of two layers
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pretraining.errors import UsageError, unknown

PROJECTIONS = ("qkv", "proj", "fc1", "fc2")  # in Megatron "linear_qkv" and so on
_LAYERS = "layers"  # all of them
_RANGE = r"(\d{1,4})(?:-(\d{1,4}))?"
EXAMPLE = "qkv,fc2:0,1,layers:30-31"


@dataclass(frozen=True)
class KeptInBf16:
    """Equal where the same products are kept."""

    everywhere: frozenset[str]  # those of PROJECTIONS that are kept in every layer
    layers: dict[str, frozenset[int]]  # of each of the others those in which it is kept, from 0 in the whole model

    @classmethod
    def read(cls, text: str) -> KeptInBf16:
        """From the words above. Raises UsageError for others, with what is meant or would work."""
        found: dict[str, set[int]] = {}
        everywhere = set()
        item = ""  # that further layers belong to
        for part in text.split(","):
            name, colon, layers = part.partition(":")
            if part[:1].isdigit():
                name, layers = item, part
                if not item:
                    raise UsageError(f"bf16={text} in --nvfp4: {part!r} follows no list of layers; write layers:{part}")
            elif name not in (*PROJECTIONS, _LAYERS):
                raise unknown("product in bf16= of --nvfp4", name, (*PROJECTIONS, f"{_LAYERS}:0,1"))
            elif not colon and name != _LAYERS:
                everywhere.add(name)
                item = ""
                continue
            found.setdefault(name, set()).update(_numbers(layers, text, name))
            item = name
        return cls._of(everywhere, {name: found.get(name, set()) | found.get(_LAYERS, set()) for name in PROJECTIONS})

    @classmethod
    def _of(cls, everywhere: Iterable[str], layers: dict[str, set[int]]) -> KeptInBf16:
        return cls(
            frozenset(everywhere),
            {name: frozenset(layers[name]) for name in PROJECTIONS if name not in everywhere and layers[name]},
        )

    def __str__(self) -> str:
        """As it is recorded: what `read` takes, spelled one way."""
        others = [name for name in PROJECTIONS if name not in self.everywhere]
        whole = frozenset.intersection(*(self.layers.get(name, frozenset()) for name in others)) if others else ()
        rest = {name: self.layers.get(name, frozenset()).difference(whole) for name in others}
        lists = {_LAYERS: whole, **rest}
        return ",".join(
            [name for name in PROJECTIONS if name in self.everywhere]
            + [f"{name}:{_ranges(numbers)}" for name, numbers in lists.items() if numbers]
        )

    def holds(self, projection: str, layer: int) -> bool:
        """Whether one of PROJECTIONS stays in BF16 in that layer, counted from 0 in the whole model."""
        return projection in self.everywhere or layer in self.layers.get(projection, ())

    def of(self, layers: int, quantized: range) -> KeptInBf16:
        """The same in a model of so many layers; a list of all of them is every layer's.

        Raises:
            UsageError: the model has no such layer, or nothing of its `quantized` layers is left in NVFP4.
        """
        named = max((max(each) for each in self.layers.values()), default=0)
        if named >= layers:
            raise UsageError(
                f"bf16={self} in --nvfp4 names layer {named}; the model has {layers}, 0 to {layers - 1}: leave it out"
            )
        found = self._of(
            self.everywhere | {name for name, each in self.layers.items() if len(each) == layers},
            {name: set(self.layers.get(name, ())) for name in PROJECTIONS},
        )
        if all(found.holds(name, layer) for name in PROJECTIONS for layer in quantized):
            raise UsageError(
                f"bf16={self} in --nvfp4 leaves nothing in NVFP4, which is --precision bf16 (PRECISION=bf16): take it, "
                "or name less"
            )
        return found


def _numbers(listed: str, text: str, name: str) -> range:
    """The layers of "3" or "28-31"."""
    match = re.fullmatch(_RANGE, listed, re.ASCII)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise UsageError(
            f"bf16={text} in --nvfp4: {listed!r} is neither a layer nor a range of them; write {name}:0,1,28-31"
        )
    return range(first, last + 1)


def _ranges(numbers: Iterable[int]) -> str:
    """ "0,1,28-31": neighbours as a range from three on."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
