"""Logs as they come out of container engines, launchers, loggers and terminals read like the original."""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from playbook.record import log_lines
from playbook.record.megatron_log import NotAMegatronLog, read_log
from pretraining.record.run_folder import Verdict

LOGS = Path(__file__).parents[2] / "logs"
FP8 = LOGS / "h200-fp8-0.4.0.log"
CPU = LOGS / "cpu-fp32-0.3.1.log"


def clock(form: str) -> Callable[[int], str]:
    """A time stamp that goes on a third of a second a line."""
    return lambda number: form.format(
        h=6 + number // 9000, m=number // 180 % 60, s=number // 3 % 60, f=number * 331 % 1000
    )


ISO = clock("2026-11-22T{h:02}:{m:02}:{s:02}.{f:03}456789Z")
PYTHON = clock("2026-11-22 {h:02}:{m:02}:{s:02},{f:03}")
SYSLOG = clock("Nov 22 {h:02}:{m:02}:{s:02}")
PREFIXES: dict[str, Callable[[int], str]] = {
    "docker logs -t": lambda n: f"{ISO(n)} ",
    "docker compose": lambda n: "trainer-1  | ",
    "CRI, as in /var/log/pods": lambda n: f"{ISO(n)} stdout F ",
    "kubectl --prefix": lambda n: "[pod/nvfp4-worker-0-x7k2p/pytorch] ",
    "kubectl --timestamps": lambda n: f"{ISO(n)} ",
    "stern": lambda n: "nvfp4-worker-0 pytorch ",
    "journald": lambda n: f"{SYSLOG(n)} dgx-station docker[4242]: ",
    "syslog with a zone": lambda n: f"2026-11-22T06:{n // 60 % 60:02}:{n % 60:02}+01:00 node-17 train[77]: ",
    "srun -l": lambda n: "0: ",
    "srun -l of many": lambda n: "  7: ",
    "torchrun --tee": lambda n: "[default0]:",
    "srun and torchrun": lambda n: "0: [default0]:",
    "torch": lambda n: "[rank0]: ",
    "NeMo-Run": lambda n: "pretrain/0 [default0]:",
    "mpirun --tag-output": lambda n: "[1,0]<stdout>:",
    "mpirun --timestamp-output": lambda n: f"Sun {SYSLOG(n)} 2026[1,0]<stdout>:",
    "Ray": lambda n: "(TrainWorker pid=4242, ip=10.0.0.7) ",
    "logging": lambda n: f"{PYTHON(n)} - train - INFO - ",
    "logging with a level first": lambda n: f"INFO {PYTHON(n)} launcher.py:88] ",
    "loguru": lambda n: f"{PYTHON(n)} | INFO     | launch:stream:41 - ",
    "glog": lambda n: f"I1122 {6 + n // 9000:02}:{n // 60 % 60:02}:{n % 60:02}.{n * 331 % 1000:03}000 4242 tee.cc:17] ",
    "GitHub Actions": lambda n: f"{ISO(n)[:-3]}Z ",
    "Jenkins": lambda n: f"[{ISO(n)}] ",
    "ts": lambda n: f"{SYSLOG(n)} ",
    "ts with seconds since the start": lambda n: f"{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02} ",
    "seconds of the epoch": lambda n: f"{1795000000 + n / 3:.6f} ",
    "dmesg": lambda n: f"[{n / 3:12.6f}] ",
    "grep -n": lambda n: f"{n + 1}:",
    "grep with a file name": lambda n: f"logs/train-7.log:{n + 1}:",
    "cat -n": lambda n: f"{n + 1:6}\t",
    "a line number in brackets": lambda n: f"[{n + 1}] ",
    "Markdown's quotation": lambda n: "> ",
    "a code block": lambda n: "    ",
    "a tab": lambda n: "\t",
    "a diff": lambda n: "+",
    "journald, docker and a rank": lambda n: f"{SYSLOG(n)} node-3 docker[99]: {ISO(n)} [rank0]: ",
    "a quotation of docker logs": lambda n: f"> {ISO(n)} ",
}


def prefixed(log: bytes, prefix: Callable[[int], str]) -> bytes:
    return b"".join(prefix(n).encode() + line for n, line in enumerate(log.splitlines(keepends=True)))


def of_json(log: bytes, name: str) -> bytes:
    """JSON lines; those named "log" as Docker writes them."""
    lines = log.decode().splitlines(keepends=name == "log")
    return "".join(
        json.dumps({name: line, "stream": "stdout", "time": ISO(n)}) + "\n" for n, line in enumerate(lines)
    ).encode()


def wrapped(log: bytes, width: int, *, padded: bool = False) -> bytes:
    """Each line cut at a terminal's width."""
    pieces = [line[at : at + width] for line in log.split(b"\n") for at in range(0, max(len(line), 1), width)]
    return b"".join(piece.ljust(width if padded else 0) + b"\n" for piece in pieces)


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "docker's JSON": lambda log: of_json(log, "log"),
    "a logger's JSON": lambda log: of_json(log, "message"),
    "UTF-16 of PowerShell": lambda log: log.decode().replace("\n", "\r\n").encode("utf-16"),
    "gzip": gzip.compress,
    "80 columns": lambda log: wrapped(log, 80),
    "120 columns": lambda log: wrapped(log, 120),
    "200 columns": lambda log: wrapped(log, 200),
    "100 columns, padded": lambda log: wrapped(log, 100, padded=True),
    "120 columns of docker logs -t": lambda log: wrapped(prefixed(log, ISO_BLANK), 120),
    "docker's JSON of torchrun": lambda log: of_json(prefixed(log, PREFIXES["torchrun --tee"]), "log"),
}
ISO_BLANK = PREFIXES["docker logs -t"]


def same(path: Path, original: Path) -> None:
    read, whole = read_log(path), read_log(original)
    assert read.train == whole.train
    assert read.parity == whole.parity
    assert read.precision == whole.precision
    assert read.outcome == whole.outcome
    assert read.environment["mock_data"] == whole.environment["mock_data"]


@pytest.mark.parametrize("name", PREFIXES)
@pytest.mark.parametrize("log", [FP8, CPU], ids=lambda log: log.stem)
def test_what_stands_before_a_line_changes_nothing(tmp_path: Path, name: str, log: Path) -> None:
    path = tmp_path / "train.log"
    path.write_bytes(prefixed(log.read_bytes(), PREFIXES[name]))
    same(path, log)


@pytest.mark.parametrize("name", FORMS)
def test_how_a_log_was_kept_changes_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / "train.log"
    path.write_bytes(FORMS[name](FP8.read_bytes()))
    same(path, FP8)


@pytest.mark.parametrize("label", ["{}: ", "[rank{}]: ", "[default{}]:", "worker-{}  | ", f"{ISO(7)} node-{{}} "])
def test_ranks_in_one_file_are_told_apart(tmp_path: Path, label: str) -> None:
    """Rank 1 prints a summary of its own, with other words, between the lines of rank 0's."""

    def other(lines: list[bytes]) -> Iterator[bytes]:
        numbers = count(1)
        for line in lines:
            yield label.format(0).encode() + line
            changed = re.sub(rb"(num_layers|global_batch_size): \d+", rb"\1: 77", line)
            if b"iteration" not in line and b"Step Time" not in line and next(numbers) % 3:
                yield label.format(1).encode() + changed

    path = tmp_path / "train.log"
    path.write_bytes(b"".join(other(FP8.read_bytes().splitlines(keepends=True))))
    read, whole = read_log(path), read_log(FP8)
    assert read.train == whole.train
    assert (read.parity["num_layers"], read.parity["global_batch_size"]) == (8, 16)
    assert read.verdict is Verdict.SUCCEEDED


def test_a_prefix_of_some_lines_only(tmp_path: Path) -> None:
    """What a launcher prints itself has none."""
    lines = prefixed(FP8.read_bytes(), PREFIXES["torchrun --tee"]).splitlines(keepends=True)
    path = tmp_path / "train.log"
    path.write_bytes(b"+ torchrun --nproc 8 train.py\nW1122 setting OMP_NUM_THREADS\n" + b"".join(lines) + b"bye\n")
    same(path, FP8)


def test_no_prefix_is_seen_where_there_is_none() -> None:
    text = FP8.read_bytes()
    assert b"".join(log_lines.read(FP8)) == text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "Training epoch 0, iteration 0/39 | lr: 1e-06 | reduced_train_loss: 4.0 | train_step_timing in s: 1.4\n",
            "NeMo 2",
        ),
        ("[titan] step: 10  loss:  7.1  grad_norm: 1.2  memory: 30.1GiB(38%)  tps: 7,300  tflops: 320\n", "torchtitan"),
        ("{'loss': 2.31, 'grad_norm': 1.2, 'learning_rate': 5e-05, 'epoch': 0.1}\n", "Hugging Face"),
        ("Epoch 0:  10%|#  | 10/100 [00:10<01:30,  1.00it/s, v_num=0, reduced_loss=9]\n", "Lightning"),
    ],
)
def test_another_trainers_log_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "train.log"
    path.write_text("INFO:megatron.core.utils:hello\n" + text * 3)
    with pytest.raises(NotAMegatronLog, match=says):
        read_log(path)


def test_the_first_nodes_log_says_where_the_iterations_are(tmp_path: Path) -> None:
    path = tmp_path / "node0.log"
    path.write_bytes(b"".join(line for line in FP8.read_bytes().splitlines(True) if b"] iteration " not in line))
    with pytest.raises(NotAMegatronLog, match="the log of the last node"):
        read_log(path)


MEGATRON_LM = """using world size: 8, data-parallel size: 4, context-parallel size: 1, tensor-model-parallel size: 2, \
pipeline-model-parallel size: 1
------------------------ arguments ------------------------
  bf16 ............................................ True
  ffn_hidden_size ................................. 14336
  fp8 ............................................. None
  global_batch_size ............................... 16
  hidden_size ..................................... 4096
  lr .............................................. 0.0003
  micro_batch_size ................................ 2
  num_attention_heads ............................. 32
  num_layers ...................................... 8
  seed ............................................ 1234
  seq_length ...................................... 4096
  train_iters ..................................... 40
-------------------- end of arguments ---------------------
 [2026-11-22 06:58:01] iteration        1/      40 | consumed samples:           16 | elapsed time per iteration (ms): \
4320.0 | throughput per GPU (TFLOP/s/GPU): 499.8 | learning rate: 3.0E-05 | global batch size:    16 | lm loss: \
5.881746E+00 | loss scale: 1.0 | grad norm: 1.300 | number of skipped iterations:   0 | number of nan iterations:   0 |
"""


def test_megatron_lms_arguments_are_settings(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text(MEGATRON_LM)
    run = read_log(path)
    expected = {"num_layers": 8, "sequence_length": 4096, "world_size": 8, "tensor_parallel": 2, "micro_batch_size": 2}
    assert expected.items() <= run.parity.items()
    assert run.precision["name"] == "bf16" and run.train[0]["model_tflops"] == 499.8
