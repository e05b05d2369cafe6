"""From what was typed to make, to the command behind the target: taken as it is, checked whole, and only then begun.

The Makefile hands over each NAME=value of its command line unexpanded, in one variable of the environment, so that
neither make nor a shell reads them. Of the environment itself only what `options.VARIABLES` names is taken.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from playbook.cli.make import help_pages, options
from playbook.cli.make.options import OPTIONS, SET_UP, VARIABLES
from playbook.cli.make.targets import TARGETS, Target
from pretraining.errors import UsageError

TARGET = "PLAYBOOK_TARGET"  # stays in the environment: an error can then name what was typed
_HANDED_OVER = ("PLAYBOOK_TYPED", "PLAYBOOK_GOALS", "PLAYBOOK_PYTHON")


class Work(NamedTuple):
    """What a target comes to."""

    target: Target
    given: dict[str, str]  # the options that are on, as they were typed
    commands: tuple[tuple[str, ...], ...]  # as those of the target, with the words of these options
    environment: dict[str, str]  # what they get beside the environment that is there


def typed(text: str) -> dict[str, str]:
    """NAME: value of what the Makefile hands over: each pair ends with "@1 ", and its own "@" are "@0"."""
    pairs = [pair.replace("@0", "@").partition("=") for pair in f"{text} ".split("@1 ") if "=" in pair]
    return {name: value for name, _, value in pairs}


def plan(goals: Sequence[str], given: dict[str, str]) -> list[Work]:
    """The work of each target, in order: an option of one of several is for those that take it.

    Raises UsageError: a misspelt name, an option that no target here takes, a value that is none of its kind.
    """
    targets = [_find(goal) for goal in goals]
    for name, value in given.items():
        if name not in OPTIONS:
            near = difflib.get_close_matches(name.upper(), OPTIONS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"there is no option {name}: {hint}{_listed(targets[0])}")
        if not any(name in target.takes for target in targets):
            raise UsageError(_not_taken(name, value, targets))
    return [_work(target, {name: given[name] for name in target.takes if name in given}) for target in targets]


def _find(goal: str) -> Target:
    if goal in TARGETS:
        return TARGETS[goal]
    if goal in ("help", "help-all"):
        lines = help_pages.short if goal == "help" else help_pages.everything
        return Target(goal, "", "", chore=lambda given: print("\n".join(lines())) or 0)
    if goal.startswith("help-"):
        of = _find(goal[len("help-") :])
        return Target(goal, "", "", chore=lambda given: print("\n".join(help_pages.of(of))) or 0)
    if goal.upper() in OPTIONS:
        raise UsageError(f"{goal} is an option and wants a value: {goal.upper()}=...")
    near = difflib.get_close_matches(goal, TARGETS, n=1)
    hint = f"did you mean make {near[0]}? " if near else ""
    raise UsageError(f"there is no target {goal}: {hint}make help-all lists all of them")


def _listed(target: Target) -> str:
    return "make help-all lists all of them" if not target.options else f"make help-{target.name} lists what it takes"


def _not_taken(name: str, value: str, targets: Sequence[Target]) -> str:
    said = f"make {' '.join(target.name for target in targets)} takes no {name}: "
    if reason := next((target.without[name] for target in targets if name in target.without), ""):
        return said + reason.format(value)
    near = difflib.get_close_matches(name, [each for target in targets for each in target.takes], n=1, cutoff=0.7)
    able = [target.name for target in TARGETS.values() if name in target.takes]
    others = f"make {able[0]} does" if len(able) == 1 else f"{', '.join(able[:4])}{', ...' * (len(able) > 4)} do"
    return f"{said}{others}; " + (f"did you mean {near[0]}?" if near else _listed(targets[0]))


def _work(target: Target, given: dict[str, str]) -> Work:
    environment = {name: options.setting(OPTIONS[name], given[name]) for name in given if name in VARIABLES}
    given = {name: value for name, value in given.items() if not options.is_off(OPTIONS[name], value)}
    for name, other in target.instead.items():
        if name in given:
            if odd := [each for each in given if each not in (*other.options, *SET_UP)]:
                takes = " and ".join(f"{each}=" for each in other.options if each != name) or "nothing"
                raise UsageError(f"{name}= looks at runs that are there, and takes {takes} beside it: not {odd[0]}=")
            target = other
    flags, words, last = [], [], []
    for name, value in given.items():
        if reason := target.without.get(f"{name}={value.strip().lower()}"):
            raise UsageError(f"make {target.name} takes no {name}={value}: {reason}")
        option = OPTIONS[name]
        flag = target.flags.get(name, option.flag)
        into = last if option.kind in options.LAST and not flag else words if option.kind == options.WORDS else flags
        if name not in VARIABLES:
            into += options.words(option, value, flag)
    if target.again:
        flags.append(f"--typed={options.again(target.name, given)}")
    *before, command = target.commands or ((),)
    whole = (*command, *flags, *words, *(("--", *last) if last else ()))
    return Work(target, given, (*before, whole), {**target.environment, **environment})


def in_makes_words(text: str) -> str:
    """An error's text with make's name for each flag that the target has an option for: "ITERS (--train-iters)".

    Where it names no flag, and quotes a value that one has on this command line, that flag goes before it.
    """
    target = TARGETS.get(os.environ.get(TARGET, ""))
    if target is None:
        return text
    names = {target.flags.get(name, OPTIONS[name].flag): name for name in target.takes}

    def named(flag: re.Match) -> str:  # type: ignore[type-arg]
        return f"{names[flag[0]]} ({flag[0]})" if flag[0] in names else flag[0]

    flags = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
    if not flags.search(text):
        given = (word.partition("=") for word in sys.argv[1:])
        of = next((flag for flag, _, value in given if flag in names and value and repr(value) in text), "")
        text = f"{of}: {text}" if of else text
    return flags.sub(named, text)


def main() -> int:
    """Do what the Makefile's variables say. Returns the exit code; a single command takes this process's place."""
    target = os.environ.get(TARGET, "help")
    goals = os.environ.get("PLAYBOOK_GOALS", "").split() or [target]
    given = typed(os.environ.get("PLAYBOOK_TYPED", ""))
    try:
        work = dict(zip(goals, plan(goals, given)))[target]  # noqa: B905  # of one length
    except UsageError as error:
        print(f"make: {error}", file=sys.stderr)
        return 2
    for name in _HANDED_OVER:
        os.environ.pop(name, None)
    if left := [name for name in work.target.takes if name in os.environ and name not in (*VARIABLES, *given)]:
        said = f"{' and '.join(left)} of the environment {'is' if len(left) == 1 else 'are'} left out"
        print(f"make: {said}; an option follows its target: make {target} {left[0]}=...", file=sys.stderr)
    os.environ.update(work.environment)
    try:
        return work.target.chore(work.given) if work.target.chore else _run(work.commands)
    except KeyboardInterrupt:
        return 130


def _run(commands: Sequence[Sequence[str]]) -> int:
    import setup

    for number, (where, *words) in enumerate(commands, 1):
        python = sys.executable
        if where != "python":
            if sys.version_info[:2] not in setup.SUPPORTED:
                return setup.main()
            from playbook.common import venvs

            if "--dry-run" in words:
                python = str(venvs.for_a_dry_run(where))
            elif code := venvs.main([where]):
                return code
            else:
                python = str(venvs.python_of(where))
        sys.stdout.flush()
        if len(commands) == 1:
            os.execv(python, [python, *words])
        print(f"== {' '.join(words)}", flush=True)
        if (code := subprocess.run([python, *words], check=False).returncode) or number == len(commands):
            return code
    return 0
