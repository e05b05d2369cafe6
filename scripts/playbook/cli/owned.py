"""What this project made, told by what a folder's own record says, and which of its files a job writes.

A file's name proves nothing: another tool has a plan.json too. Records from before they named their kind are known by
their fields. Everything here reads regular files alone, so that no pipe is waited for, and follows no link.
"""

import json
import os
import re
import socket
import stat
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playbook.campaign import ablation_file, reuse
from playbook.compare import model, saved
from pretraining.record import lock, run_folder
from pretraining.record.run_folder import ENVIRONMENT, JOB, OUTCOME, PLAN, Verdict

DEEPEST = 12  # folders within a run; its loggers make six
LARGEST_RECORD = 64_000_000  # bytes
NAMED = r"\d{8}T\d{6}Z-.+"  # as `run_folder.run_name` has it


@dataclass(frozen=True)
class Layout:
    """Which files and folders a kind of folder holds, as patterns of their paths within it; and its records."""

    files: re.Pattern[str] = re.compile(r"(?!)")
    folders: re.Pattern[str] = re.compile(r"(?!)")
    records: tuple[str, ...] = ()


def _pattern(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{each})" for each in alternatives), re.DOTALL)


_JSON = r"(?:plan|job|environment|outcome|profile|sensitivity)\.json|config\.yaml"
RUN = Layout(
    _pattern(
        rf"(?:{_JSON})|\.(?:{_JSON})\.[0-9a-f]+",  # and what a killed process was about to rename
        r"(?:metrics|(?:device|sequences)(?:-\d+)?)\.jsonl(?:\.gz)?|trace\.json\.gz|\.?sensitivity\.(?:png|svg)|train\.log|ranks/\d+\.log|\.lock|\.launcher",
        r"checkpoints/latest_[a-z_]+\.(?:txt|pt)",
        r"checkpoints/iter_\d+/(?:\.metadata|[^/]+\.(?:distcp|pt|json|yaml))(?:\.tmp)?|checkpoints/iter_\d+/tokenizer/[^/]+",
        r"tensorboard/(?:.+/)?events\.out\.tfevents\.[^/]+",
        r"wandb/(?:(?:offline-)?run-[^/]+/.+|debug[a-z-]*\.log|latest-run|settings)",
        r"mlruns/.+/[^/]+|mlruns/\.trash",
    ),
    _pattern(r"ranks|checkpoints(?:/iter_\d+(?:/tokenizer)?)?|tensorboard(?:/.+)?|wandb(?:/(?:offline-)?run-.+)?",
             r"mlruns(?:/.+)?"),
    (OUTCOME, ENVIRONMENT, PLAN, lock.FILE),
)  # fmt: skip
_RESULT = (saved.FILE, saved.PAGE, saved.TABLE, saved.MARKDOWN)
COMPARISON = Layout(
    _pattern(*map(re.escape, (*_RESULT, reuse.BEGUN)), rf"{saved.PLOTS}/[a-z-]+\.png"),
    _pattern(saved.PLOTS),
    (saved.FILE, reuse.BEGUN),
)
ABLATION = Layout(
    _pattern(*map(re.escape, (ablation_file.FILE, ablation_file.MARKDOWN, ablation_file.PICTURE))),
    records=(ablation_file.FILE,),
)
SELFCHECK = Layout(_pattern(re.escape(run_folder.SELFCHECK)), records=(run_folder.SELFCHECK,))
EMPTY = Layout()
# Megatron-Bridge's own recipes make these, empty where a run of this project saves elsewhere.
MEGATRON_DEFAULT = Layout(folders=_pattern("checkpoints", "tb_logs"))
KINDS = {saved.FILE: model.KIND, ablation_file.FILE: ablation_file.KIND}  # a run's have run_folder's, and its schema
SCHEMAS = {saved.FILE: model.SCHEMA, ablation_file.FILE: ablation_file.SCHEMA}
RECORDS = {name for layout in (RUN, COMPARISON, ABLATION, SELFCHECK) for name in layout.records}


@dataclass
class Contents:
    """A folder's files and folders by their paths within it."""

    files: list[str] = field(default_factory=list)  # what a job writes
    folders: list[str] = field(default_factory=list)  # which may become empty with them, the deepest last
    others: list[str] = field(default_factory=list)  # what no job writes; folders with a slash behind
    size: int = 0  # bytes on disk of `files`, one with several names once


def read(path: Path) -> Any:
    """What a record holds, None where it is no regular file or no JSON."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(file.fileno())
            if stat.S_ISREG(state.st_mode) and state.st_size <= LARGEST_RECORD:
                return json.load(file)
    except (OSError, ValueError, RecursionError):
        pass
    return None


def layout_of(folder: Path) -> tuple[Layout | None, str]:
    """What this project made a folder as, None where it did not; and why it stays, "" where nothing says so.

    Raises OSError where the folder cannot be listed.
    """
    names = set(os.listdir(folder))
    if not names:
        return (EMPTY, "") if re.fullmatch(NAMED, folder.name) else (None, "")
    if folder.name == "default" and names <= {"checkpoints", "tb_logs"}:
        return MEGATRON_DEFAULT, ""
    for layout in (RUN, COMPARISON, ABLATION, SELFCHECK):
        said = {name: _schema(name, folder / name) for name in layout.records if name in names}
        if not any(said.values()):
            continue
        for name, schema in said.items():
            if schema == 0:
                return None, f"its {name} is of something else"
            if schema is not None and schema > SCHEMAS.get(name, run_folder.SCHEMA):
                return layout, f"made by a newer version of this project (its {name} has schema {schema}): update first"
        return layout, ""
    return None, ""


def is_comparison(file: Path) -> bool:
    """Whether it is a comparison.json of this project, whatever it is called."""
    content = read(file)
    return isinstance(content, dict) and content.get("kind") == model.KIND


def _schema(name: str, path: Path) -> int | None:
    """The schema of a record of this project; 0 of something else's, None of what cannot be read."""
    if name == lock.FILE:
        regular = stat.S_ISREG(path.lstat().st_mode)
        return 1 if regular and lock.processes(path.parent) else None
    content = read(path)
    if content is None:
        return None
    if not isinstance(content, dict) or not _is_ours(name, content):
        return 0
    schema = content.get("schema", 1)
    return schema if type(schema) is int and schema > 0 else 0


def _is_ours(name: str, content: dict[str, Any]) -> bool:
    kind = content.get("kind")
    if kind is not None or name in KINDS:
        return kind == KINDS.get(name, run_folder.KIND)
    request, precision = content.get("request"), content.get("precision")
    return {  # of records from before they had a kind
        PLAN: isinstance(request, dict) and {"model", "precision"} <= request.keys() and "created" in content,
        ENVIRONMENT: isinstance(precision, dict) and {"name", "arithmetic"} <= precision.keys(),
        OUTCOME: content.get("verdict") in list(Verdict) and {"cause", "exit_code"} <= content.keys(),
        reuse.BEGUN: {"asked", "runs"} <= content.keys(),
        run_folder.SELFCHECK: {"verdict", "results", "block_scale"} <= content.keys(),
    }[name] and "schema" in content


def contents(folder: Path, layout: Layout, mounts: Set[str]) -> Contents:
    """What is in the folder. Raises OSError where some of it cannot be listed."""
    found, seen, device = Contents(), set(), folder.lstat().st_dev
    waiting = [""]
    while waiting:
        base = waiting.pop()
        with os.scandir(folder / base) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            name, state = f"{base}{entry.name}", entry.stat(follow_symlinks=False)
            is_file = stat.S_ISREG(state.st_mode) or (entry.is_symlink() and name.startswith("wandb/"))  # its own
            if stat.S_ISDIR(state.st_mode):
                elsewhere = state.st_dev != device or os.path.abspath(entry.path) in mounts
                ours = layout.folders.fullmatch(name) and name.count("/") < DEEPEST and not elsewhere
                # One that has a record is somebody's run, and may live.
                if ours and not any(os.path.lexists(f"{entry.path}/{record}") for record in RUN.records):
                    found.folders.append(name)
                    waiting.append(f"{name}/")
                else:
                    found.others.append(f"{name}/")
            elif is_file and layout.files.fullmatch(name):
                found.files.append(name)
                if (state.st_dev, state.st_ino) not in seen:
                    found.size += state.st_blocks * 512
                seen.add((state.st_dev, state.st_ino))
            else:
                found.others.append(name)
    return found


def why_in_use(folder: Path) -> str:
    """Why the run may still live, "" where it has surely ended."""
    for name in (*RUN.records, lock.LAUNCHER, JOB):
        if os.path.lexists(folder / name) and not stat.S_ISREG((folder / name).lstat().st_mode):
            return f"its {name} is no regular file"
    if used := lock.in_use(folder):
        return used
    ended = os.path.lexists(folder / OUTCOME)
    if os.path.lexists(folder / JOB) and not ended:  # it may wait for days; following it writes its end
        return "a job of a cluster that may still wait or run: `make jobs` says so, and records its end"
    return ""


def why_asked_for(folder: Path) -> str:
    """Why only CLEAN=all removes the run: something that clocks and records cannot tell, or that is dear; "" if not."""
    plan, environment = (content if isinstance(content, dict) else {} for content in
                         (read(folder / PLAN), read(folder / ENVIRONMENT)))  # fmt: skip
    if (named := _named_in(plan)) and folder.name != named and not folder.name.startswith(f"{named}-restart"):
        return f"a copy of {named}, or that run under another name"
    if (
        not any(os.path.lexists(folder / name) for name in (OUTCOME, lock.FILE))
        and environment.get("host") != socket.gethostname()
    ):
        return "nobody recorded its end, and its machine is another"
    if not os.path.lexists(folder / run_folder.CHECKPOINTS) or environment.get("mock_data") is True:
        return ""
    if environment.get("text") or not any((folder / run_folder.CHECKPOINTS).iterdir()):
        return ""  # "text" describes the built-in one, and is there for that alone
    parity = environment.get("parity")
    data = parity.get("data") if isinstance(parity, dict) else None
    return f"holds checkpoints of {f'your own data ({data})' if data else 'unknown data'}"


def _named_in(plan: dict[str, Any]) -> str:
    """The folder's name that the plan's command has, "" where it has none."""
    command = plan.get("command")
    words = [word for word in command if isinstance(word, str)] if isinstance(command, list) else []
    return Path(words[words.index("--run-dir") + 1]).name if "--run-dir" in words[:-1] else ""


def mount_points() -> Set[str]:
    """Where anything is mounted, as the kernel lists it: a folder bound into a run is on the same device."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return frozenset()
    octal = re.compile(rb"\\([0-7]{3})")
    places = (octal.sub(lambda found: bytes([int(found[1], 8)]), line.split()[4]) for line in lines if line)
    return frozenset(os.fsdecode(place) for place in places)
