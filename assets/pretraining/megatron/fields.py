"""Setting one field of Megatron-Bridge's config by name, with its own type.

An attribute that is not a field is accepted by these dataclasses and then read by nobody, so a name is looked up in the
real class first. Values come as words of the command line, in Hydra's grammar, or as what YAML made of them from a
file.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import importlib
import signal
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from pretraining.errors import UsageError
from pretraining.megatron import grammar
from pretraining.request import overrides

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer

NEAR = 3
# Sections that the mixed-precision preset writes its own fields into, before training.
_PRESET_WRITES = ("model", "optimizer", "ddp")


def set_field(config: ConfigContainer, name: str, value: Any) -> Any:
    """Set the field called `name` ("optimizer.lr") to `value`, converted to the field's type; returns what it is now.

    Raises:
        UsageError: no such field, with the nearest ones; a value of another type; a field that would be overwritten.
    """
    *path, last = name.split(".")
    owner = config
    for depth, part in enumerate(path):
        _check_name(config, owner, part, name)
        first = {last: value} if depth + 1 == len(path) else {}
        owner = _entered(config, owner, part, ".".join(path[: depth + 1]), first)
    if isinstance(owner, dict):
        owner[last] = _converting(name, value, Any, owner.get(last))
        return owner[last]
    _check_name(config, owner, last, name)
    _check_preset(config, path[0] if path else "", last)
    converted = _converting(name, value, _annotation(type(owner), last), getattr(owner, last, None))
    setattr(owner, last, converted)
    return converted


def _converting(name: str, value: Any, hint: Any, current: Any = None) -> Any:
    try:
        found = convert(hint, value, current)
    except ValueError as error:
        raise UsageError(f"{name}={value}: {error}") from None
    return _merged(current, found) if isinstance(value, overrides.Word) else found


def _merged(current: Any, value: Any) -> Any:
    """A dict's keys changed and the others kept, as Hydra does; anything else is replaced."""
    if not (isinstance(current, dict) and isinstance(value, dict)):
        return value
    return {**current, **{name: _merged(current.get(name), each) for name, each in value.items()}}


def as_override(value: Any) -> str:
    """A field's value as `convert` takes it back, on one line."""
    if isinstance(value, str):
        return value if _reads_as_itself(value) else grammar.quoted(value)
    from megatron.bridge.utils.yaml_utils import safe_yaml_representers

    with safe_yaml_representers():
        return grammar.write(yaml.safe_load(yaml.safe_dump(value)))


def _reads_as_itself(text: str) -> bool:
    """Whether a field of text takes this as it stands."""
    try:
        return convert(str, overrides.Word(text)) == text
    except ValueError:
        return False


def read_field(config: ConfigContainer, name: str) -> Any:
    """The value of the field called `name`; None where it, or its section, is not there."""
    owner: Any = config
    for part in name.split("."):
        owner = owner.get(part) if isinstance(owner, dict) else getattr(owner, part, None)
    return owner


def field_names(section: Any) -> set[str]:
    """The fields of a section, and the properties that stand for one and can be set."""
    kind = section if isinstance(section, type) else type(section)
    properties = {
        name for base in kind.__mro__ for name, each in vars(base).items() if isinstance(each, property) and each.fset
    }
    return {each.name for each in dataclasses.fields(kind) if not each.name.startswith("_")} | properties


def _check_name(config: ConfigContainer, owner: Any, name: str, whole: str) -> None:
    """Raise UsageError where `owner` has no field `name`, with the nearest names of the whole config."""
    if isinstance(owner, dict) or (dataclasses.is_dataclass(owner) and name in field_names(owner)):
        return
    if not dataclasses.is_dataclass(owner):
        raise UsageError(f"there is no field {whole}: {whole.rpartition('.')[0]} is a {type(owner).__name__}")
    if owner is config:
        near = [f"{each}{whole[len(name) :]}" for each in _near(name, field_names(config))]
        sections = ", ".join(sorted(field_names(config)))
        raise UsageError(f"there is no section {name!r} ({whole}){_question(near)} There are {sections}")
    prefix = whole.rpartition(".")[0]
    near = [f"{prefix}.{each}" for each in _near(name, field_names(owner))]
    elsewhere = [
        f"{section}.{name}"
        for section in sorted(field_names(config))
        if dataclasses.is_dataclass(getattr(config, section, None)) and name in field_names(getattr(config, section))
    ]
    raise UsageError(
        f"there is no field {whole}{_question([*elsewhere, *near][:NEAR])} `make show-config` lists every field"
    )


def _check_preset(config: ConfigContainer, section: str, name: str) -> None:
    """Raise UsageError where the mixed-precision preset will overwrite a field."""
    preset = config.mixed_precision
    if section in _PRESET_WRITES and dataclasses.is_dataclass(preset) and name in field_names(preset):
        there = f"mixed_precision.{name}"
        instead = overrides.DECIDED.get(there, f"override {there}")
        raise UsageError(f"{section}.{name} is set from the mixed-precision preset: {instead}")


def _near(name: str, known: set[str]) -> list[str]:
    return difflib.get_close_matches(name, sorted(known), n=NEAR)


def _question(near: list[str]) -> str:
    return f": did you mean {' or '.join(near)}?" if near else ";"


def _entered(config: ConfigContainer, owner: Any, name: str, whole: str, first: dict[str, Any]) -> Any:
    """A section; one that is None is made with its defaults and `first`, the field that is about to be set."""
    if isinstance(owner, dict):
        if name not in owner:
            raise UsageError(f"{whole}: there is no key {name!r}")
        return owner[name]
    section = getattr(owner, name)
    if section is not None:
        return section
    for kind in _alternatives(_annotation(type(owner), name)):
        if dataclasses.is_dataclass(kind):
            for each in first:
                _check_name(config, kind, each, f"{whole}.{each}")
            try:
                made = kind(**{each: convert(_annotation(kind, each), value) for each, value in first.items()})
            except (TypeError, ValueError) as error:
                raise UsageError(
                    f"{whole} is not set in this config, and cannot be made with that field alone: {error}; "
                    "set it as a whole in a plugin's configure()"
                ) from None
            setattr(owner, name, made)
            return made
    raise UsageError(f"{whole} is not set in this config, so its fields cannot be")


def _annotation(kind: type, name: str) -> Any:
    """The declared type of a field or property; Any where its module does not resolve the name at run time."""
    for base in kind.__mro__:
        declared = vars(base).get("__annotations__", {}).get(name)
        if declared is None:
            continue
        if not isinstance(declared, str):
            return declared
        try:
            return eval(declared, vars(sys.modules[base.__module__]))
        except (NameError, TypeError, AttributeError):  # imported for type checkers alone
            return Any
    return Any


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    if isinstance(hint, dataclasses.InitVar):
        hint = hint.type
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(each for member in typing.get_args(hint) for each in _alternatives(member))
    return (hint,)


def convert(hint: Any, value: Any, current: Any = None) -> Any:
    """`value` as the type `hint`.

    Args:
        value: a word of the command line, or what YAML made of one in a file; a mapping with `_target_` is
            Megatron-Bridge's form of an object.
        current: what the field holds, whose type stands in for an annotation that says nothing.

    Raises:
        ValueError: it is none.
    """
    text, why = None, ""
    if isinstance(value, overrides.Word):
        text = str(value)
        try:
            value = grammar.read(text)
        except ValueError as error:
            if text[:1] in ("[", "{", "(", "'", '"') or "${" in text:
                raise
            value, why = text, f" ({error})"  # plain text all the same, for a field of text
    if isinstance(value, dict) and "_target_" in value:
        return _instantiated(value)
    members = _alternatives(hint)
    if Any in members and current is not None:
        members = (type(current),)
    if type(None) in members and value is None:
        return None
    if text == "None":
        why = " (write null for none, and 'None' in quotes for the text)"
    for member in sorted(members, key=lambda each: each is str):  # text is what anything could be
        if member is type(None) or (text == "None" and member in (str, Any)):
            continue
        try:
            return _converted(member, value, text)
        except (ValueError, TypeError):
            continue
    raise ValueError(f"{value if text is None else text!r} is not {_described(members)}{why}")


def _converted(kind: Any, value: Any, text: str | None = None) -> Any:
    """One member of a union; `text` is how a number was written. Raises ValueError or TypeError where it is none."""
    origin, members = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Any:
        return value
    if origin is typing.Literal:
        return members[members.index(text if text in members else value)]
    if origin in (str, Path):
        return origin(_a(str, text if text is not None and isinstance(value, int | float) else value))
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return _member(origin, value)
    if origin is torch.dtype:
        return _dtype(value)
    if origin in (Callable, typing.Callable, types.FunctionType, types.BuiltinFunctionType):
        return _imported(_a(str, value))
    if origin in (int, float):
        return _number(origin, value)
    if origin in (list, tuple):
        return origin(_elements(_a(list | tuple, value), members))
    if origin in (bool, dict):
        return _a(origin, value)
    raise ValueError


def _a(kind: Any, value: Any) -> Any:
    """`value`. Raises ValueError where it is of another kind."""
    if not isinstance(value, kind):
        raise ValueError
    return value


def _number(kind: type, value: Any) -> int | float:
    if isinstance(value, str):
        value = float(value)  # YAML takes 1e-4 for a word
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    return kind(value)


def _elements(values: list[Any], members: tuple[Any, ...]) -> list[Any]:
    if not members:
        return list(values)
    if len(members) == 1 or members[-1] is Ellipsis:
        members = members[:1] * len(values)
    return [convert(member, value) for member, value in zip(members, values, strict=True)]


def _member(kind: type[enum.Enum], value: Any) -> enum.Enum:
    """By name in any case, or by value."""
    named = {member.name.lower(): member for member in kind}
    if isinstance(value, str) and value.lower() in named:
        return named[value.lower()]
    return kind(value)


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _dtype(value: Any) -> torch.dtype:
    name = _a(str, value).removeprefix("torch.")
    return _a(torch.dtype, _DTYPES.get(name) or getattr(torch, name, None))


# Modules of torch whose functions are values of a config: activations and initializers.
_TORCH = ("torch.nn.functional", "torch.nn.init")


def _imported(dotted: str) -> Any:
    """The function, class or number format of Megatron or torch that a dotted name stands for.

    Raises:
        ValueError: none, or another's: a config that somebody sent must not choose what is imported and called.
    """
    module, _, name = dotted.rpartition(".")
    if not (module.startswith("megatron.") or module in ("torch", "signal", *_TORCH)):
        raise ValueError
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ValueError from None
    if isinstance(found, torch.dtype) or (module in _TORCH and callable(found)) or found is signal.Signals:
        return found
    if not callable(found) or not str(getattr(found, "__module__", "")).startswith("megatron."):
        raise ValueError  # such as what a module of Megatron itself imports
    return found


def _instantiated(value: dict[str, Any]) -> Any:
    _check_objects(value)
    from megatron.bridge.utils.instantiate_utils import instantiate

    try:
        return instantiate(value)
    except Exception as error:  # whatever the class says of these values
        raise ValueError(f"{value['_target_']} cannot be made of it: {error}") from None


def _check_objects(value: Any) -> None:
    """Raise ValueError where the form of an object, at any depth, would call what is no class of Megatron's config."""
    if isinstance(value, str) and "${" in value:
        raise ValueError(f"{value!r} would read the environment")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_objects(each)
    if not isinstance(value, dict) or "_target_" not in value:
        return
    name = value["_target_"]
    try:
        found = _imported(str(name))
    except ValueError:
        raise ValueError(f"{name} is no class, function or type of Megatron or torch for a config") from None
    called = value.get("_call_", True) and not value.get("_partial_", False)
    if called and not (dataclasses.is_dataclass(found) or (isinstance(found, type) and issubclass(found, enum.Enum))):
        raise ValueError(f"{name} is no class of a config, and nothing else is called")


def _described(members: tuple[Any, ...]) -> str:
    return " or ".join(dict.fromkeys(_name(each) for each in members))


def _name(kind: Any) -> str:
    if kind is type(None):
        return "null"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"one of {', '.join(member.name for member in kind)}"
    if kind is bool:
        return "true or false"
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    if typing.get_origin(kind) is Callable or kind in (Callable, typing.Callable):
        return "the dotted name of a function"
    return {torch.dtype: "a torch type", int: "a whole number", float: "a number", str: "text"}.get(kind) or getattr(
        kind, "__name__", str(kind)
    )
