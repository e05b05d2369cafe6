"""A training on one machine opens no port beyond loopback; `test_parallel_training.py` has the same of two."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pretraining.errors import UsageError
from pretraining.run import rendezvous


def test_no_port_is_open_beyond_loopback(train) -> None:
    _, ended = train("bf16", "--plugin", str(Path(__file__).parents[1] / "fakes" / "listeners.py"))
    listeners = [line.split()[2] for line in ended.stdout.splitlines() if line.startswith("LISTENS")]
    assert listeners  # gloo's, which shows that another would be seen
    assert {address.partition(":")[0] for address in listeners} == {"0100007F"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        ({"WORLD_SIZE": "1"}, True),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, True),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, False),
        ({"WORLD_SIZE": "8"}, False),
    ],
)
def test_one_machine_is_told_by_its_processes(environment: dict[str, str], expected: bool) -> None:
    assert rendezvous.is_one_machine(environment) == expected


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without torch.distributed's variables, put back afterwards, as its `init_process_group` is."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_ERROR_FILE")
    for name in (*names, "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    asked: list[dict] = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **options: asked.append(options))
    monkeypatch.asked = asked
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "", "LOCAL_WORLD_SIZE": ""}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
    ],
)
def test_an_empty_variable_of_a_launcher_is_none(bare: pytest.MonkeyPatch, environment: dict, expected: tuple) -> None:
    for name, value in environment.items():
        bare.setenv(name, value)
    assert rendezvous.number_of_this() == expected
    assert "" not in {os.environ.get(name) for name in rendezvous.NUMBERS}


@pytest.mark.parametrize("value", ["two", "-1", " ", "1.0"])
def test_a_variable_of_a_launcher_that_is_no_number_is_wrong_usage(bare: pytest.MonkeyPatch, value: str) -> None:
    bare.setenv("WORLD_SIZE", value)
    with pytest.raises(UsageError, match=f"WORLD_SIZE={value} of the environment is no number"):
        rendezvous.number_of_this()


def test_several_machines_meet_as_torch_has_it(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("WORLD_SIZE", "8")
    bare.setenv("LOCAL_WORLD_SIZE", "4")
    rendezvous.describe(3, 8)
    rendezvous.use_own_store(8)
    torch.distributed.init_process_group(backend="gloo", store=None)
    assert bare.asked == [{"backend": "gloo", "store": None}]
    assert "GLOO_SOCKET_IFNAME" not in rendezvous.os.environ and rendezvous.os.environ["RANK"] == "3"


def test_processes_of_one_machine_share_a_private_file(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setenv("WORLD_SIZE", "2")
    bare.setenv("LOCAL_WORLD_SIZE", "2")
    bare.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "0" / "error.json"))
    rendezvous.describe(0, 2)
    rendezvous.use_own_store(2)
    torch.distributed.init_process_group(backend="gloo", store=None)
    (asked,) = bare.asked
    assert isinstance(asked["store"], torch.distributed.FileStore) and asked["store"].path == str(tmp_path / "store")
    assert (asked["rank"], asked["world_size"]) == (0, 2)
    assert rendezvous.os.environ["NCCL_SOCKET_IFNAME"] == "lo"


def test_a_store_that_is_given_is_used(bare: pytest.MonkeyPatch) -> None:
    own = torch.distributed.HashStore()
    rendezvous.describe(0, 1)
    rendezvous.use_own_store(1)
    torch.distributed.init_process_group(store=own)
    assert bare.asked == [{"store": own}]
