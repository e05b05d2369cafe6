"""Reads `metrics.jsonl`, compressed or not, into columns: a million iterations in some seconds.

The lines are `pretraining.record.MetricsWriter`'s, which are all alike: one pattern takes them, and `json` whatever is
not as the pattern expects it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from playbook.lines import Lines, floats, whole_lines
from pretraining import record

_NUMBER = rb"(-?[0-9]++(?:\.[0-9]++)?+(?:e[+-]?[0-9]++)?+|null)"
_COLUMNS = ("iteration", "loss", "step_time_s", "grad_norm", "skipped", "time")
_LINE = re.compile(
    rb'\{"kind": "train", "iteration": ([0-9]++), "loss": ' + _NUMBER + rb', "step_time_s": ' + _NUMBER
    + rb', "grad_norm": ' + _NUMBER + rb', "learning_rate": [^,}\n]++, "skipped": (true|false)'
    rb'(?:, "finite": (?:true|false))?+, "time": ' + _NUMBER + rb'(?:, "[a-z_]++": [^,{}\n]++)*+\}\n'
    rb"|([^\n]*+\n|[^\n]++)"
)  # fmt: skip


def read(path: Path) -> tuple[Lines, list[dict[str, Any]]]:
    """The training lines and the evaluations of a `metrics.jsonl`; none of either where there is no file.

    A line that is no JSON, such as the last one of a run that lost its power, is left out.

    Raises:
        OSError, ValueError: the file cannot be read, or is half of a compressed one.
    """
    parts: list[Lines] = []
    evaluations: list[dict[str, Any]] = []
    if record.there(path).exists():
        with record.open_lines(path) as file:
            for text in whole_lines(file):
                _take(text, parts, evaluations)
    return Lines.joined(parts), evaluations


def _take(text: bytes, parts: list[Lines], evaluations: list[dict[str, Any]]) -> None:
    ordinary: list[tuple[bytes, ...]] = []
    other: list[dict[str, Any]] = []

    def flush() -> None:
        """Keep the order in which they were written."""
        if ordinary:
            parts.append(_lines(ordinary))
            ordinary.clear()
        if other:
            parts.append(Lines.of(other))
            other.clear()

    for match in _LINE.findall(text):
        if not match[-1]:
            if other:
                flush()
            ordinary.append(match)
        elif line := _parsed(match[-1]):
            if line.get("kind") == "eval":
                evaluations.append(line)
            elif line.get("kind") == "train":
                if ordinary:
                    flush()
                other.append(line)
    flush()


def _lines(matches: list[tuple[bytes, ...]]) -> Lines:
    *numbers, skipped, time, _ = zip(*matches, strict=True)
    columns = [*map(floats, numbers), np.array([text == b"true" for text in skipped], dtype=float), floats(time)]
    return Lines(dict(zip(_COLUMNS, columns, strict=True)))


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:  # of JSON and of UTF-8
        return None
    return line if isinstance(line, dict) else None
