#!/usr/bin/env python3
"""Run as root inside an image by the launcher, beside trainings: who can train in it, and whose its files are.

    container_user.py check UID:GID                  one line of JSON, see `check`
    container_user.py hand UID:GID SINCE FOLDER...   give that user what root made below these folders

Only the standard library, because nothing is known of the image yet. Other lines may come before the answer: an image
may greet whoever starts its Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

MODULES = ("torch", "megatron.core", "megatron.bridge")
PACKAGES = ("megatron-bridge", "megatron-core", "transformer-engine", "torch")
SLACK_SECONDS = 60  # between this machine's clock and a file server's


def look() -> dict[str, object]:
    """What the present user finds: where each module lies, or "", the versions, and the first file that is closed."""
    modules = {name: _place(name) for name in MODULES}
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(Exception):  # of a damaged record too: the module is what counts
            versions[name] = importlib.metadata.version(name)
    return {"modules": modules, "versions": versions, "closed": next(_closed_files(modules), "")}


def _place(name: str) -> str:
    with contextlib.suppress(Exception):  # a parent that is missing, or fails: either way it cannot be imported
        spec = importlib.util.find_spec(name)
        return spec.origin or next(iter(spec.submodule_search_locations), "")
    return ""


def _closed_files(modules: dict[str, str]) -> Iterator[str]:
    """Of Megatron, which lies in folders that somebody made by hand, every file; of torch the first."""
    for name, place in modules.items():
        if place and not os.access(place, os.R_OK):
            yield place
        elif place and name != "torch":
            folder = os.path.dirname(place) if os.path.isfile(place) else place
            for at, folders, files in os.walk(folder):
                yield from (f"{at}/{each}" for each in folders if not os.access(f"{at}/{each}", os.R_OK | os.X_OK))
                yield from (f"{at}/{each}" for each in files if not os.access(f"{at}/{each}", os.R_OK))


def check(user: int, group: int) -> dict[str, object]:
    """As `look`, with root's interpreter, and as `closed` what keeps the user from finding the same, "" for nothing."""
    own = look()
    closed = "" if user == os.getuid() else _closed_to(user, group, own["modules"])
    return {**own, "python": sys.executable, "closed": closed}


def _closed_to(user: int, group: int, modules: dict[str, str]) -> str:
    """What keeps the user's own Python from finding what root's does, in words."""
    words = [sys.executable, __file__, "look"]
    try:
        ended = subprocess.run(words, user=user, group=group, extra_groups=[], capture_output=True, text=True)
        theirs = json.loads(next(line for line in reversed(ended.stdout.splitlines()) if line.startswith("{")))
    except OSError as error:
        return _named(sys.executable, user, group) or f"{sys.executable} ({error.strerror})"
    except (ValueError, StopIteration):  # it starts, and does not come to the script
        library = os.path.join(sysconfig.get_path("stdlib"), "encodings", "__init__.py")
        said = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        return _named(library, user, group) or f"{sys.executable} ({said})"
    missing = [place for name, place in modules.items() if place and not theirs["modules"][name]]
    closed = theirs["closed"] or next(iter(missing), "")
    return closed and (_named(closed, user, group) or f"{closed} (not found by user {user})")


def _named(path: str, user: int, group: int) -> str:
    """The first on the way to a path that the user may not read or pass: it, its mode and its owner; "" for none."""
    os.setgroups([])
    os.setegid(group)
    os.seteuid(user)
    try:
        for each in _way(path):
            wanted = os.X_OK if os.path.isdir(each) else os.R_OK
            if not os.path.islink(each) and not os.access(each, wanted, effective_ids=True):
                found = os.stat(each)
                return f"{each} (mode {found.st_mode & 0o7777:04o}, of user {found.st_uid}, group {found.st_gid})"
    finally:
        os.seteuid(0)
        os.setegid(0)
    return ""


def _way(path: str) -> Iterator[str]:
    """Every folder on the way to a file, then the file, and the same again wherever links lead."""
    while True:
        yield from map(str, [*reversed(Path(path).parents), path])
        if not os.path.islink(path):
            break
        path = os.path.normpath(os.path.join(os.path.realpath(os.path.dirname(path)), os.readlink(path)))
    real = os.path.realpath(path)
    yield from map(str, [*reversed(Path(real).parents), real])


def hand(user: int, group: int, since: float, folders: list[str]) -> dict[str, object]:
    """Give the user what is root's below the folders and was made since then; nobody else's, nor what was there.

    `since` is in Unix time. Returns how many, and the first that could not be, with its error.
    """
    handed, failed = 0, ""
    for folder in folders:
        for at, inner, files in os.walk(folder):
            for path in (f"{at}/{name}" for name in (*inner, *files)):
                try:
                    found = os.lstat(path)
                    if found.st_uid == 0 and _made(path, found) >= since - SLACK_SECONDS:
                        os.chown(path, user, group if found.st_gid == 0 else -1, follow_symlinks=False)
                        handed += 1
                except FileNotFoundError:
                    continue
                except OSError as error:
                    failed = failed or f"{path}: {error.strerror}"
    return {"handed": handed, "failed": failed}


def _made(path: str, found: os.stat_result) -> float:
    """When it was made, in Unix time; where the file system does not say that, when it was last changed.

    A folder of root's own, such as a cache of all users, changes with each entry. Python's stat leaves the birth out
    on Linux: statx(2) has it, at byte 80 of its answer, whose first word says what is in it.
    """
    here, not_behind_links, birth = -100, 0x100, 0x800
    answer = ctypes.create_string_buffer(256)
    statx = getattr(ctypes.CDLL(None), "statx", None)
    failed = statx is None or statx(here, os.fsencode(path), not_behind_links, birth, answer)
    if failed or not struct.unpack_from("=I", answer)[0] & birth:
        return found.st_ctime
    seconds, nanoseconds = struct.unpack_from("=qI", answer, 80)
    return seconds + nanoseconds / 1e9


def main(arguments: list[str]) -> dict[str, object]:
    """Do what the first word says."""
    if arguments[0] == "look":
        return look()
    user, group = map(int, arguments[1].split(":"))
    if arguments[0] == "check":
        return check(user, group)
    return hand(user, group, float(arguments[2]), arguments[3:])


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
