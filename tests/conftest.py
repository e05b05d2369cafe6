"""What several test files share: the real training script, run in the test environment's own Python on the CPU."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from warm_python import WarmPython

PROJECT = Path(__file__).resolve().parents[1]
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: kernels are decorated for one or the other
SCRIPT = PROJECT / "assets" / "pretrain_llama.py"
os.environ.setdefault("NUMBA_CACHE_DIR", str(PROJECT / ".cache" / "numba"))  # one for tests and trainings
_NOT_INHERITED = ("MASTER_PORT", "RANK", "WORLD_SIZE", "TRITON_INTERPRET", "USE_TORCH")
SECONDS = 240  # for one training; ten times what it takes alone, because the machine may be busy


def cpu_environment(**more: str) -> dict[str, str]:
    """The environment of a training: no GPU, one thread (the same sums in the same order on every machine)."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    fixed = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return inherited | fixed | {"PYTHONPATH": str(PROJECT / "assets")} | more


@pytest.fixture(autouse=True)
def engine_variables() -> Iterator[None]:
    """What a test sets of Transformer Engine's own variables, as `nvfp4_recipe.use` does, ends with it."""
    before = {name: value for name, value in os.environ.items() if name.startswith("NVTE_")}
    yield
    for name in [each for each in os.environ if each.startswith("NVTE_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def project() -> Path:
    """The repository."""
    return PROJECT


@pytest.fixture(scope="session")
def environment() -> Callable[..., dict[str, str]]:
    """`environment(NAME="value")`: the variables of a training."""
    return cpu_environment


MEGATRON = """
from pretraining.megatron import cpu
cpu.enable()
import megatron.bridge.training.pretrain
from pretraining.megatron import bridge_config, changes, weights
from pretraining.run import run_facts
"""


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmPython]:
    """Pythons that have imported what a training does."""
    python = WarmPython(MEGATRON, cpu_environment())
    yield python
    python.close()


@pytest.fixture(scope="session")
def train(
    tmp_path_factory: pytest.TempPathFactory, warm: WarmPython
) -> Callable[..., tuple[Path, subprocess.CompletedProcess[str]]]:
    """`train("bf16", "--seed", "7")` runs 6 iterations of the tiny model; gives run folder and ended process.

    `fresh` starts Python anew, as a user does.
    """
    tmp_path_factory.getbasetemp()  # pytest makes it on first use, and two threads would make two

    def run(
        precision: str,
        *flags: str,
        code: int | None = 0,
        folder: Path | None = None,
        python: str = sys.executable,
        fresh: bool = False,
        **more: str,
    ) -> tuple[Path, subprocess.CompletedProcess[str]]:
        folder = folder or tmp_path_factory.mktemp("train") / precision
        words = training_command(precision, folder, *flags)[1:]
        if python == sys.executable and not fresh:
            ended = warm.run(words, cpu_environment(**more), SECONDS)
        else:
            ended = subprocess.run(
                [python, *words], env=cpu_environment(**more), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=SECONDS, check=False,
            )  # fmt: skip
        if code is not None:
            assert ended.returncode == code, ended.stdout[-2000:] + ended.stderr[-2000:]
        return folder, ended

    return run


def training_command(precision: str, folder: Path, *flags: str) -> list[str]:
    """The tiny model, 6 iterations of 8 sequences unless `flags` say otherwise."""
    sizes = {"--model": "tiny", "--train-iters": "6", "--global-batch-size": "8", "--precision": precision}
    wanted = [part for flag, value in sizes.items() if flag not in flags for part in (flag, value)]
    return [sys.executable, str(SCRIPT), *wanted, "--run-dir", str(folder), *flags]


@pytest.fixture
def start_training() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start_training(folder, "--seed", "7")`: a running BF16 training; killed after the test if need be.

    `code` changes something in its process before it begins.
    """
    started = []

    def start(folder: Path, *flags: str, code: str = "", **more: str) -> subprocess.Popen[str]:
        command = training_command("bf16", folder, *flags)
        if code:
            command[1:2] = ["-c", f"import pretrain_llama\n{code}\npretrain_llama.main()"]
        started.append(
            subprocess.Popen(
                command,
                env=cpu_environment(**more),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def wait_until(true: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until `true()` is, and fail where it is not in time."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """`until(condition, seconds)` waits for it."""
    return wait_until


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., str]:
    """`make_dataset(folder / "name", tokens=5000)` writes a Megatron .bin/.idx pair and gives its prefix."""

    def make(prefix: Path, tokens: int, document: int = 100) -> str:
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        generator = np.random.default_rng(3)
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        for start in range(0, tokens, document):
            piece = generator.integers(0, 257, min(document, tokens - start)).astype(np.uint16)
            builder.add_document(piece, [len(piece)])
        builder.finalize(f"{prefix}.idx")
        return str(prefix)

    return make


@pytest.fixture(scope="session")
def instructions(tmp_path_factory) -> Path:
    """Sums to learn, and a tokenizer whose words are tiny's: the 256 bytes and an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("instructions")
    words = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = Tokenizer(models.BPE(vocab={**words, "<end>": 256}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    for name, count in (("training", 64), ("validation", 16)):
        lines = [json.dumps({"input": f"What is {n}+{n}?", "output": f"It is {2 * n}."}) + "\n" for n in range(count)]
        (folder / f"{name}.jsonl").write_text("".join([lines[0], "\n", *lines[1:]]))  # with a blank line
    return folder


@pytest.fixture
def make(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`make("help")`: the ended process."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")

    def run(*arguments: str, cwd: Path = project, **more: str) -> subprocess.CompletedProcess[str]:
        ours = ("MAKE", "MFLAGS", "PLAYBOOK")
        plain = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return subprocess.run(
            ["make", *arguments], cwd=cwd, env=plain | more, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """Megatron's process groups for layers that are built in the test's own process."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    with tempfile.NamedTemporaryFile() as rendezvous:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous.name}", rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        yield
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """`make_checkpoint(run, 3, 6)`: whole checkpoints in a run folder, as far as they are looked at before loading."""

    def make(run: Path, *iterations: int) -> Path:
        import torch
        from torch.distributed.checkpoint import filesystem

        root = run / "checkpoints"
        for iteration in iterations:
            folder = root / f"iter_{iteration:07}"
            folder.mkdir(parents=True)
            stored = {at: filesystem._StorageInfo(f"__0_{at}.distcp", 0, 3000) for at in (0, 1)}
            (folder / ".metadata").write_bytes(pickle.dumps(filesystem.Metadata({}, storage_data=stored)))
            for each in stored.values():
                (folder / each.relative_path).write_bytes(bytes(3000))
            for name in ("common.pt", "train_state.pt"):
                torch.save({"step": torch.tensor(iteration)}, folder / name)
            (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
            (folder / "run_config.yaml").write_text("model: {fp4: null}\n")
            shutil.copy(folder / "train_state.pt", root / "latest_train_state.pt")
            (root / "latest_checkpointed_iteration.txt").write_text(str(iteration))
        return run

    return make


@pytest.fixture(scope="session")
def write_tensors() -> Callable[..., None]:
    """`write_tensors(folder / "model.safetensors", {"a": (2, 3)})`: zeros in BF16, or as a third argument says."""
    sizes = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I8": 1, "I32": 4}

    def write(path: Path, tensors: dict[str, tuple[int, ...]], dtypes: dict[str, str] | None = None) -> None:
        header, end = {}, 0
        for name, shape in tensors.items():
            dtype = (dtypes or {}).get(name, "BF16")
            begin, end = end, end + sizes[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))

    return write


@pytest.fixture(scope="session")
def make_model(write_tensors) -> Callable[[Path], Path]:
    """`make_model(folder)`: a Hugging Face folder of the tiny model, all of it zeros."""

    def make(folder: Path) -> Path:
        from pretraining.request import pretrained
        from pretraining.request.models import find_model

        config = find_model("tiny").hf_config
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        write_tensors(folder / "model.safetensors", pretrained.llama_shapes(config))
        return folder

    return make
