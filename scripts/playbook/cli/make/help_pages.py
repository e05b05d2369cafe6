"""What `make help`, `make help-all` and `make help-compare` print, in 80 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from playbook.cli.make.options import OPTIONS, SET_UP, VARIABLES
from playbook.cli.make.targets import GROUPS, TARGETS, Target

WIDTH = 80
PAGE = Path(__file__).with_name("help.md")
_TARGET, _OPTION = 22, 22  # columns


def short() -> list[str]:
    """A dozen targets, by what a person wants to do."""
    return [
        "make compare is the whole job: set-up, both trainings, the comparison. Without a",
        "GPU it trains a tiny Llama on the CPU. Options follow: make compare ITERS=100",
        *_targets([target for target in TARGETS.values() if target.common]),
        "",
        "make help-compare   what make compare takes; so for every target",
        "make help-all       all targets and all options",
    ]


def everything() -> list[str]:
    return [
        *_targets(TARGETS.values())[1:],
        "",
        "Options, as in make compare MODEL=small ITERS=100; make help-compare says which",
        "of them it takes. 0, no, off and an empty value leave a switch off.",
        *_options(OPTIONS),
        *_of_the_environment(VARIABLES),
    ]


def of(target: Target) -> list[str]:
    return [
        *textwrap.wrap(f"make {target.name}: {target.help}", WIDTH),
        "",
        *_at_length(target.name),
        *_options((name for name in target.takes if name not in SET_UP), target.defaults),
        *(line for name, other in target.instead.items() for line in _instead(name, other)),
        *_of_the_environment([name for name in VARIABLES if name in target.takes]),
    ]  # fmt: skip


def _at_length(name: str) -> list[str]:
    """What help.md says under the target's name; [] where it says nothing."""
    for section in re.split("^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        names, _, text = section.partition("\n")
        if name in names.split(", "):
            text = re.sub("```sh\n(.*?)```\n", lambda code: textwrap.indent(code[1], "    "), text, flags=re.DOTALL)
            text = re.sub("^### (.*)\n\n", lambda heading: heading[1].upper() + "\n", text, flags=re.MULTILINE)
            return [*text.strip().splitlines(), ""]
    return []


def _instead(name: str, other: Target) -> list[str]:
    beside = ", ".join(each for each in other.options if each != name) or "nothing"
    return textwrap.wrap(f"With {name}= it takes {beside} beside it.", WIDTH)


def _targets(of_all: Iterable[Target]) -> list[str]:
    lines = []
    for group in GROUPS:
        found = [target for target in of_all if target.group == group]
        lines += ["", group] if found else []
        for target in found:
            lines += _under(f"  make {target.name}", target.help, _TARGET)
    return lines


def _options(names: Iterable[str], defaults: Mapping[str, str] = {}) -> list[str]:
    lines = []
    for option in map(OPTIONS.__getitem__, names):
        default = defaults.get(option.name, option.default)
        text = f"{option.help} (default: {default})" if default else option.help
        lines += _under(f"  {option.name}={option.takes}", text, _OPTION)
    return lines or ["It takes no options."]


def _of_the_environment(names: Iterable[str]) -> list[str]:
    said = f"Of the environment {', '.join(names)} are taken too, and no other option."
    return ["", *textwrap.wrap(said, WIDTH)]


def _under(head: str, text: str, column: int) -> list[str]:
    """Text beside its head, and below itself where it is longer than a line."""
    first, *rest = textwrap.wrap(text, WIDTH - column, break_long_words=False, break_on_hyphens=False)
    if len(head) > column - 2:
        return [head, *(" " * column + line for line in (first, *rest))]
    return [f"{head:<{column}}{first}", *(" " * column + line for line in rest)]
