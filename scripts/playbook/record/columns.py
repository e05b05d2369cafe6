"""The training lines of a run as columns: a million iterations are an array each of loss, step time and so on.

A list of a million dictionaries takes 700 MB. `Lines` behaves as that list where one line is looked at, and gives whole
columns to whoever computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

import numpy as np

CHUNK = 1 << 22  # bytes read at once
LONGEST_LINE = 1 << 24  # bytes; a checkpoint given by mistake may have no line end at all

Column = np.ndarray  # float64, one value a line, NaN where it is not known

# The columns that are kept, and which of them count something.
COLUMNS = ("iteration", "loss", "step_time_s", "grad_norm", "skipped", "nan_iterations", "model_tflops", "time",
           "global_batch_size")  # fmt: skip
_SUMS = {"skipped", "nan_iterations"}
_COUNTS = {"iteration", *_SUMS}


class Lines(Sequence[dict[str, Any]]):
    """Training lines in order of iteration, from columns by name; one that is left out is NaN in every line."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = dict(columns)
        self._length = len(next(iter(columns.values()), ()))

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> Lines:
        """The same from dictionaries, None becoming NaN; lines without an iteration are left out."""
        if isinstance(lines, Lines):
            return lines
        kept = [line for line in lines if isinstance(line.get("iteration"), int)]
        return cls({name: np.array([_number(line.get(name)) for line in kept]) for name in COLUMNS})

    @classmethod
    def joined(cls, parts: Sequence[Lines]) -> Lines:
        """Several pieces as one, in their order."""
        names = [name for name in COLUMNS if any(name in part._columns for part in parts)] or ["iteration"]
        nothing = np.empty(0)
        return cls({name: np.concatenate([nothing, *(part.column(name) for part in parts)]) for name in names})

    def column(self, name: str) -> Column:
        """The values of one column, [len(self)], NaN where not known."""
        found = self._columns.get(name)
        return np.full(self._length, np.nan) if found is None else found

    @property
    def iterations(self) -> Column:
        """Which iteration each line ends with."""
        return self.column("iteration")

    @property
    def last(self) -> int:
        """The last iteration, 0 without any."""
        return int(self.iterations[-1]) if self._length else 0

    @property
    def every(self) -> int:
        """How many iterations a line stands for: `log_interval`. A line that is missing changes nothing."""
        return int(np.median(np.diff(self.iterations))) if self._length > 1 else 1

    def coarse(self, every: int) -> Lines:
        """Lines that stand for `every` iterations each, means of these; a last one that is not whole is left out.

        `every` is a multiple of what a line stands for now, and so are all iterations.
        """
        at = np.ceil(self.iterations / every)
        whole = self.iterations <= every * (self.last // every)
        blocks, first = np.unique(at[whole], return_index=True)

        def means(values: Column) -> Column:
            known = np.isfinite(values)
            sums = (np.add.reduceat(each, first) for each in (np.where(known, values, 0.0), known.astype(float)))
            with np.errstate(invalid="ignore"):
                return np.divide(*sums)

        found = {name: means(values[whole]) for name, values in self._columns.items()} if len(first) else {}
        counts = {name: np.add.reduceat(self.column(name)[whole], first) for name in found if name in _SUMS}
        return Lines({**found, **counts, "iteration": blocks * every})

    def between(self, first: float, last: float) -> Lines:
        """The lines whose iteration is from `first` to `last`, both included."""
        ends = np.searchsorted(self.iterations, [first, last + 0.5])
        return self[int(ends[0]) : int(ends[1])]

    def where(self, keep: np.ndarray) -> Lines:
        """The lines where `keep`, [len(self)] of bool, says so."""
        return Lines({name: column[keep] for name, column in self._columns.items()})

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int | slice) -> Any:  # a line as a dictionary, or of a slice its `Lines`
        if isinstance(index, slice):
            return Lines({name: column[index] for name, column in self._columns.items()})
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return {name: _value(name, column[index]) for name, column in self._columns.items()}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Lines):
            return NotImplemented
        return len(self) == len(other) and all(
            np.array_equal(self.column(name), other.column(name), equal_nan=True) for name in COLUMNS
        )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def _value(name: str, value: float) -> float | int | None:
    if np.isnan(value):
        return None
    return int(value) if name in _COUNTS else float(value)


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The content of a file in pieces of some MiB that end with a line, but for the last."""
    rest = b""
    for chunk in iter(partial(file.read, CHUNK), b""):
        text, newline, rest = (rest + chunk).rpartition(b"\n")
        yield text + newline
        if len(rest) > LONGEST_LINE:
            yield rest
            rest = b""
    yield rest


def floats(texts: Sequence[bytes]) -> Column:
    """Numbers that a pattern has found to be numbers; NaN for an empty text and for JSON's null."""
    if (different := set(texts)) <= {b"0"}:
        return np.zeros(len(texts))
    if different & {b"", b"null"}:
        texts = [b"nan" if text in (b"", b"null") else text for text in texts]
    return np.fromstring(b" ".join(texts), sep=" ")
