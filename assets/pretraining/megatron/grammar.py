"""The value of an override in Hydra's grammar, which Megatron-Bridge's own command lines have: read, and written.

Hydra's parser is among what Megatron-Bridge depends on (hydra-core), so it is there where a training is. The host has
none and looks at names alone. https://hydra.cc/docs/advanced/override_grammar/basic
"""

from __future__ import annotations

import math
import re
from typing import Any

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = ("null", "true", "false", "inf", "nan")


def read(text: str) -> Any:
    """What a value stands for: None, a truth value, a number, text, or lists and dicts of these.

    Raises:
        ValueError: it is not in the grammar, or something that only a whole program of Hydra's gives a meaning.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if "${" in text:
        raise ValueError("${...} is not resolved here: write the value")
    try:
        return _plain(OverridesParser.create().parse_override(f"value={text}").value())
    except HydraException as error:
        said = str(error).strip().splitlines()[0]
        raise ValueError(f"Hydra's grammar does not read it: {said}; text is quoted in it") from None


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError("it reads as several values to try in turn, and a run takes one; [a,b] is a list, 'a,b' a text")


def write(value: Any) -> str:
    """A value of YAML's kinds as `read` takes it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value) if isinstance(value, int) or math.isfinite(value) else f"{value}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(write, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(str(name))}: {write(each)}' for name, each in value.items())}}}"
    return value if _BARE.fullmatch(value) and value.lower() not in _RESERVED else quoted(value)


def quoted(text: str) -> str:
    """Text in single quotes. A backslash needs another where a quote or the end follows."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"


def _key(name: str) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", name)
