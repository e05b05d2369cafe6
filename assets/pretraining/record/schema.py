"""What the JSON files of a record hold, and their one reader: whatever else is found in them is told by file and field.

A shape says of a value what it may be: a `Kind`, a list of one shape, or a dictionary of shapes by name, of which any
may be missing and further names are allowed; `...` stands for all other names. Null is as missing where an object or a
list is expected.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.errors import UsageError

SCHEMA = 1
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line end
_MAY_CONTROL = re.compile(rb"\\u00|[\x7f\xc2]")  # in JSON they are written out, but for those from 127 on
DEEPEST = 32  # objects and lists within one another; a record has six


class Damaged(UsageError):
    """A file is not what was written: which, where in it, what was found, and what to do."""

    def __init__(self, path: Path, found: str) -> None:
        self.path, self.found = path, found
        super().__init__(path, found)  # what it is made of again in another process

    def __str__(self) -> str:
        return f"{self.path} is damaged: {self.found}; was it edited? Take an undamaged copy, or leave this one out"


class TooDeep(ValueError):
    """More objects and lists within one another than anything of ours."""


@dataclass(frozen=True)
class Kind:
    """One value, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


Shape = Kind | list | dict


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool))
WHOLE = Kind("a whole number", _is_whole)
COUNT = Kind("a whole number from 0", lambda value: _is_whole(value) and value >= 0)
PAIR = Kind("two whole numbers", lambda value: isinstance(value, list) and [*map(_is_whole, value)] == [True, True])
CHOICE = Kind("true, false or a text", lambda value: isinstance(value, bool | str))
ANY = Kind("anything", lambda value: True)
NAME = Kind("a text or a whole number", lambda value: isinstance(value, str) or _is_whole(value))


def maybe(kind: Kind) -> Kind:
    """The same or null."""
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.fits(value))


_TEXT, _COUNT, _NUMBER = maybe(TEXT), maybe(COUNT), maybe(NUMBER)

ENVIRONMENT: Shape = {
    "started": _TEXT,
    "model": _TEXT,
    "precision": {
        "name": TEXT,
        "arithmetic": TEXT,
        "emulator": _TEXT,
        "bf16_head_layers": _COUNT,
        "bf16_tail_layers": _COUNT,
        "ingredients": {
            **dict.fromkeys(("rht", "stochastic", "two_d"), FLAG),
            **dict.fromkeys(("four_over_six", "chosen_by", "activations", "switch", "in_bf16", "primary"), TEXT),
            ...: CHOICE,
        },
        "switches_at": _COUNT,
    },
    "probe": {"passed": FLAG, "skipped": FLAG, "seconds": _NUMBER, "found": {...: TEXT}},
    "device": {"kind": TEXT, "name": TEXT, "capability": maybe(PAIR)},
    "tokens_per_step": _COUNT,
    "resumed_from": _TEXT,
    "weights_from": _TEXT,
    "finetuned": _TEXT,
    "profiled": PAIR,
    "measured": PAIR,
    "text": {"bigram_entropy": _NUMBER},
    "sampling": {"rate_hz": _NUMBER, "problem": _TEXT},
    "parity": {
        "model": _TEXT,
        "device": _TEXT,
        **dict.fromkeys(("world_size", "sequence_length", "global_batch_size", "micro_batch_size"), _COUNT),
        **dict.fromkeys(("train_iters", "start_iteration", "num_layers", "hidden_size", "ffn_hidden_size"), _COUNT),
        **dict.fromkeys(("num_attention_heads", "num_query_groups", "vocab_size", "parameters"), _COUNT),
    },
    "context": {},
    "flops_per_token": _NUMBER,
    "flops_resolution": _NUMBER,
    "notes": [TEXT],
}
PLAN: Shape = {
    "created": _TEXT,
    "request": {"model": _TEXT, "precision": _TEXT, "train_iters": _COUNT, "data": _TEXT},
    "choices": {...: {"value": ANY, "reason": TEXT}},
    "image": {"name": _TEXT, "digest": _TEXT},
    "grace_seconds": _NUMBER,
    "git_commit": _TEXT,
}
OUTCOME: Shape = {
    "verdict": TEXT,
    "cause": TEXT,
    "exit_code": WHOLE,
    "ended": TEXT,
    "iterations": _COUNT,
    "peak_memory": {"bytes": _COUNT, "kind": TEXT, "processes": _COUNT, "all": {...: COUNT}},
}
LINE: Shape = {
    "kind": TEXT,
    "split": TEXT,
    "iteration": Kind("a whole number from 0 to 2^53", lambda value: _is_whole(value) and 0 <= value <= 1 << 53),
    **dict.fromkeys(("loss", "step_time_s", "grad_norm", "learning_rate", "global_batch_size", "time"), _NUMBER),
    "skipped": FLAG,
}
SEQUENCE: Shape = {"split": TEXT, "sequence": TEXT, "loss": _NUMBER, "tokens": COUNT}
SAMPLE: Shape = {"time": _NUMBER, "device": NAME, "used_bytes": _COUNT, "process_bytes": _COUNT, "power_w": _NUMBER}


def read(path: Path, shape: Shape) -> dict[str, Any]:
    """The object in a JSON file of a record, {} where there is no such file.

    Raises:
        Damaged: it is no JSON, or not of that shape.
        UsageError: it is of a newer schema.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise Damaged(path, "it is no file")
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Damaged(path, "it is empty" if path.stat().st_size == 0 else f"it is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise Damaged(path, f"it holds no JSON object but {shown(content)}")
    version = content.get("schema", SCHEMA)
    if _is_whole(version) and version > SCHEMA:
        raise UsageError(
            f"{path} has schema {version}, and this playbook reads up to {SCHEMA}: it was written by a newer playbook, "
            "so update this one"
        )
    check(content, {"schema": WHOLE, **shape}, path)
    return content


def lines(texts: Iterable[bytes], shape: Shape, path: Path, before: int = 0) -> Iterator[dict[str, Any]]:
    """The objects of a file of lines, one a line.

    A last one without its end is left out where it is no JSON: the run lost its power, or is just writing it.

    Args:
        texts: the lines with their ends.
        before: lines of the file that came before these.
    """
    for number, text in enumerate(texts, before + 1):
        try:
            line = parse(text)
        except ValueError as error:
            if text.strip() and (text.endswith(b"\n") or isinstance(error, TooDeep)):
                raise Damaged(path, f"line {number} is not valid JSON ({error})") from error
            continue
        check(line, shape, path, f"line {number}: ")
        yield line


def parse(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError, `TooDeep` where it is nested beyond what Python reads."""
    try:
        found = json.loads(text, parse_int=_whole)
        return _printable(found) if _MAY_CONTROL.search(text if isinstance(text, bytes) else text.encode()) else found
    except RecursionError as error:
        raise TooDeep(f"nested more than {DEEPEST} deep") from error


def _printable(value: Any) -> Any:
    """The same with each control character written out: what is shown of a record must not steer a terminal."""
    if isinstance(value, str):
        return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", value)
    if isinstance(value, list):
        return [_printable(each) for each in value]
    return {_printable(name): _printable(each) for name, each in value.items()} if isinstance(value, dict) else value


def check(value: Any, shape: Shape, path: Path, at: str = "") -> None:
    """Hold a parsed value against its shape; nulls in the place of objects and lists are taken out of it.

    `at` is where in the file the value is: names and indices, each followed by a full stop.
    """
    _check_every(value, path, at, 0)
    _check(value, shape, path, at)


def _check(value: Any, shape: Shape, path: Path, at: str) -> None:
    expected = shape.words if isinstance(shape, Kind) else "a list" if isinstance(shape, list) else "an object"
    if not (shape.fits(value) if isinstance(shape, Kind) else isinstance(value, type(shape))):
        raise Damaged(path, f"{at.rstrip('.: ')} is {shown(value)} and not {expected}")
    if isinstance(shape, list):
        for index, part in enumerate(value):
            _check(part, shape[0], path, f"{at}{index}.")
    elif isinstance(shape, dict):
        for name, part in list(value.items()):
            wanted = shape.get(name, shape.get(..., ANY))
            if part is None and not isinstance(wanted, Kind):
                del value[name]
            else:
                _check(part, wanted, path, f"{at}{name}.")


def _check_every(value: Any, path: Path, at: str, depth: int) -> None:
    """Numbers within float64, texts that can be printed, and no endless nesting, also in fields that nobody knows."""
    if depth > DEEPEST:
        raise Damaged(path, f"it is nested more than {DEEPEST} deep at {at[:40]}...")
    if isinstance(value, float) and not math.isfinite(value):
        raise Damaged(path, f"{at.rstrip('.: ')} is no finite number within 64 bits")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Damaged(path, f"{at.rstrip('.: ')} is {shown(value)}, half of a letter")
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        if isinstance(name, str):
            _check_every(name, path, f"{at}{shown(name)}.", depth)
        _check_every(part, path, f"{at}{name}.", depth + 1)


def _whole(digits: str) -> int | float:
    """A whole number; one that is beyond 64 bits as a float, which is infinite where it is beyond that too."""
    return int(digits) if len(digits) < 19 else float(digits)


def shown(value: Any) -> str:
    """A value in an error, on one line and not too long."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    said = json.dumps(value)
    return said if len(said) <= 40 else f"{said[:40]}..."
