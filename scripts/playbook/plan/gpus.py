"""The NVIDIA GPUs of this machine, what each can train in, and which one a job gets.

They are read through NVML (`nvidia-ml-py`), which needs the driver and nothing else: no torch, no nvidia-smi. What NVML
cannot tell stays None: a GB10 shares its memory with the CPU and reports none of its own. Importing this module takes
the standard library alone.
"""

import contextlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playbook.common import pci
from pretraining.errors import UsageError
from pretraining.request.precisions import PRECISIONS, Precision
from pretraining.units import gigabytes

_NO_INSTANCE = (
    "sudo nvidia-smi mig -i {index} -lgip lists what it can be divided into, -cgi with -C makes one; "
    "or leave MIG mode: sudo nvidia-smi -i {index} -mig 0"
)


@dataclass(frozen=True)
class User:
    """A process that holds memory on a GPU; `memory` in bytes, None where the driver does not say."""

    pid: int
    name: str
    memory: int | None

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid}{'' if self.memory is None else f', {gigabytes(self.memory, 1)}'})"


@dataclass(frozen=True)
class Gpu:
    """One GPU, or an instance of one in MIG mode, which is a GPU of its own to CUDA."""

    index: int  # as nvidia-smi counts
    uuid: str
    name: str
    capability: tuple[int, int]  # CUDA compute capability, major and minor
    memory: int | None  # bytes, None where it has none of its own (GB10)
    users: tuple[User, ...] = ()
    instance: int | None = None  # of MIG, as nvidia-smi counts those of its GPU; else None

    @property
    def label(self) -> str:
        """What `GPU=` takes: "1", or "1:0" for a MIG instance."""
        return str(self.index) if self.instance is None else f"{self.index}:{self.instance}"

    def trains_in(self, precision: Precision, *, emulate: bool = False) -> bool:
        """Whether its tensor cores have `precision`, or with `emulate` can stand in where that is NVFP4."""
        return precision.trains_on(self.capability, emulate=emulate)

    def precisions(self) -> list[str]:
        """The names of the precisions it trains in natively, and of which that is to be found out by a probe."""
        able = [row for row in PRECISIONS.values() if self.trains_in(row)]
        return [row.name + " (to be probed)" * row.is_probed(self.capability) for row in able]

    def probed(self, precisions: Iterable[Precision], *, emulate: bool = False) -> list[str]:
        """Those of the precisions that a probe has to admit."""
        return [each.name for each in precisions if each.is_probed(self.capability, emulate=emulate)]

    @property
    def size(self) -> str:
        memory = "memory not reported" if self.memory is None else gigabytes(self.memory)
        return f"{memory}, compute capability {dotted(self.capability)}"

    def __str__(self) -> str:
        return f"GPU {self.label} {self.name} ({self.size})"


@dataclass(frozen=True)
class Inventory:
    """What NVML says of this machine."""

    gpus: tuple[Gpu, ...] = ()  # in nvidia-smi's order
    driver: str | None = None  # its version, None without one
    cuda: str | None = None  # the newest that the driver serves
    problem: str = ""  # a GPU is there, and this is why it cannot be used; "" otherwise
    notes: tuple[tuple[str, str], ...] = ()  # single GPUs that cannot be used, each with what to do


def dotted(capability: tuple[int, int]) -> str:
    """(10, 3) as "10.3"."""
    return f"{capability[0]}.{capability[1]}"


def read(nvml: Any = None) -> Inventory:
    """Ask NVML, or its recorded answers. Raises ModuleNotFoundError: there is a GPU, and no nvidia-ml-py to ask.

    Without a driver the inventory is empty; it names a problem where a GPU sits in the machine anyway.
    """
    if nvml is None:
        if importlib.util.find_spec("pynvml") is None and not pci.in_the_machine():
            return Inventory()
        import pynvml as nvml
    from playbook.plan import nvml_errors

    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if not nvml_errors.proves_a_gpu(error) and not pci.in_the_machine():
            return Inventory()
        cause, remedy = nvml_errors.explain(error)
        return Inventory(problem=f"an NVIDIA GPU is in this machine and cannot be used, {cause}: {remedy}")
    try:
        cuda = nvml.nvmlSystemGetCudaDriverVersion()
        gpus, notes = [], []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                found = _read_one(nvml, index)
            except nvml.NVMLError as error:  # one that fell off the bus does not hide the others
                cause, remedy = nvml_errors.explain(error)
                notes.append((f"GPU {index} does not answer: {cause}", remedy))
                continue
            gpus += found
            if not found:
                notes.append((f"GPU {index} is in MIG mode and has no instance", _NO_INSTANCE.format(index=index)))
        return Inventory(
            tuple(gpus),
            _text(nvml.nvmlSystemGetDriverVersion()),
            f"{cuda // 1000}.{cuda % 1000 // 10}",
            problem="" if gpus else "; ".join(f"{found}: {remedy}" for found, remedy in notes),
            notes=tuple(notes),
        )
    finally:
        nvml.nvmlShutdown()


def _read_one(nvml: Any, index: int) -> list[Gpu]:
    """The GPU; in MIG mode its instances, of which alone CUDA opens any, and none where nobody made one."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))

    def one(handle: Any, instance: int | None = None) -> Gpu:
        uuid, name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
        users = tuple(_users(nvml, handle))
        return Gpu(index, uuid, name, capability, _memory(nvml, handle), users, instance)

    with contextlib.suppress(nvml.NVMLError):
        if nvml.nvmlDeviceGetMigMode(handle)[0]:
            found = []
            for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with contextlib.suppress(nvml.NVMLError):  # places that no instance has taken
                    found.append(one(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number), number))
            return found
    return [one(handle)]


def _memory(nvml: Any, handle: Any) -> int | None:
    with contextlib.suppress(nvml.NVMLError):
        return nvml.nvmlDeviceGetMemoryInfo(handle).total or None
    return None


def _users(nvml: Any, handle: Any) -> list[User]:
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return []
    users = []
    for process in processes:
        name = "a process"
        with contextlib.suppress(nvml.NVMLError):
            name = Path(_text(nvml.nvmlSystemGetProcessName(process.pid))).name
        users.append(User(process.pid, name, process.usedGpuMemory))
    return users


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def choose(
    gpus: tuple[Gpu, ...], precisions: Sequence[Precision], asked: str | None, *, emulate: bool = False
) -> tuple[Gpu, str]:
    """The GPU for a job that trains in all of `precisions`, and why: of those that can, the largest.

    A DGX Station has two unlike ones, often the smaller first. An index or a UUID may be `asked` for (its beginning is
    enough). Raises UsageError where there is no such GPU, or none that can: with what was found, what is needed and
    what would work.
    """
    wanted = {each.name: each for each in precisions}
    able = _able(gpus, wanted, emulate=emulate)
    if asked is not None:
        gpu = _find(gpus, asked)
        if gpu not in able:
            raise UsageError(_refusal([gpu], wanted, [f"GPU={each.label} ({each.name})" for each in able], emulate))
        return gpu, "asked for"
    if not able:
        raise UsageError(_refusal(list(gpus), wanted, [], emulate))
    known = [gpu for gpu in able if not gpu.probed(precisions, emulate=emulate)]
    without, able = " without a probe" * (0 < len(known) < len(able)), known or able
    best = max(able, key=lambda gpu: (gpu.memory or 0, -gpu.index))
    if len(gpus) == 1:
        return best, "the only GPU"
    names = " and ".join(wanted)
    if len(able) == 1:
        return best, f"the only one of {len(gpus)} GPUs that trains in {names}{without}"
    return best, f"the largest of {len(able)} GPUs that train in {names}"


def for_job(
    gpus: tuple[Gpu, ...], precisions: Sequence[Precision], asked: str | None, *, emulate: bool = False, count: int = 1
) -> tuple[tuple[Gpu, ...], str]:
    """As many GPUs of one kind as a job has processes, and why these. Takes and raises what `choose` does."""
    first, why = choose(gpus, precisions, asked, emulate=emulate)
    return alike(gpus, first, count), why


def alike(gpus: tuple[Gpu, ...], first: Gpu, count: int) -> tuple[Gpu, ...]:
    """`first` and as many others of its kind as make `count`. Raises UsageError where the machine has fewer."""
    if count > 1 and first.instance is not None:
        raise UsageError(f"NPROC={count}: MIG instances do not train together (NCCL has no way between them): NPROC=1")
    kind = [gpu for gpu in gpus if (gpu.name, gpu.memory) == (first.name, first.memory)]
    if count > len(kind):
        others = f" (of {len(gpus)} GPUs; unlike ones do not train together)" if len(gpus) > len(kind) else ""
        raise UsageError(f"NPROC={count}: this machine has {len(kind)} x {first.name}{others}")
    return (first, *[gpu for gpu in kind if gpu != first][: count - 1])


def named(gpus: tuple[Gpu, ...], uuids: Sequence[str]) -> tuple[Gpu, ...]:
    """Those called by their UUIDs; all where none is: CUDA's own numbers are not nvidia-smi's."""
    called = [gpu for gpu in gpus if any(len(word) > 4 and gpu.uuid.startswith(word.strip()) for word in uuids)]
    return tuple(called) or gpus


def _find(gpus: tuple[Gpu, ...], asked: str) -> Gpu:
    name = _bare(asked.strip())
    found = [gpu for gpu in gpus if name in (gpu.label, str(gpu.index))]
    if not found and len(name) >= 4:
        found = [gpu for gpu in gpus if _bare(gpu.uuid).startswith(name)]
    if len(found) != 1:
        listed = "; ".join(f"{gpu}, {gpu.uuid}" for gpu in gpus)
        raise UsageError(f"GPU={asked} is {'more than one' if found else 'none'} of this machine's GPUs: {listed}")
    return found[0]


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")


def _refusal(found: list[Gpu], wanted: Mapping[str, Precision], others: list[str], emulate: bool) -> str:
    """What stands in the way, and what would work: of one precision as commands, of several what to change."""
    missing = [each for each in wanted.values() if not any(gpu.trains_in(each, emulate=emulate) for gpu in found)]
    lines = [f"{each.name} needs {each.needs}." for each in missing]
    lines = lines or [f"no GPU here trains in all of {', '.join(wanted)}."]
    lines += [f"  found: {gpu}" for gpu in found]
    alone = "make nvfp4" if "nvfp4" in wanted else f"make train PRECISION={next(iter(wanted))}"
    again = "the same with" if len(wanted) > 1 else alone
    works = [f"{again} {other}" for other in others]
    able = [name for name in ("fp8", "mxfp8", "bf16") if any(gpu.trains_in(PRECISIONS[name]) for gpu in found)]
    if len(wanted) > 1:
        works += [f"make compare A=bf16 B={name}" for name in able if name != "bf16"]
    else:
        works += ["make bf16" if name == "bf16" else f"make train PRECISION={name}" for name in able]
    if not emulate and "nvfp4" in wanted and _able(found, wanted, emulate=True):
        works.append(f"{again} EMULATE=1   (NVFP4's arithmetic on BF16 tensor cores: its losses, not its speed)")
    return "\n".join([*lines, *(f"  would work: {command}" for command in works)])


def _able(gpus: Iterable[Gpu], wanted: Mapping[str, Precision], *, emulate: bool) -> list[Gpu]:
    """Those that train in each of the precisions."""
    return [gpu for gpu in gpus if all(gpu.trains_in(each, emulate=emulate) for each in wanted.values())]
