"""A copy of a run folder that anybody may see: the one list of what names a machine, a user or a secret.

    KEPT      files that are copied, and nothing else: no log, checkpoint, trace or writer's folder
    _KEY      fields whose value goes, unless it is a number
    _PATTERNS what goes wherever it stands in a text
    paths     from the project's folder on where they lead into it, else their last part

and by name, wherever it stands: this host and user, all hosts and users of the record, and owners of home folders in
it. Of these, words that records are made of (`_WORDS`) stay: a user called "train" is not told by them.
"""

from __future__ import annotations

import contextlib
import getpass
import gzip
import json
import os
import re
import socket
from collections.abc import Collection, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from playbook.place import RUNTIMES
from pretraining import record
from pretraining.models import MODELS
from pretraining.precision import PRECISIONS
from pretraining.settings import EMULATORS, Settings

KEPT = (
    *(record.PLAN, record.ENVIRONMENT, record.OUTCOME, record.CONFIG),
    *(record.METRICS, record.SAMPLES, record.PROFILE),
)
_OURS = ("assets", "scripts", "nemo_experiments", ".cache")  # folders of the project that paths in records lead into

_SECRETS = r"(?:[\w.]*_)?(?:token|api_?key|access_key(?:_id)?|secret(?:_\w+)?|password|entity|tracking_uri)"
_NAMING = re.compile(r"(?:.*[._])?(?:host|user)(?:name)?s?", re.IGNORECASE)  # fields whose texts are names
_KEY = re.compile(rf"(?:.*\.)?(?:{_SECRETS}|{_NAMING.pattern}|uuids?)", re.IGNORECASE)
_YAML_KEY = re.compile(rf"^( *(?:- )*)([\"']?{_KEY.pattern}[\"']?):(?=\s|$)", re.IGNORECASE)
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_GROUP = r"[\da-f]{1,4}"
_PATTERNS = {
    "uuid": r"\b(?:GPU-|MIG-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b",
    "pci": r"\b(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b",
    "address": rf"(?<![\d.])(?:{_BYTE}\.){{3}}{_BYTE}(?![\d.])|\bfe80:[\da-f:]+|\b(?:{_GROUP}::?){{4,7}}{_GROUP}\b"
    rf"|\b(?:(?:{_GROUP}:){{2,6}}|[\da-f]{{4}}:)(?::{_GROUP}){{1,6}}\b",
    "mail": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "secret": rf"\b(?:hf_|gh[pousr]_|AKIA|ASIA)[a-z\d]{{16,}}|\b(?:sk|nvapi)-[\w-]{{16,}}|(?<=://)[^/\s@]+(?=@)"
    rf"|\b{_SECRETS}=\S+",
}
_PATTERN = re.compile("|".join(f"(?P<{name}>{each})" for name, each in _PATTERNS.items()), re.IGNORECASE)
_PATH = re.compile(
    r"(?:(?<![\w./<~)])|(?<=\s-[A-Za-z])|(?<=^-[A-Za-z]))"  # not within a path, a URL or a tag; but after -I
    r"(?:(?:/|~/|file:///)[\w.+@%~-]+|~[a-z_][\w.-]*(?=/))(?:/[\w.+@%~-]+)*/?",
    re.MULTILINE | re.IGNORECASE,
)
_HOMES = re.compile(r"(?:/(?:home|Users)/|(?<![\w~/])~(?=[\w.-]+/))([a-zA-Z_][\w.-]*)")
_HOSTS = re.compile(r"\brank \d+ (?:on|\(host) ([\w.-]*\w)[:,]")  # in causes, see `pretraining.ending`
_WORDS = {"root", "localhost", "host", "node", "user", "gpu", "nvidia", "cluster"}  # that a record says otherwise
_WORDS |= {"train", "eval", "validation", "test", "native", "emulated", "none", "adam", "cosine"}
_WORDS |= {*MODELS, *PRECISIONS, *RUNTIMES, *EMULATORS, *record.Verdict, *(field.name for field in fields(Settings))}
_WORDS |= {str(model.data) for model in MODELS.values()}


def copy_run(source: Path, target: Path) -> set[str]:
    """Copy what may be seen of a run folder to `target`, a new one, its lines compressed.

    Returns:
        The names that its texts no longer say, for what else is told of the run.

    Raises:
        OSError, ValueError: it cannot be read or written, or a file of it is none of a record.
    """
    files = {path.name.removesuffix(record.PACKED): path for path in sorted(source.iterdir(), reverse=True)}
    texts = {name: _read(path) for name, path in sorted(files.items()) if _is_kept(name)}
    names = _names(texts | {name: _read(path) for name, path in files.items() if name == record.JOB})
    target.mkdir(parents=True)
    for name, text in texts.items():
        clean = _cleaned(name, text, names).encode()
        if name.endswith(".jsonl"):
            (target / (name + record.PACKED)).write_bytes(gzip.compress(clean, mtime=0))
        else:
            (target / name).write_bytes(clean)
    return names


def clean_text(text: str, names: Collection[str] = ()) -> str:
    """A text without what names a machine, a user or a secret; in its place stands what it was.

    Args:
        names: words that go, besides all that can be told by its form.
    """
    if text.startswith("/") and "\n" not in text:  # the whole of it is a path, spaces or not
        text = _path(text)
    text = _PATTERN.sub(lambda found: f"({found.lastgroup})", text)
    text = _PATH.sub(lambda found: _path(found[0]), text)
    for name in sorted(names, key=len, reverse=True):  # the longest, which hold others, first
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "(name)", text)
    return text


def _is_kept(name: str) -> bool:
    return name in KEPT or bool(re.fullmatch(record.samples_of(r"\d+"), name))


def _read(path: Path) -> str:
    with record.open_lines(path) as file:
        return file.read().decode("utf-8", errors="replace")


def _names(texts: dict[str, str]) -> set[str]:
    """The words that name this machine and its user, and those of the record."""
    named = [name for file, text in texts.items() for value in _values(file, text) for name in _named(value)]
    for text in texts.values():
        named += [*_HOMES.findall(text), *_HOSTS.findall(text)]
    with contextlib.suppress(OSError, KeyError):  # a number without a name
        named.append(getpass.getuser())
    named += [socket.gethostname(), Path(os.path.expanduser("~")).name]
    found = {part for name in named for part in name.split("@")}  # user@host
    for name in list(found):
        short, _, domain = name.partition(".")
        found |= {short, domain} if "." in domain else {short}  # "local" alone is a word, not a name
    return {name for name in found if len(name) > 2 and not name.isdigit()} - _WORDS


def _values(file: str, text: str) -> Iterator[Any]:
    """What a file of JSON, or each line of one of lines, holds."""
    if file.endswith(".json"):
        yield _parsed(text)
    elif file.endswith(".jsonl"):
        yield from map(_parsed, text.splitlines())


def _parsed(text: str) -> Any:
    """The value, None of what is none, such as the last line of a run that lost its power."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _named(value: Any, *, naming: bool = False) -> Iterator[str]:
    """The texts in fields that hold names, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _named(inner, naming=bool(_NAMING.fullmatch(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner, naming=naming)
    elif naming and isinstance(value, str):
        yield value


def _cleaned(name: str, text: str, names: Collection[str]) -> str:
    if name.endswith(".json"):
        return json.dumps(_cleaned_value(json.loads(text), names), indent=2) + "\n"
    if name.endswith(".jsonl"):
        return "".join(_cleaned_line(line, names) for line in text.splitlines(keepends=True))
    return "".join(clean_text(line, names) for line in _without_blocks(text))


def _cleaned_line(line: str, names: Collection[str]) -> str:
    """A line of JSON, or of what a power cut left of it."""
    value = _parsed(line)
    if value is None:
        return clean_text(line, names)
    clean = _cleaned_value(value, names)
    return line if clean == value else json.dumps(clean) + "\n"


def _without_blocks(text: str) -> Iterator[str]:
    """Lines of YAML; of a field that names or is a secret nothing is left, be it a line or a block below it."""
    column: int | None = None
    for line in text.splitlines(keepends=True):
        indent = len(line) - len(line.lstrip(" "))
        if column is not None and (
            not line.strip() or indent > column or (indent == column and line.lstrip().startswith(("- ", "-\n")))
        ):
            continue
        found = _YAML_KEY.match(line)
        column = len(found[1]) if found else None
        yield f"{found[1]}{found[2]}: null\n" if found else line


def _cleaned_value(value: Any, names: Collection[str], key: str = "") -> Any:
    """A value of JSON; of a field that names or is a secret nothing is left, but for a number (FLOPs a token)."""
    if _KEY.fullmatch(key) and isinstance(value, str | list | dict):
        return type(value)() if not isinstance(value, str) else None
    if isinstance(value, dict):
        return {_cleaned_key(inner, names): _cleaned_value(each, names, inner) for inner, each in value.items()}
    if isinstance(value, list):
        return [_cleaned_value(each, names) for each in value]
    return clean_text(value, names) if isinstance(value, str) else value


def _cleaned_key(key: str, names: Collection[str]) -> str:
    """A key as a text; one of plain words is the record's own, by which it is read, and stays."""
    return key if re.fullmatch(r"[a-z_]+", key) else clean_text(key, names)


def _path(text: str) -> str:
    """From the project's own folder on, or the last part alone, where that is not an owner's."""
    text = text.removeprefix("file://")
    if re.fullmatch(rf"{_HOMES.pattern}/?", text):
        return "(name)"
    parts = [part for part in text.split("/") if part]
    for at, part in enumerate(parts):
        if part in _OURS:
            return "/".join(parts[at:])
    return parts[-1] if parts else text
