"""A checkpoint is read by names that Megatron and PyTorch write; any other is refused before it is called."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import filesystem

from pretraining.errors import UsageError
from pretraining.megatron import compat
from pretraining.record import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """One iteration's checkpoint as PyTorch writes it, with a tensor and an object."""
    folder = tmp_path / "iter_0000010"
    dcp.save({"weight": torch.arange(12.0).reshape(3, 4), "state": [None]}, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard, taken off again."""
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    monkeypatch.setattr(filesystem, "pickle", pickle)
    checkpoint.guard()


def test_it_names_the_files_and_their_sizes(saved: Path) -> None:
    files = checkpoint.data_files(saved)
    assert files == {file.name: file.stat().st_size for file in saved.glob("*.distcp")}


def test_the_host_needs_no_torch(saved: Path, environment: Callable[..., dict[str, str]]) -> None:
    code = (
        "import pathlib, sys; from pretraining.record import checkpoint; "
        "files = checkpoint.data_files(pathlib.Path(sys.argv[1])); print(len(files), 'torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code, saved], env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["1", "False"]


def _named(module: str, name: str) -> bytes:
    """A pickle that calls `module.name` with "touch called"; protocol 4 also takes a dotted name."""
    as_text = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    return b"\x80\x04" + as_text + b"\x93\x8c\x0ctouch called\x85R."


HOSTILE = {
    "os.system": _named("os", "system"),
    "builtins.eval": _named("builtins", "eval"),
    "a module's own import": _named("torch.distributed.checkpoint.filesystem", "os.system"),
    "a dotted name": _named("torch", "Size.__class__.__base__"),
    "getattr": pickle.dumps(Calls(getattr, [], "append")),
    "an attribute of a name in the list": _named("torch.storage", "torch.load"),
    "a file outside": pickle.dumps(filesystem.Metadata({}, storage_data={0: filesystem._StorageInfo("../x", 0, 1)})),
    "an absolute file": pickle.dumps(filesystem.Metadata({}, storage_data={0: filesystem._StorageInfo("/x", 0, 1)})),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_no_checkpoint_holds_is_refused_by_name(
    saved: Path, content: bytes, guarded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    (saved / ".metadata").write_bytes(content)
    with pytest.raises(UsageError, match=r"\.metadata is not read: it names .*, ask whoever sent it"):
        checkpoint.data_files(saved)
    with pytest.raises(checkpoint.Refused, match="it names"):
        dcp.FileSystemReader(saved).read_metadata()
    assert not (saved.parent / "called").exists()


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_damaged_one_is_named(saved: Path, cut: int) -> None:
    whole = (saved / ".metadata").read_bytes()
    (saved / ".metadata").write_bytes(whole[:cut])
    with pytest.raises(UsageError, match=r"\.metadata is damaged \(\w+\)"):
        checkpoint.data_files(saved)


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", os.urandom(300), b"\x80\x04]" + b"]" * 100_000])
def test_something_else_is_named(saved: Path, content: bytes) -> None:
    (saved / ".metadata").write_bytes(content)
    with pytest.raises(UsageError, match=r"\.metadata is damaged"):
        checkpoint.data_files(saved)


def test_a_missing_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.metadata cannot be read: No such file"):
        checkpoint.data_files(tmp_path)


def test_an_honest_checkpoint_is_loaded_under_the_guard(saved: Path, guarded: None) -> None:
    state = {"weight": torch.zeros(3, 4), "state": []}
    dcp.load(state, checkpoint_id=saved, no_dist=True)
    assert state["weight"].sum() == 66
    assert state["state"] == [None]


def test_an_object_within_a_data_file_calls_nothing(tmp_path: Path, guarded: None) -> None:
    marker = tmp_path / "called"
    dcp.save({"state": [Calls(os.mkdir, str(marker))]}, checkpoint_id=tmp_path / "evil", no_dist=True)
    with pytest.raises(dcp.CheckpointException, match="Weights only load failed"):
        dcp.load({"state": []}, checkpoint_id=tmp_path / "evil", no_dist=True)
    assert not marker.exists()


def test_extra_state_calls_nothing(guarded: None) -> None:
    """Megatron-Core and Transformer Engine unpickle bytes that they keep in a tensor."""
    loads = filesystem.pickle.loads
    state = {"scale": torch.ones(2), "extra": {"fp8": True, "groups": (1, 2.0)}}
    assert loads(pickle.dumps(state))["scale"].tolist() == [1, 1]
    with pytest.raises(checkpoint.Refused, match=r"posix\.mkdir"):
        loads(pickle.dumps(Calls(os.mkdir, "called")))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.storage._load_from_bytes(_saved(Calls(os.mkdir, "called")))


def _saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_every_reference_quantizer_that_is_used_may_stand_in_a_checkpoint() -> None:
    below = "transformer_engine.pytorch.custom_recipes"
    assert {(f"{below}.{module}", name) for module, name in compat._REFERENCES} <= checkpoint.WRITTEN
