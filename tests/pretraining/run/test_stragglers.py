"""Which rank is the slow one."""

import random
import statistics
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from pretraining.record import run_folder
from pretraining.run import stragglers as timing
from pretraining.run.stragglers import AttentionTime, slowest_of


def ranks(
    *times: float | None,
    stages: tuple[int, ...] | None = None,
    copies: tuple[int, ...] | None = None,
    attention: tuple[list[float], ...] | None = None,
) -> list[dict[str, Any]]:
    """Ranks that computed so long a step; `attention` holds the seconds of each one's settled steps."""
    stages, copies = stages or (0,) * len(times), copies or tuple(range(len(times)))
    found = []
    for rank, (seconds, stage, copy) in enumerate(zip(times, stages, copies, strict=True)):
        watch = AttentionTime()
        watch._seconds = [1.0] * timing.SKIPPED + list(attention[rank]) if attention else []
        place = {"rank": rank, "host": f"n{rank // 2}", "local_rank": rank % 2, "stage": stage, "copy": copy}
        found.append({**place, "own_s": seconds, **watch.settled()})
    return found


def steps(seconds: float, noise: float = 0.02, number: int = 40, seed: int = 0) -> list[float]:
    """Times a call, one a step, evenly spread by `noise` up and down."""
    chance = random.Random(seed)
    return [seconds * (1 + chance.uniform(-noise, noise)) for _ in range(number)]


def test_a_rank_well_over_the_others() -> None:
    found = slowest_of(ranks(1.0, 1.01, 1.2, 0.99))
    assert (found["rank"], found["host"], found["over_median"]) == (2, "n1", 0.2)
    assert (found["measure"], "partners" in found) == ("computation", False)
    sentence = "rank 2 (host n1, local rank 0) computed 20% longer a step than the median rank; the others wait for it"
    assert run_folder.slowest_rank_sentence(found) == sentence
    earlier = {name: found[name] for name in ("rank", "host", "local_rank", "stage", "own_s", "over_median")}
    assert run_folder.slowest_rank_sentence(earlier) == sentence


def test_of_two_the_faster_is_the_measure() -> None:
    assert slowest_of(ranks(1.0, 1.1))["rank"] == 1


def test_nothing_to_tell() -> None:
    assert slowest_of(ranks(1.0, 1.04)) is None
    assert slowest_of(ranks(1.0)) is None
    assert slowest_of(ranks(None, None)) is None


def test_pipeline_stages_are_not_compared() -> None:
    assert slowest_of(ranks(1.0, 2.0, stages=(0, 1))) is None
    assert slowest_of(ranks(1.0, 1.0, 2.0, 2.5, stages=(0, 0, 1, 1), copies=(0, 1, 0, 1)))["rank"] == 3


def test_ranks_of_one_copy_are_not_compared_by_what_holds_waiting() -> None:
    assert slowest_of(ranks(1.0, 1.2, copies=(0, 0))) is None
    assert slowest_of(ranks(1.0, 1.2, 1.0, 1.2, copies=(0, 0, 1, 1))) is None


def test_a_slow_copy_has_partners_that_cannot_be_told_apart() -> None:
    found = slowest_of(ranks(1.0, 1.0, 1.2, 1.21, copies=(0, 0, 1, 1)))
    assert (found["rank"], found["measure"], found["partners"]) == (3, "computation", [2])
    assert "with rank 2: within a step they wait for one another" in run_folder.slowest_rank_sentence(found)


@pytest.mark.parametrize(
    "places",
    [{"stages": (0, 0), "copies": (0, 0)}, {"stages": (0, 1), "copies": (0, 0)}, {}],
    ids=["tensor", "pipeline", "data"],
)
def test_attention_tells_a_rank_from_its_partner(places: dict[str, Any]) -> None:
    found = slowest_of(ranks(1.0, 1.0, **places, attention=(steps(1e-3), steps(1.2e-3, seed=1))))
    assert (found["rank"], found["measure"]) == (1, "attention")
    assert found["over_median"] == pytest.approx(0.2, abs=0.02)
    assert found["attention_s"] == pytest.approx(1.2e-3, rel=0.02)
    assert set(found) == {"rank", "host", "local_rank", "stage", "own_s", "attention_s", "over_median", "measure"}
    assert "for the same attention than the median of the other ranks" in run_folder.slowest_rank_sentence(found)


def test_attention_tells_a_rank_within_its_slow_copy() -> None:
    times = [steps(seconds, seed=seed) for seed, seconds in enumerate((1e-3, 1e-3, 1.1e-3, 1e-3))]
    found = slowest_of(ranks(1.0, 1.0, 1.08, 1.09, copies=(0, 0, 1, 1), attention=tuple(times)))
    assert (found["rank"], found["measure"]) == (2, "attention")


def test_equal_attention_leaves_a_slow_host_to_the_computation() -> None:
    times = tuple(steps(1e-3, seed=seed) for seed in range(4))
    found = slowest_of(ranks(1.0, 1.0, 1.2, 1.2, copies=(0, 0, 1, 1), attention=times))
    assert (found["rank"], found["measure"], found["partners"]) == (2, "computation", [3])


def test_differences_of_chance_name_nobody() -> None:
    apart = 0
    for seed in range(200):
        times = [steps(1e-3, noise=0.3, number=timing.ENOUGH, seed=1000 * seed + rank) for rank in range(4)]
        medians = [statistics.median(each) for each in times]
        apart += max(medians) / statistics.median(medians) > 1 + timing.NOTABLE
        assert slowest_of(ranks(None, None, None, None, copies=(0, 0, 0, 0), attention=tuple(times))) is None
    assert apart > 50  # the medians alone would have named somebody


def test_small_differences_and_few_steps_name_nobody() -> None:
    assert slowest_of(ranks(1.0, 1.0, copies=(0, 0), attention=(steps(1e-3), steps(1.04e-3)))) is None
    few = {"number": timing.ENOUGH - 1}
    assert slowest_of(ranks(1.0, 1.0, copies=(0, 0), attention=(steps(1e-3, **few), steps(2e-3, **few)))) is None


def test_a_rank_without_attention_is_left_out() -> None:
    found = slowest_of(ranks(1.0, 1.0, 1.0, copies=(0, 0, 0), attention=([], steps(1e-3), steps(1.2e-3))))
    assert found["rank"] == 2
    assert slowest_of(ranks(1.0, 1.0, copies=(0, 0), attention=([], steps(1e-3)))) is None


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core_attention = torch.nn.Identity()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.core_attention(hidden).square()  # its backward needs what attention gave


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moments that are still to be read."""
    moments: list[float] = []
    monkeypatch.setattr(timing, "_now", lambda: moments.pop(0))
    return moments


def test_the_shortest_call_of_a_step_counts(clock: list[float]) -> None:
    layers = [Layer(), Layer()]
    watch = AttentionTime()
    watch.watch([torch.nn.ModuleList(layers)], SimpleNamespace(context_parallel_size=1))
    hidden = torch.zeros(1, requires_grad=True)
    layers[1](hidden)  # before any step, as in an evaluation: reads no clock
    for _ in range(timing.SKIPPED + timing.ENOUGH):
        clock += [0.0, 3.0, 10.0, 12.0, 20.0, 20.0 + 4.0]
        watch.begin()
        layers[0](hidden)  # not the last layer: reads no clock
        layers[1](hidden)
        torch.utils.checkpoint.checkpoint(layers[1], hidden, use_reentrant=False).sum().backward()  # two calls
        watch.end()
        assert not clock
    layers[1](hidden)
    assert watch.settled() == {"attention_low_s": 2.0, "attention_s": 2.0, "attention_high_s": 2.0}


def test_a_captured_graph_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_on_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    layer, watch = Layer(), AttentionTime()
    watch.watch([layer], SimpleNamespace(context_parallel_size=1))
    for _ in range(timing.SKIPPED + timing.ENOUGH):
        watch.begin()
        layer(torch.zeros(1))
        watch.end()
    assert watch.settled()["attention_s"] is None


@pytest.mark.parametrize("config", [{"context_parallel_size": 2}, {"window_attn_skip_freq": 4}])
def test_attention_that_waits_or_differs_between_layers_is_not_timed(config: dict[str, int]) -> None:
    layer = Layer()
    AttentionTime().watch([layer], SimpleNamespace(**{"context_parallel_size": 1} | config))
    assert not layer.core_attention._forward_hooks
