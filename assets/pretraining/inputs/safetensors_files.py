"""The files of a Hugging Face folder, named for what they are before anything loads them. Standard library alone.

A safetensors file is the length of its header (8 bytes, little-endian), the header in JSON, and the tensors' bytes:
https://huggingface.co/docs/safetensors. Reading the headers of 405B parameters takes a second.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from pretraining.errors import UsageError
from pretraining.inputs import contents

INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000  # as the library has it
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    "F4": 4,
}
_BY_FIRST_BYTES = (
    (rb"\s*<(!doctype|html|\?xml|head)", "a web page and no file of a model: log in or accept its licence, then again"),
    (rb"PK\x03\x04|\x80[\x02-\x05]", "a pickle of PyTorch, whatever its name: convert it with `save_pretrained`"),
    (rb"GGUF", "a GGUF file: take the Hugging Face folder that it was made from"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "compressed: unpack it"),
    (rb"\x89HDF", "an HDF5 file, TensorFlow's: convert it with `save_pretrained`"),
    (rb"\x00+\Z", "nothing but zero bytes: its content is lost, copy it again"),
)
_OTHER_FORMATS = (
    ("adapter_model.*", "adapters alone: merge them into their base (`merge_and_unload`) and save that"),
    ("*.gguf", "GGUF: take the Hugging Face folder that it was made from"),
    ("consolidated.*.pth", "Meta's own format: take the repository's Hugging Face one"),
    ("pytorch_model*.bin", "pickles of PyTorch: load them with `transformers` and `save_pretrained`"),
    ("*.distcp", "a checkpoint of PyTorch or Megatron: of a run of this playbook, RESUME= takes its folder"),
)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


class Tensor(NamedTuple):
    """Of one tensor in a file: the library's name of its dtype, such as "BF16", its shape, and where its bytes are."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises UsageError where it is missing, something else, or not JSON."""
    content = _read(path)
    if content.startswith(b"\xef\xbb\xbf"):
        raise UsageError(
            f"{path} begins with a byte order mark, which JSON has not: `sed -i '1s/^\\xef\\xbb\\xbf//' {path}`"
        )
    try:
        found = json.loads(content)
    except json.JSONDecodeError as error:
        raise _other(path, content, f"not JSON at line {error.lineno} column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise _other(path, content, "not JSON in UTF-8") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds a {type(found).__name__} and no JSON object")
    return found


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by name, as Megatron-Bridge finds them: by the index, else in every file.

    Raises:
        UsageError: a file is missing, cut, or something else; two of them disagree.
    """
    placed = _index(folder / INDEX) if _is_there(folder / INDEX) else None
    files = sorted(set(placed.values())) if placed else sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        held = next((what for pattern, what in _OTHER_FORMATS if any(folder.glob(pattern))), "")
        raise UsageError(f"it has no *.safetensors{f' but {held}' if held else ': were they downloaded?'}")
    if missing := [name for name in files if not _is_there(folder / name)] or _missing_shards(files):
        raise UsageError(f"it lacks {some(missing)}, {len(missing)} of its files: download it again")
    found: dict[str, Tensor] = {}
    for name in files:
        for tensor, entry in _header(folder / name).items():
            if tensor in found:
                raise UsageError(f"{tensor} is in {found[tensor].file.name} and in {name}: remove one of them")
            found[tensor] = entry
    if placed and (unlike := sorted({name: each.file.name for name, each in found.items()}.items() ^ placed.items())):
        raise UsageError(f"{folder / INDEX} and the files disagree on where {some(dict(unlike))} is: download it again")
    return found


def some(names: Any) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()  # a link that leads nowhere is told as one


def _read(path: Path, most: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most)
    except OSError as error:
        raise UsageError(contents.pointer(path) or f"{path} cannot be read: {error.strerror}") from error
    if not content:
        raise UsageError(f"{path} is empty (0 bytes): download it again")
    return content


def _other(path: Path, content: bytes, else_: str) -> UsageError:
    """What a file is by its first bytes, or `else_` where that is not known."""
    known = (what for first, what in _BY_FIRST_BYTES if re.match(first, content[:512], re.IGNORECASE))
    return UsageError(contents.pointer(path) or f"{path} is {next(known, else_)}")


def _index(path: Path) -> dict[str, str]:
    placed = read_json(path).get("weight_map")
    if not (isinstance(placed, dict) and placed and all(isinstance(name, str) for name in placed.values())):
        raise UsageError(f"{path} has no weight_map from tensors to files: download it again")
    if outside := [name for name in placed.values() if Path(name).name != name]:
        raise UsageError(f"{path} names {outside[0]!r}, and a model's files lie beside its index")
    return placed


def _missing_shards(files: list[str]) -> list[str]:
    """The files of a numbered set that are not among `files`."""
    shards = [found for name in files if (found := _SHARD.fullmatch(name))]
    wanted = {f"{each[1]}-{n:05}-of-{each[3]}.safetensors" for each in shards[:1] for n in range(1, int(each[3]) + 1)}
    return sorted(wanted - set(files))


def _header(path: Path) -> dict[str, Tensor]:
    start = _read(path, 8 + 512)
    length = int.from_bytes(start[:8], "little")
    size = path.stat().st_size
    if start[8:9] == b"{" and size < 8 + length <= _LONGEST_HEADER:
        raise UsageError(f"{path} is cut short, within its header: {size:,} bytes; download it again")
    try:
        entries = json.loads(_read(path, 8 + length)[8:]) if 2 <= length <= min(size - 8, _LONGEST_HEADER) else None
        found = {
            name: Tensor(path, entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in entries.items()
            if name != "__metadata__"
        }
        held = sum(_bytes_of(each) for each in found.values())
        last = max((each.end for each in found.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _other(path, start, "no safetensors file, or a damaged one") from error
    if size != 8 + length + last or held != last:
        cut = "cut short" if size < 8 + length + last else "damaged"
        raise UsageError(f"{path} is {cut}: {size:,} of {8 + length + last:,} bytes; download it again")
    return {
        name: each._replace(begin=each.begin + 8 + length, end=each.end + 8 + length) for name, each in found.items()
    }


def _bytes_of(tensor: Tensor) -> int:
    """Raises ValueError where its shape and its bytes disagree."""
    size = tensor.end - tensor.begin
    if min(size, tensor.begin) < 0 or math.prod(tensor.shape) * _BITS.get(tensor.dtype, 0) not in (8 * size, 0):
        raise ValueError(tensor)
    return size
