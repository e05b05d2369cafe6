"""Whether a job would work on this machine, before it is started: GPU, driver, engine, image, memory, disk and so on.

One check a line, the remedy under each cross. Nothing is changed or pulled, and nothing started but a look into the
image, of a second, where it is here. What the chosen job does not need is shown and decides nothing.
"""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from playbook import PROJECT
from playbook.cli import train
from playbook.common.venvs import python_of
from playbook.launch.container import engine, image, user
from playbook.launch.container.engine import Engine
from playbook.launch.container.spec import PROXIES, given, huggingface_caches
from playbook.launch.container.underway import in_containers, in_processes
from playbook.plan import gpus, hub, local_python, place
from playbook.plan.gpus import Inventory
from playbook.plan.place import Image, Wanted
from pretraining import nemo_images, packages
from pretraining.errors import UsageError
from pretraining.request import footprint, settings
from pretraining.request.precisions import Precision
from pretraining.request.recipe import recipe_checks
from pretraining.request.settings import Settings
from pretraining.units import gigabytes

CHECKPOINT_BYTES_A_PARAMETER = 13.1  # weights, master weights and Adam's two moments: 105 GB for 8B
RUN_FOLDER_BYTES = 1e9
CPU_ENVIRONMENT_BYTES = 6e9
IMAGE_BYTES = 25e9  # an estimate of what a pull of NeMo's brings, compressed: no engine tells it before
UNPACKED = 2.5  # on disk, compared with its download
HELD = "`make attach` follows it, `make stop` ends it"
# Megatron-Bridge's own requirements on bare metal.
REQUIRED = {"torch": (2, 7), "cuda": (12, 8), "cudnn": (9, 3)}
SHARED_MEMORY_BYTES = 1e9
SHARED_MEMORY = Path("/dev/shm")
CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
_VERSIONS = """
import importlib.metadata as metadata, json, platform
found = {"python": platform.python_version()}
for name in ("megatron-bridge", "megatron-core", "transformer-engine"):
    try: found[name] = metadata.version(name)
    except metadata.PackageNotFoundError: pass
try:
    import torch
    cudnn = torch.backends.cudnn.version() or 0
    major = 10000 if cudnn >= 90000 else 1000
    found["cudnn"] = f"{cudnn // major}.{cudnn % major // 100}"
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda or "0"}
except ImportError: pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool | None  # None for a fact that nothing depends on
    found: str
    remedy: str = ""  # what to do where not ok
    needed: bool = True  # the chosen job fails without it


def examine(
    wanted: Wanted, precision: Precision, chosen: Settings, runtime: str, inventory: Inventory, runs: Path
) -> Iterator[Check]:
    """Every check, in the order in which a job would meet them.

    `precision` is the job's most demanding one, `runtime` what `wanted` comes to, `runs` where run folders go.
    """
    yield Check("runtime", None, runtime)
    yield from _gpu_checks(inventory, wanted, precision, needed=runtime != "cpu")
    if runtime == "container":
        yield from _engine_checks(wanted, inventory, precision, chosen)
    elif runtime == "local":
        yield from _local_checks(precision, _least_engine(inventory, wanted, precision, chosen))
        yield from _local_memory()
    elif not python_of("cpu").exists():
        yield _space("disk for the CPU environment", PROJECT, CPU_ENVIRONMENT_BYTES)
    for each in in_processes(runs):  # those in containers are the engine's to tell
        yield Check("training", False, f"{each} trains on this machine", HELD, needed=False)
    yield from _disk_checks(chosen, runs)
    yield from _folder_checks(chosen, runs, runtime)
    yield from _token_check(chosen)


def _gpu_checks(inventory: Inventory, wanted: Wanted, precision: Precision, *, needed: bool) -> Iterator[Check]:
    if not inventory.gpus:
        remedy = inventory.problem or "RUNTIME=cpu trains a small model without one"
        yield Check("GPU", False if needed or inventory.problem else None, "no NVIDIA GPU that answers", remedy, needed)
        return
    yield Check("NVIDIA driver", True, f"{inventory.driver}, CUDA up to {inventory.cuda}")
    for note, remedy in inventory.notes:
        yield Check("GPU", False, note, remedy, needed=False)
    for gpu in inventory.gpus:
        users = f"in use by {', '.join(map(str, gpu.users))}" if gpu.users else "idle"
        trains = f"trains in {', '.join(gpu.precisions()) or 'none of the precisions here'}"
        yield Check(f"GPU {gpu.label}", None, f"{gpu.name}, {gpu.size}; {trains}; {users}; {gpu.uuid}")
    try:
        chosen, why = _with_reason(inventory, wanted, precision)
    except UsageError as error:
        cause, *rest = str(error).splitlines()
        yield Check(precision.name, False, cause, "\n".join(line.strip() for line in rest), needed)
    else:
        probed = "; to be probed at the start" * bool(chosen[0].probed([precision], emulate=wanted.emulate))
        named = " and ".join(f"GPU {gpu.label} {gpu.name}" for gpu in chosen)
        yield Check(precision.name, True, f"on {named}, {why}{probed}")


def _probes(inventory: Inventory, wanted: Wanted, precision: Precision) -> bool:
    """Whether a probe has to admit the job's GPU."""
    return any(gpu.probed([precision], emulate=wanted.emulate) for gpu in _chosen(inventory, wanted, precision)[:1])


def _chosen(inventory: Inventory, wanted: Wanted, precision: Precision) -> tuple[gpus.Gpu, ...]:
    """The job's GPUs; () where there are none such, which the precision's own line says."""
    try:
        return _with_reason(inventory, wanted, precision)[0]
    except (UsageError, ValueError):
        return ()


def _with_reason(inventory: Inventory, wanted: Wanted, precision: Precision) -> tuple[tuple[gpus.Gpu, ...], str]:
    return gpus.for_job(inventory.gpus, [precision], wanted.gpu, emulate=wanted.emulate, count=wanted.processes)


def _engine_checks(wanted: Wanted, inventory: Inventory, precision: Precision, chosen: Settings) -> Iterator[Check]:
    try:
        connected = engine.connect()
    except engine.EngineError as error:
        yield Check("Docker engine", False, error.cause, error.remedy)
        return
    product = "Podman " if connected.podman else ""
    yield Check("Docker engine", True, f"{product}{connected.version}, API {connected.api_version}{connected.kind}")
    if connected.no_gpus:
        yield Check("GPUs in containers", False, *connected.no_gpus)
    else:
        how = {"nvidia": "NVIDIA Container Toolkit", "cdi": "CDI (nvidia.com/gpu)"}[connected.kind.gpus]
        yield Check("GPUs in containers", True, how)
    if "/snap/" in connected.data:
        remedy = "install docker-ce or docker.io in its place: docs.docker.com/engine/install"
        said = "from a snap: it sees folders below /home alone"
        yield Check("engine's confinement", False, said, remedy, needed=False)
    for name in given(PROXIES):
        if urlsplit(os.environ[name]).hostname in ("localhost", "127.0.0.1", "::1"):
            remedy = "give an address of it that a container reaches, or a local folder to what is downloaded"
            said = f"{name} is this machine itself, which a container is not"
            yield Check("proxy", False, said, remedy, needed=False)
    yield Check("memory for containers", None, f"{gigabytes(connected.memory)} of the machine's")
    if connected.kind.rootless:  # one that runs as root may raise this limit for a container
        yield _locked_memory(needed=True)
    least = _least_engine(inventory, wanted, precision, chosen)
    yield from _image_checks(connected, wanted, inventory, least)
    if _probes(inventory, wanted, precision) and (old := image.too_old_to_probe(image.named(wanted.tag))):
        cause, _, remedy = old.partition(": ")
        yield Check("image for the probe", False, cause, remedy)
    yield from _container_checks(connected, inventory, wanted, precision)


def _locked_memory(*, needed: bool) -> Check:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    ok = limit == resource.RLIM_INFINITY
    remedy = "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/memlock.conf, then log out and in again"
    return Check("locked memory", ok, "unlimited" if ok else f"at most {gigabytes(limit, 2)}", remedy, needed)


def _image_checks(connected: Engine, wanted: Wanted, inventory: Inventory, least: tuple[int, ...]) -> Iterator[Check]:
    name = image.named(wanted.tag)
    try:
        found = image.find(connected, name)
        if not found:
            image.check_pull(connected, name)
    except engine.EngineError as error:
        yield Check("image", False, error.cause, error.remedy)
        return
    if not found:
        yield Check("image", True, f"{name} is not here yet: NeMo's are about {gigabytes(IMAGE_BYTES)} to pull, once")
        data = Path(connected.data)
        if data.is_dir():
            yield _space("disk for the image", data, IMAGE_BYTES * (1 + UNPACKED))
        return
    yield Check("image", True, f"{name}, {found.digest[:19]}, {gigabytes(found.size, 1)}")
    if found.cuda and inventory.cuda:
        ok = _numbers(inventory.cuda)[0] >= _numbers(found.cuda)[0]
        said = f"it is made for CUDA {found.cuda}, the driver serves up to {inventory.cuda}"
        remedy = "update the NVIDIA driver; an older one works only with the compatibility libraries in the image"
        yield Check("driver for the image", ok, said, remedy, needed=False)
    yield from _look_into(connected, found, wanted.container_user, least)


def _look_into(connected: Engine, found: Image, asked: str, least: tuple[int, ...]) -> Iterator[Check]:
    """What trains in the image, and who: the check that every start of a container makes."""
    try:
        inside = user.check(connected, found)
    except engine.EngineError as error:
        yield Check("inside the image", False, error.cause, error.remedy)
        return
    yield Check("inside the image", True, str(inside))
    if least:
        yield _version("transformer-engine", inside.versions, least, nemo_images.with_engine(least))
    if not inside.closed:
        yield Check("user in the container", True, f"{asked or 'me'}: all of it can be read")
        return
    said = f"{inside.closed} of the image is closed to you"
    if asked != "me":
        said += ": root works inside, and files are handed to you at the end"
    yield Check("user in the container", asked != "me", said, user.REMEDY)


def _container_checks(connected: Engine, inventory: Inventory, wanted: Wanted, precision: Precision) -> Iterator[Check]:
    left = in_containers(connected)
    if not left:
        yield Check("leftover containers", True, "none")
    for each in left:
        if not each.running and each.launcher is None:
            yield Check("container", False, f"{each} has ended", "any make command records it", needed=False)
            continue
        blocks = any(each.holds(gpu.uuid) for gpu in _chosen(inventory, wanted, precision))
        remedy = HELD if each.own else "wait for it, or ask whose it is"
        yield Check("container", False, f"{each} trains", remedy, needed=blocks)


def _least_engine(inventory: Inventory, wanted: Wanted, precision: Precision, chosen: Settings) -> tuple[int, ...]:
    """The oldest Transformer Engine that has what is asked for; () where any will do."""
    if precision.fp4 and wanted.emulate:
        return packages.CUSTOM_RECIPES
    needed = [*recipe_checks.later_engine(chosen.nvfp4, chosen.late_switch).values()]
    needed += [packages.NVFP4] * precision.fp4 + [packages.PROBED] * _probes(inventory, wanted, precision)
    return max(needed, default=())


def _local_checks(precision: Precision, engine_release: tuple[int, ...]) -> Iterator[Check]:
    python = local_python.python()
    found = _versions(python)
    remedy = "put the Python 3.12 that has Megatron-Bridge first on PATH, as python3"
    yield Check("Python", "python" in found, f"{found.get('python', 'none that starts')}, {python}", remedy)
    for name, least in REQUIRED.items():
        yield _version(name, found, least, "pip install 'torch>=2.7', for CUDA 12.8 or newer")
    yield _version("megatron-bridge", found, (), "pip install megatron-bridge, for Python 3.12")
    needed = precision.quantized
    remedy = "pip install --no-build-isolation 'transformer-engine[pytorch]'"
    yield _version("transformer-engine", found, engine_release, remedy, needed=needed)


def _versions(python: str) -> dict[str, str]:
    """What that interpreter has; empty where it does not start."""
    try:
        ended = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=False)
        return json.loads(ended.stdout.strip().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}


def _version(name: str, found: dict[str, str], least: tuple[int, ...], remedy: str, *, needed: bool = True) -> Check:
    version = found.get(name)
    needs = f" (needs {'.'.join(map(str, least))} or newer)" if least else ""
    ok = version is not None and _numbers(version) >= least
    return Check(name, ok, f"{version or 'missing'}{needs}", remedy, needed)


def _local_memory() -> Iterator[Check]:
    """What a container that somebody else started may lack: NVIDIA starts its own with --ipc=host and no such limit."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # "max", or no such control group
        total = min(total, int(CGROUP_MEMORY.read_text()))
    yield Check("memory", None, gigabytes(total))
    shared = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0
    remedy = "start the container with --ipc=host"
    yield Check("shared memory", shared >= SHARED_MEMORY_BYTES, gigabytes(shared, 2), remedy, needed=False)
    yield _locked_memory(needed=False)


def _numbers(version: str) -> tuple[int, int]:
    parts = [int(part) if part.isdigit() else 0 for part in version.split("+")[0].split(".")[:2]]
    return (parts[0], parts[1] if len(parts) > 1 else 0)


def _disk_checks(chosen: Settings, runs: Path) -> Iterator[Check]:
    needed = RUN_FOLDER_BYTES
    name = "disk for runs"
    if chosen.save:
        needed += footprint.parameters(footprint.shape_of(chosen.model.hf_config)) * CHECKPOINT_BYTES_A_PARAMETER
        name = "disk for runs and a checkpoint"
    yield _space(name, _existing(runs), needed)


def _space(name: str, folder: Path, needed: float) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{gigabytes(free)} free in {folder}, about {gigabytes(needed)} needed"
    return Check(name, free >= needed, found, "free some space; `make clean` removes old runs")


def _folder_checks(chosen: Settings, runs: Path, runtime: str) -> Iterator[Check]:
    folders = {"run folders": runs, "cache": chosen.cache_dir}
    if runtime == "container":
        folders |= {f"Hugging Face's {name}": folder for name, folder in huggingface_caches().items()}
    for name, folder in folders.items():
        there = _existing(folder)
        ok = os.access(there, os.W_OK | os.X_OK)
        yield Check(name, ok, f"{folder} {'can' if ok else 'cannot'} be written", f"sudo chown -R $USER {there}")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there and may be seen."""
    return folder if os.path.isdir(folder) or folder == folder.parent else _existing(folder.parent)


def _token_check(chosen: Settings) -> Iterator[Check]:
    wanted = [name for name in (chosen.weights, chosen.tokenizer) if name and not Path(name).exists()]
    if not wanted:
        given = "set" if os.environ.get("HF_TOKEN") else "not set"
        yield Check("Hugging Face token", None, f"{given}; {chosen.model.name} needs none, its config is in assets/")
    for name in dict.fromkeys(wanted):
        yield Check("Hugging Face", *hub.access(name))


def report(checks: list[Check], *, as_json: bool) -> int:
    """Print the checks. Returns the exit code: 1 where one that the job needs is not ok."""
    failed = [check for check in checks if check.ok is False and check.needed]
    if as_json:
        rows = [{**vars(check), "remedy": check.remedy if check.ok is False else ""} for check in checks]
        print(json.dumps({"ok": not failed, "checks": rows}, indent=2))
        return 1 if failed else 0
    width = max(len(check.name) for check in checks)
    columns = shutil.get_terminal_size((120, 0)).columns
    for check in checks:
        mark = {True: "✓", False: "✗", None: "·"}[check.ok]
        head = f"{mark} {check.name:<{width}}  "
        whole = {"break_long_words": False, "break_on_hyphens": False}
        room = max(columns, len(head) + 30)
        print(textwrap.fill(check.found, room, initial_indent=head, subsequent_indent=" " * len(head), **whole))
        if check.ok is False:
            for line in check.remedy.splitlines():  # whole, because commands are copied
                print(f"  {'':<{width}}  → {line}")
    print("\nready" if not failed else f"\nnot ready: {', '.join(check.name for check in failed)}")
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    flags = train.parser("run.py doctor")
    flags.add_argument("--json", action="store_true", help="for programs")
    args = flags.parse_args(arguments)
    wanted = train.wanted(args)
    inventory = gpus.read()
    runtime = place.runtime_of(wanted.runtime, inventory).value
    place.check_of_use(runtime, tag=args.tag, gpu=args.gpu, user=args.container_user)
    chosen = settings.resolve(args, on_gpu=runtime != "cpu", processes=args.nproc)
    return report(list(examine(wanted, chosen.precision, chosen, runtime, inventory, args.runs)), as_json=args.json)
