"""What the published pages call equal to the last digit: losses of records."""

from pathlib import Path

import pytest

from playbook.publish import publish
from playbook.record import loading

# A record, another, and the iterations in which their losses are equal.
PAIRS = [
    ("switch-fp8", "switch-fp8-without", range(1, 7)),
    *((f"switch-fp8-resumed-{at}", "switch-fp8", range(at + 1, 13)) for at in (3, 6, 9)),
    ("switch-fp8-recomputed", "switch-fp8", range(1, 13)),
    ("switch-fp8-at-1.0", "switch-fp8-without", range(1, 13)),
    ("switch-fp8-at-0", "switch-bf16", range(1, 13)),
    ("switch-nvfp4", "switch-nvfp4-without", range(1, 7)),
    *((f"switch-nvfp4-resumed-{at}", "switch-nvfp4", range(at + 1, 13)) for at in (3, 6, 9)),
    ("switch-nvfp4-recomputed", "switch-nvfp4", range(1, 13)),
    ("switch-nvfp4-at-0-bf16", "switch-bf16", range(1, 13)),
    ("switch-nvfp4-at-0", "switch-fp8-as-nvfp4", range(1, 13)),
    ("graph-bf16", "graph-bf16-without", range(1, 13)),
    ("graph-nvfp4", "graph-nvfp4-without", range(1, 13)),
]
APART = [("switch-fp8", "switch-fp8-without"), ("switch-nvfp4", "switch-nvfp4-without"), ("graph-bf16", "graph-nvfp4")]


def losses(project: Path, name: str) -> dict[int, float]:
    (folder,) = (project / publish.RESULTS / f"h200-{name}").glob("*/")
    return {line["iteration"]: line["loss"] for line in loading.load(folder).train}


@pytest.mark.parametrize(("one", "other", "iterations"), PAIRS)
def test_losses_are_equal(project: Path, one: str, other: str, iterations: range) -> None:
    found, wanted = losses(project, one), losses(project, other)
    assert [found[each] for each in iterations] == [wanted[each] for each in iterations]


@pytest.mark.parametrize(("one", "other"), APART)
def test_losses_in_another_precision_are_not(project: Path, one: str, other: str) -> None:
    found, wanted = losses(project, one), losses(project, other)
    assert all(found[each] != wanted[each] for each in range(7, 13))
