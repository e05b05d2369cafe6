"""Two processes on the CPU over gloo, each way of sharing the work, from one checkpoint: one process's losses."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from playbook.launch.local import WITHOUT_PORT, distributed_run
from pretraining.record import run_folder
from pretraining.record.run_folder import Verdict
from pretraining.run.stragglers import ENOUGH, SKIPPED

pytestmark = [pytest.mark.slow, pytest.mark.parallel]  # two processes want both cores of a small machine

START = 2
ITERATIONS = START + SKIPPED + ENOUGH
COMPARED = 10  # losses; later, sums in another order have grown to more than the tolerance
SIZES = (
    "--global-batch-size", "16", "--micro-batch-size", "8", "--seq-length", "64", "--train-iters", str(ITERATIONS),
    "--warmup-iters", "8",
)  # fmt: skip
SLOW = """
import os, time

def forward_step(state, data_iterator, model, return_schedule_plan=False):
    from megatron.bridge.training.gpt_step import forward_step
    if os.environ["RANK"] == "1":
        time.sleep(0.1)
    return forward_step(state, data_iterator, model, return_schedule_plan)
"""
SLOW_ATTENTION = """
import os, time

def configure(config):
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    usual = DotProductAttention.forward

    def forward(*args, **kwargs):
        time.sleep(0.01)
        return usual(*args, **kwargs)

    if os.environ["RANK"] == "{rank}":
        DotProductAttention.forward = forward
    config.model.register_pre_wrap_hook(number)

def number(chunks):
    from pretraining.megatron.linear_layers import linear_layers
    numbers = sorted({{number for number, _, _ in linear_layers(chunks)}})
    # In one write, line ends and all: what the other process prints lands in the same pipe.
    os.write(1, " ".join(map(str, ["\\nLAYERS", os.environ["RANK"], *numbers, "\\n"])).encode())
    return chunks
"""
DYING = """
import os

def forward_step(state, data_iterator, model, return_schedule_plan=False):
    from megatron.bridge.training.gpt_step import forward_step
    if os.environ["RANK"] == "1":
        raise RuntimeError("a bug on one rank")
    return forward_step(state, data_iterator, model, return_schedule_plan)
"""


def losses(run: run_folder.Run) -> list[float]:
    return [line["loss"] for line in run.train]


@pytest.fixture(scope="module")
def one(train) -> run_folder.Run:
    """One process, with a checkpoint after every second iteration."""
    folder, _ = train("bf16", *SIZES, "--save", str(START))
    return run_folder.read_run(folder)


@pytest.fixture(scope="module")
def start(one, tmp_path_factory) -> Path:
    """The same as it was after its second iteration."""
    folder = tmp_path_factory.mktemp("start") / "run"
    shutil.copytree(one.folder, folder)
    checkpoints = folder / run_folder.CHECKPOINTS
    shutil.copy(checkpoints / f"iter_{START:07}" / "train_state.pt", checkpoints / "latest_train_state.pt")
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    if tracker.exists():
        tracker.write_text(str(START))
    return folder


@pytest.fixture(scope="module")
def on_two(environment, project: Path, tmp_path_factory) -> Callable[..., tuple[subprocess.CompletedProcess, Path]]:
    """`on_two("--tensor-parallel", "2")`: a training of two processes."""

    def run(*flags: str, code: int = 0) -> tuple[subprocess.CompletedProcess[str], Path]:
        folder = tmp_path_factory.mktemp("two") / "run"
        script = str(project / "assets" / "pretrain_llama.py")
        command = [*distributed_run(sys.executable, 2), script]
        command += ["--model", "tiny", "--precision", "bf16", *SIZES, "--run-dir", str(folder), *flags]
        ended = subprocess.run(
            command, env=environment(**WITHOUT_PORT), capture_output=True, text=True, timeout=300, check=False
        )
        assert ended.returncode == code, ended.stdout[-3000:] + ended.stderr[-2000:]
        return ended, folder

    return run


def check_the_same_work(two: run_folder.Run, one: run_folder.Run) -> None:
    assert two.verdict is Verdict.SUCCEEDED
    assert [line["iteration"] for line in two.train] == list(range(START + 1, ITERATIONS + 1))  # one writer
    assert losses(two)[:COMPARED] == pytest.approx(losses(one)[START:][:COMPARED], rel=1e-4)
    assert (two.parity["world_size"], two.environment["processes"]) == (2, 2)


@pytest.mark.parametrize(("kind", "slow"), [("tensor", 1), ("pipeline", 0)])
def test_a_model_over_two_processes_one_of_them_slow(one, start, on_two, tmp_path: Path, kind: str, slow: int) -> None:
    (tmp_path / "slow.py").write_text(SLOW_ATTENTION.format(rank=slow))
    ended, folder = on_two("--resume", str(start), f"--{kind}-parallel", "2", "--plugin", str(tmp_path / "slow.py"))
    two = run_folder.read_run(folder)
    check_the_same_work(two, one)
    assert two.parity[f"{kind}_parallel"] == 2
    numbers = {line.split()[1]: line.split()[2:] for line in ended.stdout.splitlines() if line.startswith("LAYERS")}
    whole = [*"0123"]
    assert numbers == ({"0": whole, "1": whole} if kind == "tensor" else {"0": whole[:2], "1": whole[2:]})
    slowest = two.outcome["slowest_rank"]
    assert slowest["rank"] == slow and slowest["measure"] == "attention" and slowest["attention_s"] > 0.01
    assert run_folder.slowest_rank_sentence(slowest) in ended.stdout
    logs = {path.name for path in (folder / run_folder.RANK_LOGS).iterdir()}
    assert logs == {"0000.log", "0001.log"}
    # Megatron prints iterations on the last rank; the rank's own log has them, the other's does not.
    assert [(folder / run_folder.RANK_LOGS / name).read_text().count("lm loss:") >= 10 for name in sorted(logs)] == [
        False,
        True,
    ]


def test_the_batch_over_two_processes_one_of_them_slow(one, start, on_two, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    ended, folder = on_two("--resume", str(start), "--plugin", str(tmp_path / "slow.py"))
    two = run_folder.read_run(folder)
    check_the_same_work(two, one)
    assert two.parity["parameters"] == one.parity["parameters"]
    slowest = two.outcome["slowest_rank"]
    assert slowest["rank"] == 1 and slowest["local_rank"] == 1
    assert slowest["over_median"] > 0.05 and slowest["own_s"] > 0.1
    assert run_folder.slowest_rank_sentence(slowest) in ended.stdout


def test_a_rank_that_dies_is_the_cause(on_two, tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    began = time.monotonic()
    _, folder = on_two("--plugin", str(tmp_path / "dying.py"), code=1)
    took = time.monotonic() - began
    run = run_folder.read_run(folder)
    assert run.verdict is Verdict.FAILED
    assert run.outcome["cause"].startswith("rank 1 on ") and "a bug on one rank" in run.outcome["cause"]
    assert run.outcome["rank"] == 1
    assert any("dying.py" in line for line in run.outcome["traceback"])
    ended = (folder / run_folder.OUTCOME).stat().st_mtime
    assert took < 60 and time.time() - ended < 30  # from the rank's verdict to the end of the launcher


def test_no_port_is_open_beyond_loopback(on_two) -> None:
    """Of the two, of torch.distributed.run, and of all that they start."""
    ended, _ = on_two("--plugin", str(Path(__file__).parent / "fakes" / "listeners.py"))
    listeners = [line.split()[2] for line in ended.stdout.splitlines() if line.startswith("LISTENS")]
    assert listeners  # gloo's, which shows that another would be seen
    assert {address.partition(":")[0] for address in listeners} == {"0100007F"}
