"""The run folder: what a training leaves behind, its schema, and how to read it back.

    nemo_experiments/20261122T101530Z-nvfp4-tiny/
        plan.json         launcher   before the start: each choice with its reason, git commit
        environment.json  training   versions, device, precision, and the parity facts
        metrics.jsonl     training   one line an iteration or evaluation, flushed as it goes
        device.jsonl      sampler    memory and power of the devices, one line a second; of a second machine
                                     device-<its first rank>.jsonl
        sequences.jsonl   training   of an evaluation, one line a sequence: its split, a name made of its tokens, its
                                     loss in nats a token; of a second replica sequences-<its number>.jsonl
        train.log         training   everything that was printed
        job.json          launcher   of a job on a cluster: its number, script and host
        ranks/0003.log    training   the same of one process, where there are several
        config.yaml       training   the resolved Megatron-Bridge config
        outcome.json      whoever sees the end first: the verdict, its cause, exit code, peak memory
        .lock .launcher   each process of the run, see `lock.py`
        tensorboard/ wandb/ mlruns/   Megatron-Bridge's own writers, each where asked for
        sensitivity.json  training   what NVFP4's rounding does to each linear layer, where it was asked to measure
        trace.json.gz     training   what PyTorch's profiler saw, where it was asked to look

Of a published run (`assets/results`) the two `.jsonl` files are compressed, and end in `.jsonl.gz`.

One writer for each file. JSON files are written beside their place and renamed into it, so a reader never
meets half of one; `metrics.jsonl` loses at most its last line to a power cut. A folder without
`outcome.json` is a run that has not ended, or whose end nobody saw: never a finished one.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from pretraining.record import files, schema
from pretraining.record.schema import Damaged

SCHEMA = schema.SCHEMA
KIND = "nvfp4-playbook-run"  # tells plan, environment and outcome of a run from another tool's; earlier ones lack it

PLAN = "plan.json"
JOB = "job.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SAMPLES = "device.jsonl"
SEQUENCES = "sequences.jsonl"
LOG = "train.log"
RANK_LOGS = "ranks"
CONFIG = "config.yaml"
OUTCOME = "outcome.json"
CHECKPOINTS = "checkpoints"
SELFCHECK = "selfcheck.json"  # alone in its folder: what `make selfcheck` found
SENSITIVITY = "sensitivity.json"
SENSITIVITY_KIND = "nvfp4-playbook-sensitivity"
TRACE = "trace.json.gz"
PROFILE = "profile.json"  # what the launcher made of the trace
PACKED = ".gz"  # ends the name of a file of lines that was compressed
_PIECES, _PIECE = 2048, 4096  # of samples, bytes: half a day at one device, a fifth of a second to read


class Verdict(StrEnum):
    """How a run ended. Only `SUCCEEDED` may be compared without `--force`."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # an error in training or in its set-up; the cause says which
    DIVERGED = "diverged"  # the loss became NaN or infinite
    OUT_OF_MEMORY = "out_of_memory"
    INTERRUPTED = "interrupted"  # Ctrl-C or SIGTERM
    KILLED = "killed"  # ended by a signal that no process can answer
    INCOMPLETE = "incomplete"  # no outcome was written: still running, or its end was not seen


class Peak(StrEnum):
    """What a figure of `peak_memory` measures. All are bytes; the first that is known is the one it leads with."""

    ALLOCATED = "torch allocated"  # largest of all processes, of what tensors took; the cache and libraries come on top
    RESIDENT = "resident set size of the process"  # host memory, largest of all processes
    USED = "device used"  # largest sample of a device's memory in use, by whoever uses it
    HELD = "device used by the training"  # largest sample of the training's share of it
    RESIDENT_OF_ALL = "resident set sizes, sampled"  # on the CPU: the sum over the training's processes
    RESERVED = "torch reserved"  # largest of all processes, of what the allocator took from the device


def write_json(path: Path, content: dict[str, Any], *, keep_existing: bool = False) -> bool:
    """Write `content` as `files.write_text` does; what JSON cannot hold is written as its string."""
    return files.write_text(path, json.dumps(content, indent=2, default=str) + "\n", keep_existing=keep_existing)


def write_outcome(
    folder: Path, verdict: Verdict, *, cause: str, exit_code: int, details: dict[str, Any] | None = None
) -> bool:
    """Write the verdict unless somebody already did; the first to see the end is right.

    Args:
        cause: one sentence for a person, "" for a success.
        exit_code: of the training process; 130 for an interruption.
        details: further facts, such as `iterations` and `peak_memory`: {"bytes", "kind": a `Peak`, "processes",
            "all": {`Peak`: bytes}}. The allocator's peaks are read when training ends, and nothing resets them;
            a run that broke off has only what was sampled, a killed one not even that: its samples are in the file.
            `sampling_core_share` is what sampling took of one processor core.

    Returns:
        Whether this call wrote it.
    """
    outcome = {"kind": KIND, "schema": SCHEMA, "verdict": verdict, "cause": cause, "exit_code": exit_code}
    return write_json(folder / OUTCOME, {**outcome, "ended": utc_now(), **(details or {})}, keep_existing=True)


def holds_run(folder: Path) -> bool:
    """Whether a training has written to `folder`. Such a folder is never trained into again."""
    return any(there(folder / name).exists() for name in (METRICS, ENVIRONMENT, OUTCOME))


def there(path: Path) -> Path:
    """The file of that name, or its compressed copy where only that is there."""
    packed = path.with_name(path.name + PACKED)
    return packed if packed.exists() and not path.exists() else path


@contextmanager
def open_lines(path: Path) -> Iterator[BinaryIO]:
    """Open `metrics.jsonl` or samples to read, compressed or not.

    Raises:
        Damaged: it was compressed and is broken, such as half of one; this also comes from reading within.
    """
    path = there(path)
    if path.exists() and not path.is_file():
        raise Damaged(path, "it is no file")
    try:
        with gzip.open(path) if path.suffix == PACKED else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Damaged(path, f"it cannot be unpacked ({error})") from error


def has_checkpoint(folder: Path) -> bool:
    """Whether the run folder holds a checkpoint to continue from."""
    return (folder / CHECKPOINTS / "latest_train_state.pt").is_file()


def samples_of(rank: int | str) -> str:
    """The file of samples that the machine writes whose first rank this is."""
    return _numbered(SAMPLES, rank)


def sequences_of(replica: int | str) -> str:
    """The file of the sequences that a replica of the model evaluates."""
    return _numbered(SEQUENCES, replica)


def _numbered(name: str, number: int | str) -> str:
    stem, ending = name.split(".")
    return name if number == 0 else f"{stem}-{number}.{ending}"


def run_name(precision: str, model: str) -> str:
    """A new run folder's name: sorts by time, says what it holds."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{precision}-{model}"


def logs_of(folder: Path, rank: int, processes: int) -> list[Path]:
    """The log of all processes (Megatron prints iterations on the last one) and, of several, this one's own."""
    if processes == 1:
        return [folder / LOG]
    (folder / RANK_LOGS).mkdir(exist_ok=True)
    return [folder / LOG, folder / RANK_LOGS / f"{rank:04}.log"]


def slowest_rank_sentence(slowest: dict[str, Any]) -> str:
    """`slowest_rank` of an outcome (see `stragglers.OwnTime.slowest`) as a person is told it."""
    rank = f"rank {slowest['rank']} (host {slowest['host']}, local rank {slowest['local_rank']})"
    longer = f"{slowest['over_median']:.0%} longer"
    if slowest.get("measure") == "attention":  # earlier records have no measure and no partners
        return f"{rank} took {longer} for the same attention than the median of the other ranks, which wait for it"
    found = f"{rank} computed {longer} a step than the median rank; the others wait for it"
    if partners := slowest.get("partners"):
        found += (
            f". It shares a copy of the model with rank {', '.join(map(str, partners))}: within a step they wait for "
            "one another, and any of them may be the slow one"
        )
    return found


def utc_now() -> str:
    """The present time as ISO 8601 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class MetricsWriter:
    """Appends to `metrics.jsonl`, one flushed line at a time.

    A training line:   {"kind": "train", "iteration": 12, "loss": 2.31, "step_time_s": 0.164, "grad_norm": 0.8,
                        "learning_rate": 1e-3, "skipped": false, "time": 1763806530.2}
    An evaluation:     {"kind": "eval", "split": "validation" | "test", "iteration": 200, "loss": 2.4, "time": ...}

    `step_time_s` is one training step on the writing process, the device synchronised at its end: loading of the
    batch, forward, backward, reduction of gradients, optimizer. Between two steps, and so in none, lie start-up,
    evaluation, checkpoints, logging and the manual garbage collection (every 100 iterations). Megatron's own "elapsed
    time per iteration" runs from log line to log line and stops for evaluation and checkpoints (read in Megatron-Bridge
    0.3.1, 0.4 and 0.6), so it has logging, the writers of TensorBoard and its kin, and the garbage collection, which
    counts to the iteration after it, on top: a millisecond, or tens with a writer. The first iteration's also has what
    came before the first step.

    `learning_rate` is what the step trained with; Megatron's log has the next step's.

    Iterations count from 1. `loss` is the mean cross-entropy in nats a token over the global batch. It and
    `grad_norm` are null where they are not finite; `"finite": false` then says so, because JSON knows no NaN.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        """Append one line and flush it. Raises OSError where the disk is full or the file was removed."""
        if not os.fstat(self._file.fileno()).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "the run folder was removed while it trained", self._file.name)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Run:
    """One record, merged from the files of a run folder. Missing files leave their part empty.

    A line of `samples` is a second of sampling at 10 Hz or more of one device:

        {"time": 1763806530.2, "device": 0, "samples": 12, "used_bytes": 71000000000, "process_bytes": 70500000000,
         "power_w": 612.0}

    `time` (Unix) is its end; `used_bytes` and `process_bytes` are the largest of that second, `power_w` its mean, from
    which energy is summed. `device` is the rank that trains on it. `used_bytes` is nvidia-smi's memory.used, whoever
    uses it, and `process_bytes` the training's share. On the CPU runtime `device` is "cpu" and `process_bytes`, the
    resident memory of the training's processes on that machine, all that is told.
    Whatever a device does not tell is null. The first second is start-up, the last may be shorter than one.
    `environment["sampling"]` has `rate_hz`, or the `problem` that keeps it from sampling.
    """

    folder: Path
    plan: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    train: Sequence[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """How the run ended; `INCOMPLETE` where nobody wrote an outcome."""
        return Verdict(self.outcome.get("verdict", Verdict.INCOMPLETE))

    @property
    def parity(self) -> dict[str, Any]:
        """The facts that two runs must share to have done the same work (flat, name to value)."""
        return self.environment.get("parity", {})

    @property
    def context(self) -> dict[str, Any]:
        """Facts that differ without its being other work, such as what a precision changes of itself (flat)."""
        return self.environment.get("context", {})

    @property
    def code(self) -> str:
        """The state of the training code, see `code_state.digest`; "" of an earlier record and of a log."""
        return self.context.get("code", "")

    @property
    def commit(self) -> str:
        """The project's commit as the launcher found it, "-dirty" where files differed; "" where not known."""
        return str(self.plan.get("git_commit") or "")

    @property
    def precision(self) -> dict[str, Any]:
        """Name, arithmetic ("native" or "emulated"), emulator on a GPU, BF16 head and tail layers, ingredients."""
        return self.environment.get("precision", {})


def read_metrics(path: Path) -> tuple[Sequence[dict[str, Any]], list[dict[str, Any]]]:
    """The training lines and the evaluations of a `metrics.jsonl`, none without one. Raises as `open_lines` does."""
    lines = []
    if there(path).exists():
        with open_lines(path) as file:
            lines = list(schema.lines(file, schema.LINE, there(path)))
    train, evaluations = ([line for line in lines if line.get("kind") == kind] for kind in ("train", "eval"))
    return train, evaluations


def read_run(folder: Path, metrics: Callable[[Path], tuple] = read_metrics, *, samples: bool = True) -> Run:
    """Read a run folder, finished or not. Raises as `read_facts` and `open_lines` do.

    Args:
        metrics: reads its metrics as `read_metrics` does: the host has a faster one.
        samples: whether to read these too; without them nothing is known of energy.
    """
    run = read_facts(folder)
    train, evaluations = metrics(folder / METRICS)
    return replace(run, train=train, evaluations=evaluations, samples=read_samples(folder) if samples else [])


def read_facts(folder: Path) -> Run:
    """Read what a run folder says besides its metrics and samples, of which a long run has millions.

    Raises:
        FileNotFoundError: the folder holds no file of a record.
        Damaged: one of the JSON files is not a record's (they are renamed into place whole, so somebody edited it).
        UsageError: it is of a newer playbook.
    """
    if not any(there(folder / name).exists() for name in (PLAN, ENVIRONMENT, METRICS, OUTCOME)):
        raise FileNotFoundError(f"{folder} is not a run folder: it has none of {PLAN}, {ENVIRONMENT}, {METRICS}")
    outcome = schema.read(folder / OUTCOME, schema.OUTCOME)
    if outcome.get("verdict", Verdict.INCOMPLETE) not in list(Verdict):
        found = f"the verdict {schema.shown(outcome['verdict'])} is none of {', '.join(Verdict)}"
        raise Damaged(folder / OUTCOME, found)
    plan = schema.read(folder / PLAN, schema.PLAN)
    return Run(folder, plan, schema.read(folder / ENVIRONMENT, schema.ENVIRONMENT), outcome)


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The samples of the devices of all its machines, [] where there are none; see `Run`.

    A run of months has a line for each of its seconds: of a large file some neighbouring lines are read here and there,
    from the first to the last, and its peaks are in the outcome. Raises as `open_lines` does.
    """
    found = []
    for path in (there(folder / SAMPLES), *folder.glob(samples_of("*")), *folder.glob(samples_of("*") + PACKED)):
        if path.exists():
            with open_lines(path) as file:
                size = 0 if path.name.endswith(PACKED) else path.stat().st_size  # what is published is short
                found += schema.lines(_some_lines(file, size), schema.SAMPLE, path)
    return found


def _some_lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Every line of a small file; of a large one those of evenly spaced pieces, which hold a line of every device."""
    if size <= _PIECES * _PIECE:
        yield from file
        return
    for at in range(_PIECES):
        start = at * (size - _PIECE) // (_PIECES - 1)
        file.seek(start)
        lines = file.read(_PIECE).split(b"\n")
        yield from lines[1 if start else 0 : -1]  # what is cut at either end is none
