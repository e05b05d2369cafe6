"""What a selfcheck found: the file to send, the table, and the verdict."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pretraining import packages
from pretraining.record import run_folder
from pretraining.selfcheck import FAST_MATH
from pretraining.selfcheck.check import NEAR, OURS, Result

SHOWN = 6  # differences on screen; the file has all


def fast_math() -> bool:
    """Whether Transformer Engine's kernels skip the BF16 rounding after the Hadamard transform, and approximate."""
    return os.environ.get(FAST_MATH, "0") not in ("", "0")


def describe(results: Sequence[Result], commit: str, device: dict[str, Any]) -> dict[str, Any]:
    """The file: nothing in it says whose machine it was, so the UUID of `run_facts.describe_device` is left out.

    `commit` is the project's, "" where it is not known.
    """
    return {
        "schema": run_folder.SCHEMA,
        "made": run_folder.utc_now(),
        "commit": commit,
        "verdict": verdict(results),
        "equal": equal(results),
        "could_not_be_made": sum(bool(each.failure) for each in results),
        "versions": {"python": platform.python_version(), **packages.installed()},
        "device": {name: value for name, value in device.items() if name != "uuid"},
        "fast_math": fast_math(),
        "block_scale": "amax * (encode / 6)" if packages.folds_block_scale() else "amax / 6 * encode",
        "results": [each.as_json() for each in results],
    }


def equal(results: Sequence[Result]) -> bool:
    return bool(results) and all(each.equal for each in results)


def verdict(results: Sequence[Result]) -> str:
    engine = f"Transformer Engine {packages.installed().get('transformer-engine', 'of unknown version')}"
    if equal(results):
        signs = sum(each.details.get("zeros_of_other_sign", 0) for each in results)
        but = f", but for the sign of {signs} zeros, which no product can tell" if signs else ""
        return f"equal: {engine} and this project round alike{but}."
    wrong = [each for each in results if not each.equal and not each.failure]
    failures = [each for each in results if each.failure]
    said = []
    if wrong:
        said.append(f"differs: {len(wrong)} of {len(results)} comparisons with {engine}.{_explained(wrong)}")
    if failures:
        said.append(
            f"could not be made: {len(failures)} of {len(results)} comparisons with {engine}. "
            f"The first, {_where(failures[0])}: {failures[0].failure}"
        )
    return "\n".join(said)


def _explained(wrong: Sequence[Result]) -> str:
    """What explains the differences, and in how many nothing does."""
    native = [each for each in wrong if not each.side.startswith(OURS)]
    said = ""
    if len(native) < len(wrong):
        said += f" In {len(wrong) - len(native)} our own kernels are not what the specification says."
    causes = Counter(each.cause for each in native)
    for cause, count in causes.most_common():
        if cause:
            said += f" Explained in {count}: {cause}."
    if native and fast_math():
        said += (
            f" {FAST_MATH} is on, which skips a rounding to BF16 after the Hadamard transform and approximates a "
            f"reciprocal: `{FAST_MATH}=0 make selfcheck` says whether that is all."
        )
    elif causes[""]:
        said += f" Not explained: {causes['']}."
    return said


def _where(result: Result) -> str:
    return ", ".join(filter(None, (result.name, result.mode, result.side)))


def show(results: Sequence[Result]) -> None:
    """Print the table: a line a mode and side, then the first differences."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for each in results:
        groups.setdefault((each.mode or "training step", each.side or "all"), []).append(each)
    width = max(len(" ".join(key)) for key in groups) + 2
    for (mode, side), found in groups.items():
        right = sum(each.equal for each in found)
        near = sum(each.problem == NEAR for each in found)
        notes = f" ({near} but for signs of zeros)" if near else ""
        failures = sum(bool(each.failure) for each in found)
        notes += f" ({failures} could not be made)" if failures else ""
        print(f"  {mode + ', ' + side:<{width}}  {right:>3} of {len(found):>3} as they should be{notes}")
    wrong = sorted((each for each in results if not each.equal), key=lambda each: bool(each.failure))
    for each in wrong[:SHOWN]:
        said = f"could not be made: {each.failure}" if each.failure else each.problem
        print(f"  {_where(each)}:\n    {said}" + (f"\n    cause: {each.cause}" if each.cause else ""))
    if len(wrong) > SHOWN:
        print(f"  and {len(wrong) - SHOWN} more, in the file")
