"""Reading a checkpoint that may be anybody's, without running what is in it. No torch in this module until it is used.

A checkpoint of Megatron is pickles: `.metadata` names every tensor and the file it lies in, `*.pt` and parts of
`*.distcp` are `torch.save`'s, and Transformer Engine's extra state is a pickle within a tensor. Unpickling calls
whatever a file names, so only names that Megatron-Core, PyTorch and Transformer Engine write are followed.
"""

from __future__ import annotations

import io
import os
import pickle
import shlex
import sys
import zipfile
import zlib
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any, BinaryIO

from pretraining.errors import UsageError
from pretraining.record import run_folder

METADATA = ".metadata"
_TRACKER, _LATEST, _STATE = "latest_checkpointed_iteration.txt", "latest_train_state.pt", "train_state.pt"
_CONFIG = "run_config.yaml"
_DTYPES = (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 float8_e8m0fnu float4_e2m1fn_x2 "
    "int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex64 complex128"
)
# Calling any of these makes a value and does nothing else; `_load_from_bytes` is torch.load, which `guard` restricts.
_WRITTEN = {
    "torch": f"Size device {_DTYPES}",
    "torch.serialization": "_get_layout",
    "torch.storage": "UntypedStorage TypedStorage _load_from_bytes",
    "torch._utils": "_rebuild_tensor_v2",
    "torch.distributed.checkpoint.metadata": "Metadata MetadataIndex StorageMeta TensorStorageMetadata "
    "BytesStorageMetadata ChunkStorageMetadata TensorProperties _MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo _StoragePrefix",
    "torch.distributed.checkpoint.planner": "SavePlan WriteItem WriteItemType TensorWriteData BytesIOWriteData",
    "megatron.core.dist_checkpointing.strategies.torch": "MCoreMetadata MCoreSavePlan",
    "megatron.core.extensions.transformer_engine": "TEDelayedScaling",
    "megatron.core.safe_globals": "safe_load_from_bytes",
    "transformer_engine.common.recipe": "DelayedScaling Float8CurrentScaling Float8BlockScaling MXFP8BlockScaling "
    "NVFP4BlockScaling CustomRecipe Format _FormatHelper MMParams QParams",
    "transformer_engine.pytorch.custom_recipes.reference_nvfp4": "nvfp4_ref_rht_2d_factory",
    "transformer_engine.pytorch.custom_recipes.quantization_ref_nvfp4": "nvfp4_ref_rht_2d_quantizer_factory",
    "transformer_engine.pytorch.custom_recipes.quantization_nvfp4": "nvfp4_ref_rht_2d_quantizer_factory",
    "pretraining.numerics.te_quantizer": "quantizer_factory",
    "pretraining.numerics.forward_in_bf16": "quantizer_factory",
    "collections": "OrderedDict",
    "pathlib": "PosixPath",
    "pathlib._local": "PosixPath",
}
_READERS = ("torch.distributed.checkpoint.", "megatron.core.", "transformer_engine.", "modelopt.")
WRITTEN = frozenset((module, name) for module, names in _WRITTEN.items() for name in names.split())


class Refused(pickle.UnpicklingError):
    """A pickle names something that no checkpoint holds."""


class _Reader(pickle.Unpickler):
    """Follows the names in `WRITTEN` alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in WRITTEN:
            raise Refused(f"it names {module}.{name}, which neither Megatron nor PyTorch writes")
        return super().find_class(module, name)


class _StandIn:
    """Takes any state: the host has no torch."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _StandInReader(_Reader):
    """The same, in which each class is one that holds what it is given."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in WRITTEN:
            return type(name, (_StandIn,), {})
        return super().find_class(module, name)


def data_files(folder: Path) -> dict[str, int]:
    """The files of one iteration's folder, each with the bytes that it holds at least. Needs no torch.

    Raises:
        UsageError: `.metadata` is missing or damaged, or names what no checkpoint holds.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as file:
            return _sizes(_StandInReader(file).load())
    except Refused as error:
        raise UsageError(f"{path} is not read: {error}; it could run code, ask whoever sent it") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises anything
        raise UsageError(f"{path} is damaged ({type(error).__name__}): take another checkpoint") from error


def _sizes(metadata: Any) -> dict[str, int]:
    """Of each file that `metadata` names, the end of its last entry. Raises Refused for one outside the folder."""
    sizes: dict[str, int] = {}
    for stored in metadata.storage_data.values():
        name = stored.relative_path
        if PurePath(name).name != name:
            raise Refused(f"it names the file {name!r}, and a checkpoint's files lie beside it")
        sizes[name] = max(sizes.get(name, 0), stored.offset + stored.length)
    return sizes


def find(run: Path, iteration: int | None = None, *, flag: str = "--resume") -> int:
    """The iteration whose checkpoint to load: the one asked for, else the run's last.

    What is looked at is that every file is there, as long as it should be, and of its format; a changed byte in the
    middle of a tensor is not seen. Needs no torch.

    Raises:
        UsageError: there is none, or it is not whole; it names the newest that is.
    """
    folder = run / run_folder.CHECKPOINTS
    saved = sorted(filter(None, (_number(path.name.removeprefix("iter_")) for path in folder.glob("iter_*"))))
    if not saved and not run_folder.has_checkpoint(run):
        raise UsageError(f"{flag} {run}: it holds no checkpoint; a run keeps one that trains with SAVE=N (--save N)")
    wanted = iteration
    if wanted is None:
        tracker = folder / _TRACKER
        said = tracker.read_bytes()[:20].decode("ascii", "replace").strip() if tracker.is_file() else None
        wanted = _number(said)
        fault = f"{tracker} holds {said!r} and no iteration" if said is not None else f"{tracker} is missing"
    if wanted is not None:
        fault = _fault(folder, wanted)
    if not fault and not _is_torch_file(folder / _LATEST):
        copy = shlex.join(["cp", str(folder / _name(wanted) / _STATE), str(folder / _LATEST)])
        raise UsageError(f"{flag} {run}: {folder / _LATEST} is missing or damaged, without which nothing loads: {copy}")
    if fault:
        whole = next((each for each in reversed(saved) if each != wanted and not _fault(folder, each)), None)
        raise UsageError(
            f"{flag} {run}: {fault}; "
            + ("none of its checkpoints is whole: take another run" if whole is None else "the newest whole one is of "
            f"iteration {whole}: "
            + (f"--iteration {whole} takes it" if flag == "--resume" else
               f"make export RUN={shlex.quote(str(run))} ITERATION={whole} OUT=... makes a folder of it, for {flag}"))
        )  # fmt: skip
    return wanted


def _fault(folder: Path, iteration: int) -> str:
    """What is wrong with the checkpoint of one iteration, "" where it is whole."""
    folder = folder / _name(iteration)
    if not folder.is_dir():
        return f"there is no checkpoint of iteration {iteration}, {folder.name}"
    try:
        sizes = data_files(folder)
        loose = b"common_state" in (folder / METADATA).read_bytes()  # Megatron-Core 0.19 keeps it among the tensors
    except UsageError as error:
        return str(error)
    of = f"the checkpoint of iteration {iteration} is damaged"
    for name, size in sizes.items():
        there = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if there < size:
            return f"{of}: {folder / name} has {there:,} of {size:,} bytes"
    for name in (_STATE, *(() if loose else ("common.pt",))):
        if not _is_torch_file(folder / name):
            return f"{of}: {folder / name} is missing or damaged"
    for name, ends in (("metadata.json", b"}"), (_CONFIG, b"\n")):  # a cut one ends anywhere
        if not ((folder / name).is_file() and (folder / name).read_bytes().endswith((ends, ends + b"\n"))):
            return f"{of}: {folder / name} is missing or damaged"
    return ""


def saved_config(run: Path, iteration: int) -> dict[str, dict[str, Any]]:
    """The sections of the config that Megatron-Bridge saved in a checkpoint.

    Raises:
        UsageError: it cannot be read, or holds none.
    """
    import yaml

    path = run / run_folder.CHECKPOINTS / _name(iteration) / _CONFIG
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: section for name, section in tree.items() if isinstance(section, dict)}
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is damaged ({type(error).__name__}): take another checkpoint") from error


def _name(iteration: int) -> str:
    return f"iter_{iteration:07}"


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 19 else None


def _is_torch_file(path: Path) -> bool:
    """Whether a small file is what `torch.save` writes, whole: a ZIP archive whose parts have their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile):
        return False


def guard() -> None:
    """Have every checkpoint read so in this process. Call it once Megatron-Bridge is imported.

    `torch.load` has an allowlist of its own, to which Megatron-Core adds; PyTorch's `.metadata` reader and the layers
    of Megatron-Core and Transformer Engine call `pickle` by its name.
    """
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    guarded = SimpleNamespace(**vars(pickle) | {"load": _load, "loads": lambda data: _load(io.BytesIO(data))})
    for name, module in list(sys.modules.items()):
        if name.startswith(_READERS) and vars(module).get("pickle") is pickle:
            module.pickle = guarded  # type: ignore[attr-defined]


def _load(file: BinaryIO) -> Any:
    loaded = _Reader(file).load()
    if type(loaded).__name__ == "Metadata":
        _sizes(loaded)
    return loaded
