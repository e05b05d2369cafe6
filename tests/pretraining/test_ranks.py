"""Which rank is the slow one."""

from typing import Any

import pytest

pytest.importorskip("torch")

from pretraining import record
from pretraining.ranks import slowest_of


def ranks(*times: float | None, stages: tuple[int, ...] | None = None) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "host": f"n{rank // 2}", "local_rank": rank % 2, "stage": stage, "own_s": seconds}
        for rank, (seconds, stage) in enumerate(zip(times, stages or (0,) * len(times), strict=True))
    ]


def test_a_rank_well_over_the_others() -> None:
    found = slowest_of(ranks(1.0, 1.01, 1.2, 0.99))
    assert (found["rank"], found["host"], found["over_median"]) == (2, "n1", 0.2)
    assert record.slowest_rank_sentence(found) == (
        "rank 2 (host n1, local rank 0) computed 20% longer a step than the median rank; the others wait for it"
    )


def test_of_two_the_faster_is_the_measure() -> None:
    assert slowest_of(ranks(1.0, 1.1))["rank"] == 1


def test_nothing_to_tell() -> None:
    assert slowest_of(ranks(1.0, 1.04)) is None
    assert slowest_of(ranks(1.0)) is None
    assert slowest_of(ranks(None, None)) is None


def test_pipeline_stages_are_not_compared() -> None:
    assert slowest_of(ranks(1.0, 2.0, stages=(0, 1))) is None
    assert slowest_of(ranks(1.0, 1.0, 2.0, 2.5, stages=(0, 0, 1, 1)))["rank"] == 3
