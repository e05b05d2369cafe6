"""Reads `metrics.jsonl`, compressed or not, into columns: a million iterations in some seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec.structs import asdict

from playbook.record.columns import Lines, whole_lines
from pretraining.record import run_folder, schema

_Iteration = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class _Train(msgspec.Struct, tag_field="kind", tag="train"):
    """What is kept of a training line, see `pretraining.record.run_folder.MetricsWriter`."""

    iteration: _Iteration
    loss: float | None = None
    step_time_s: float | None = None
    grad_norm: float | None = None
    skipped: bool | None = None
    time: float | None = None
    global_batch_size: float | None = None


class _Evaluation(msgspec.Struct, tag_field="kind", tag="eval"):
    split: str
    iteration: _Iteration
    loss: float | None = None
    time: float | None = None


_decoder = msgspec.json.Decoder(_Train | _Evaluation)


def read(path: Path) -> tuple[Lines, list[dict[str, Any]]]:
    """The training lines and the evaluations of a `metrics.jsonl`; none of either where there is no file.

    msgspec decodes pieces of a file that are as they should be; of any other piece each line is held against its
    schema, which says what is wrong with it. A cut last line is left out.

    Raises OSError, and Damaged where a line is of another shape or the file is half of a compressed one.
    """
    parts: list[Lines] = []
    evaluations: list[dict[str, Any]] = []
    before, path = 0, run_folder.there(path)
    if path.exists():
        with run_folder.open_lines(path) as file:
            for text in whole_lines(file):
                try:
                    found = _decoder.decode_lines(text)
                    parts.append(_columns([line for line in found if isinstance(line, _Train)]))
                    evaluations += [{"kind": "eval", **asdict(line)} for line in found if isinstance(line, _Evaluation)]
                except (msgspec.DecodeError, RecursionError):
                    checked = list(schema.lines(text.splitlines(keepends=True), schema.LINE, path, before))
                    parts.append(Lines.of(line for line in checked if line.get("kind") == "train"))
                    evaluations += [line for line in checked if line.get("kind") == "eval"]
                before += text.count(b"\n")
    return Lines.joined(parts), evaluations


def _columns(lines: list[_Train]) -> Lines:
    names = _Train.__struct_fields__
    return Lines({name: np.array([getattr(line, name) for line in lines], dtype=float) for name in names})
