"""Errors that a user can mend. Each message says the cause, what was found, and what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class UsageError(Exception):
    """The command asks for something that cannot be: a wrong name, a size that does not divide. Exit code 2."""


class EndedEarly(Exception):
    """Megatron-Bridge returned without an error before the last iteration."""

    def __init__(self, done: int, wanted: int) -> None:
        super().__init__(
            f"Megatron-Bridge ended after iteration {done} of {wanted} without an error: the data is empty, or "
            "train.exit_interval or train.exit_duration_in_mins is set"
        )


class Diverged(Exception):
    """The loss is no longer a finite number."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in `known`, with the nearest one that is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    return UsageError(f"unknown {kind} {name!r}: {hint}There are {', '.join(known)}.")
