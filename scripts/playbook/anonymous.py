"""A copy of a run folder that anybody may see: the one list of what names a machine, a user or a secret.

    KEPT      files that are copied, and nothing else: no log, checkpoint, trace or writer's folder
    _KEY      fields whose value goes, unless it is a number
    _PATTERNS what goes wherever it stands in a text
    paths     from the project's folder on where they lead into it, else their last part

and by name, wherever it stands: this host and user, the host of the record, and owners of home folders in it.
"""

from __future__ import annotations

import getpass
import gzip
import json
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretraining import record

KEPT = (record.PLAN, record.ENVIRONMENT, record.OUTCOME, record.CONFIG, record.METRICS, record.SAMPLES)
_OURS = ("assets", "scripts", "nemo_experiments", ".cache")  # folders of the project that paths in records lead into

_SECRETS = r"(?:[\w.]*_)?(?:token|api_?key|secret|password|entity|tracking_uri)"
_KEY = re.compile(rf"(?:.*\.)?(?:{_SECRETS}|host(?:name)?|users?|uuids?)", re.IGNORECASE)
_YAML_LINE = re.compile(rf"^(\s*{_KEY.pattern}): (?!null$).+$", re.IGNORECASE)
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_GROUP = r"[\da-f]{1,4}"
_PATTERNS = {
    "uuid": r"\b(?:GPU-|MIG-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b",
    "pci": r"\b(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b",
    "address": rf"(?<![\d.])(?:{_BYTE}\.){{3}}{_BYTE}(?![\d.])|\bfe80:[\da-f:]+|\b(?:{_GROUP}::?){{4,7}}{_GROUP}\b",
    "mail": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "secret": rf"\b(?:hf_|gh[pousr]_)[a-z\d]{{16,}}|\b(?:sk|nvapi)-[\w-]{{16,}}|(?<=://)[^/\s@]+(?=@)|\b{_SECRETS}=\S+",
}
_PATTERN = re.compile("|".join(f"(?P<{name}>{each})" for name, each in _PATTERNS.items()), re.IGNORECASE)
_PATH = re.compile(r"(?<![\w.:/<~)-])(?:/|~/|file:///)[\w.+@%~-]+(?:/[\w.+@%~-]+)*/?")
_HOMES = re.compile(r"/(?:home|Users)/([\w.-]+)")
_TOO_COMMON = {"root", "localhost", "user", "gpu", "cpu"}  # words that a record uses otherwise


def copy_run(source: Path, target: Path) -> None:
    """Copy what may be seen of a run folder to `target`, a new one, its lines compressed.

    Raises:
        OSError, ValueError: it cannot be read or written, or a file of it is none of a record.
    """
    files = {path.name.removesuffix(record.PACKED): path for path in sorted(source.iterdir(), reverse=True)}
    texts = {name: _read(path) for name, path in sorted(files.items()) if _is_kept(name)}
    names = _names(texts)
    target.mkdir(parents=True)
    for name, text in texts.items():
        clean = _cleaned(name, text, names).encode()
        if name.endswith(".jsonl"):
            (target / (name + record.PACKED)).write_bytes(gzip.compress(clean, mtime=0))
        else:
            (target / name).write_bytes(clean)


def clean_text(text: str, names: Sequence[str] = ()) -> str:
    """A text without what names a machine, a user or a secret; in its place stands what it was.

    Args:
        names: words that go, besides all that can be told by its form.
    """
    if text.startswith("/") and "\n" not in text:  # the whole of it is a path, spaces or not
        text = _path(text)
    text = _PATTERN.sub(lambda found: f"({found.lastgroup})", text)
    text = _PATH.sub(lambda found: _path(found[0]), text)
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "(name)", text)
    return text


def _is_kept(name: str) -> bool:
    return name in KEPT or bool(re.fullmatch(record.samples_of(r"\d+"), name))


def _read(path: Path) -> str:
    content = gzip.decompress(path.read_bytes()) if path.suffix == record.PACKED else path.read_bytes()
    return content.decode("utf-8", errors="replace")


def _names(texts: dict[str, str]) -> list[str]:
    """The words that name this machine and its user, and those of the record; the longest, which hold others, first."""
    environment = json.loads(texts.get(record.ENVIRONMENT, "{}"))
    host = str(environment.get("host") or "")
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a number without a name
        user = ""
    found = {host, *host.partition(".")[::2], socket.gethostname(), user, Path(os.path.expanduser("~")).name}
    found |= {name for text in texts.values() for name in _HOMES.findall(text)}
    return sorted({name for name in found if len(name) > 2} - _TOO_COMMON, key=lambda name: (-len(name), name))


def _cleaned(name: str, text: str, names: Sequence[str]) -> str:
    if name.endswith(".json"):
        return json.dumps(_cleaned_value(json.loads(text), names), indent=2) + "\n"
    return "".join(clean_text(_YAML_LINE.sub(r"\1: null", line), names) for line in text.splitlines(keepends=True))


def _cleaned_value(value: Any, names: Sequence[str], key: str = "") -> Any:
    """A value of JSON; of a field that names or is a secret nothing is left, but for a number (FLOPs a token)."""
    if _KEY.fullmatch(key) and isinstance(value, str | list | dict):
        return type(value)() if not isinstance(value, str) else None
    if isinstance(value, dict):
        return {inner: _cleaned_value(each, names, inner) for inner, each in value.items()}
    if isinstance(value, list):
        return [_cleaned_value(each, names) for each in value]
    return clean_text(value, names) if isinstance(value, str) else value


def _path(text: str) -> str:
    """From the project's own folder on, or the last part alone."""
    parts = [part for part in text.removeprefix("file://").split("/") if part]
    for at, part in enumerate(parts):
        if part in _OURS:
            return "/".join(parts[at:])
    return parts[-1] if parts else text
