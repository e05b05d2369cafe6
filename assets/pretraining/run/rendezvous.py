"""How the processes of a training find each other. On one machine without a port beyond loopback.

PyTorch's own store listens on all interfaces and asks nobody who they are. One process needs none, and those that one
torch.distributed.run started share a file in its private folder. On several machines the store is PyTorch's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretraining.errors import UsageError

FILE = "store"
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def number_of_this() -> tuple[int, int]:
    """This process's rank, and how many there are, as torch.distributed.run says: 0 of 1 where nothing does.

    A variable that is empty counts as none, and is taken away: PyTorch and Megatron read them too. Raises UsageError
    where one is no number.
    """
    for name in NUMBERS:
        given = os.environ.get(name)
        if given == "":
            del os.environ[name]
        elif given is not None and not given.isdecimal():
            raise UsageError(
                f"{name}={given} of the environment is no number: torch.distributed.run sets it, or unset it"
            )
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def is_one_machine(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether all processes of the training are on this machine."""
    processes = environment.get("WORLD_SIZE", "1")
    return processes == "1" or processes == environment.get("LOCAL_WORLD_SIZE")


def describe(rank: int, processes: int) -> None:
    """Set torch.distributed's variables, where torch.distributed.run has not."""
    given = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}
    for name, value in given.items():
        os.environ.setdefault(name, str(value))
    if is_one_machine():
        for library in ("GLOO", "NCCL"):  # whose sockets have no other partners
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")


def use_own_store(processes: int) -> None:
    """Have the process group, which Megatron-Bridge makes, meet without a port where that can be."""
    import torch

    # torch.distributed.run keeps this file in a folder of this training, which it removes.
    private = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not is_one_machine() or (processes > 1 and not private):
        return
    make_group = torch.distributed.init_process_group

    def init_process_group(*args: Any, **options: Any) -> None:
        if options.get("store") is None and not options.get("init_method"):
            path = Path(private or "").parent.parent / FILE
            own = torch.distributed.FileStore(str(path), processes) if processes > 1 else torch.distributed.HashStore()
            options |= {"store": own, "rank": int(os.environ["RANK"]), "world_size": processes}
        make_group(*args, **options)

    torch.distributed.init_process_group = init_process_group
