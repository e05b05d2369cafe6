"""A line of JSON and the texts in it, or why it is broken. Standard library only: the host checks instructions."""

from __future__ import annotations

import codecs
import json
from typing import Any

# What JSON calls a value's kind, if it is no number.
_NAMES = {dict: "object", list: "list", str: "string", bool: "true or false", type(None): "null"}


def is_blank(line: bytes) -> bool:
    """Whether a line holds nothing but blanks, and perhaps the byte-order mark of a file."""
    return not line.removeprefix(codecs.BOM_UTF8).strip()


def texts(line: bytes, *fields: str) -> list[str]:
    """The texts of an object's `fields`, in their order. Raises ValueError with what is wrong with the line."""
    found = _object(line)
    if missing := [repr(field) for field in fields if field not in found]:
        only = ", ".join(map(repr, found)) or "an empty object"
        raise ValueError(f"no field {' and '.join(missing)}, only {only}")
    chosen = [found[field] for field in fields]
    for field, text in zip(fields, chosen, strict=True):
        if not isinstance(text, str):
            raise ValueError(f"its {field!r} is no string but {_NAMES.get(type(text), 'number')}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError("half of a surrogate pair") from None
    return chosen


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from None
    except RecursionError:
        raise ValueError("JSON with objects or lists nested too deep") from None
    except ValueError as error:
        raise ValueError(f"JSON with a number that Python does not hold ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"no JSON object but {_NAMES.get(type(found), 'number')}")
    return found
