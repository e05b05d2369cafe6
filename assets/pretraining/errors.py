"""Errors that a user can mend. Each message says the cause, what was found, and what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class UsageError(Exception):
    """The command asks for something that cannot be: a wrong name, a size that does not divide. Exit code 2."""


class EndedEarly(Exception):
    """Megatron-Bridge ended without an error before all was done; `asked` is the config's field that asked for it."""

    def __init__(self, done: int, wanted: int, asked: str = "") -> None:
        self.asked = asked
        super().__init__(
            f"ended at iteration {done} of {wanted} as {asked} asked"
            if asked
            else f"Megatron-Bridge ended after iteration {done} of {wanted} without an error: the data is empty"
        )


class WrongKernels(Exception):
    """The engine's kernels do not compute on this GPU what they have to."""


class Diverged(Exception):
    """The loss is no longer a finite number."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in `known`, with the nearest one that is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    return UsageError(f"unknown {kind} {name!r}: {hint}There are {', '.join(known)}.")
