"""Where this process is in a training that goes on in another precision, see `precisions.LateSwitch`."""

from __future__ import annotations

from pretraining.request.precisions import LateSwitch

_to = ""
_at = 0  # iterations that come before it
_done = 0  # iterations


def use(switch: LateSwitch | None, at: int | None, *, done: int = 0) -> None:
    """Switch in this process after `at` iterations, `done` of which are; never where there is none."""
    global _to, _at
    _to, _at = (switch.to, at) if switch and at is not None else ("", 0)
    begin_iteration(done)


def begin_iteration(done: int) -> None:
    """Say at each iteration's start how many came before it."""
    global _done
    _done = done


def switched_to() -> str:
    """In what this iteration computes: "" before the late switch, then one of `precisions.TARGETS`."""
    return _to if _done >= _at else ""
