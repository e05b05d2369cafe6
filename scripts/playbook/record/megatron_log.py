"""Reads a raw Megatron-Bridge log (0.3 to 0.6) into the same facts a run folder gives.

The lines are written by `training_log` in `megatron/bridge/training/utils/train_utils.py`:

    Step Time : 1.44s GPU utilization: 656.2MODEL_TFLOP/s/GPU                      (rank 0)
     [time] iteration  3/  10 | consumed samples: ... | lm loss: 6.114180E+00 | ...  (last rank)

and the settings by the "Configuration Summary" before them. A log is what a terminal, several ranks and a
power cut left: text is glued to lines, `lm loss` is left out when it is NaN, lines carry rank prefixes, colour
codes, carriage returns, NUL and broken bytes, and the last line may be cut. So everything is searched for, never
expected at the start of a line, and a number counts only when the ` |` that ends it is there.
"""

from __future__ import annotations

import math
import os
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from playbook.record import flops, log_lines
from playbook.record.columns import CHUNK, Lines, floats
from playbook.record.log_ends import Failure
from playbook.record.log_settings import Facts
from pretraining.record.run_folder import Run, Verdict

# One match takes the two lines of an iteration as Megatron-Bridge writes them, or else any one line. Possessive, and
# both lines at once, because two logs of 1,000,000 iterations have to be compared in less than ten seconds.
_PREFIX = rb"(?:\x1f[^\x1f\n]*+\x1f)? *"  # `log_lines.MARK`, whose line it is
_PLAIN = rb"([0-9]++\.[0-9]++)"
_SCIENTIFIC = rb"(-?[0-9]++\.[0-9]++(?:E[+-][0-9]++)?+)"
_LINES = re.compile(
    rb"(?:" + _PREFIX + rb"Step Time : [0-9.]++s GPU utilization: " + _PLAIN + rb"MODEL_TFLOP/s/GPU *\r?\n)?"
    + _PREFIX + rb"\[[0-9 :-]++\] iteration ++([0-9]++)/ *+([0-9]++) \| consumed samples: ++([0-9]++) \|"
    rb" elapsed time per iteration \(ms\): " + _PLAIN + rb" \| learning rate: [0-9.E+-]++ \|"
    rb" global batch size: ++([0-9]++) \|(?: lm loss: " + _SCIENTIFIC + rb" \|)? loss scale: [0-9.]++ \|"
    rb" grad norm: " + _PLAIN + rb" \| number of skipped iterations: ++([0-9]++) \|"
    rb" number of nan iterations: ++([0-9]++) \| *\r?\n"
    rb"|([^\n]*+\n|[^\n]++)"
)  # fmt: skip
# What is kept of an iteration, a column of `Lines` each.
_COLUMNS = ("iteration", "loss", "step_time_s", "grad_norm", "skipped", "nan_iterations", "model_tflops")
_COLUMNS += ("global_batch_size", "consumed_samples")
_ITERATION, _STEP_TIME, _SPEED = map(_COLUMNS.index, ("iteration", "step_time_s", "model_tflops"))
# Iterations that look otherwise (further fields, glued text, damage, infinities) are searched for field by field.
_HEAD = re.compile(rb"iteration +(\d+)/ *(\d+) *\|")
_FIELDS = {
    name: re.compile(label + rb": *([-+.\w]+) *\|")
    for name, label in {
        "consumed_samples": rb"consumed samples",
        "step_time_s": rb"elapsed time per iteration \(ms\)",
        "global_batch_size": rb"global batch size",
        "loss": rb"lm loss",
        "grad_norm": rb"grad norm",
        "skipped": rb"number of skipped iterations",
        "nan_iterations": rb"number of nan iterations",
    }.items()
}
_TFLOPS = re.compile(
    rb"GPU utilization: *([\d.]+) *MODEL_TFLOP/s/GPU|throughput per GPU \(TFLOP/s/GPU\): *([\d.]+) *\|"
)
_EVALUATION = re.compile(r"validation loss at iteration (\d+)( on test set| on validation set)? \|(.*)")
_EVALUATED_LOSS = re.compile(r"lm loss value: *([-+.\w]+) *\|")
_START = re.compile(rb"Starting training loop at iteration (\d+)")
_END = b"[after training is done]"
# Logs that are not read, by what they alone say.
_RELATIVES = {
    "NeMo 2, whose iterations are other lines": b"| reduced_train_loss: ",
    "torchtitan": b"tps: ",
    "Hugging Face's Trainer": b"{'loss': ",
    "Lightning, a progress bar": b"it/s, v_num=",
}


class NotAMegatronLog(ValueError):
    """The file is empty or holds nothing that Megatron-Bridge prints."""


def read_log(path: Path) -> Run:
    """Read a raw log as a stream.

    Returns:
        A record as of a run folder, `folder` being the log's path. `train` are `Lines` with `iteration` (from 1),
        `loss` (nats a token) and `grad_norm`, both None where not printed or not finite, `step_time_s` (the mean
        since the line before, where `log_interval` is above 1), `skipped` and `nan_iterations` (counts), and
        `model_tflops` (MODEL_TFLOP/s/GPU), and
        `global_batch_size` (sequences an iteration, the mean since the line before).
        `environment["notes"]` says what a reader of the figures has to know. Where a log holds several trainings
        (a resumed run appended to it), the last one is read.

    Raises:
        OSError: the file cannot be read.
        NotAMegatronLog: it is empty, or it is no log of Megatron-Bridge.
    """
    reader = _Reader()
    for text in log_lines.read(path):
        reader.lines(text)
    if not path.stat().st_size:
        raise NotAMegatronLog(f"{path} is empty")
    if not reader.last and (reader.relative or not reader.is_megatron):
        other = f"it is one of {reader.relative}" if reader.relative else "no iteration line, no configuration summary"
        raise NotAMegatronLog(f"{path} is not a Megatron-Bridge log: {other}")
    if not reader.last and (reader.ended or reader.timed):
        raise NotAMegatronLog(
            f"{path} has no iteration lines, though its training ran: Megatron-Bridge prints them on the last rank, so "
            "they are in the log of the last node; give that one, or both in one file"
        )
    return reader.run(path)


def printed_times(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and seconds a step that the last 4 MiB of a log say; empty where it cannot be read."""
    reader = _Reader()
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - CHUNK))
            reader.lines(file.read(CHUNK))
    except OSError:
        return np.array([]), np.array([])
    lines = reader.training_lines()
    return lines.iterations, lines.column("step_time_s")


class _Reader:
    """The state of one pass over a log."""

    def __init__(self) -> None:
        self.is_megatron = self.timed = False
        self.relative = ""
        self.facts = Facts()
        self.trainings = 0
        self._new_training(start=None)

    def _new_training(self, start: int | None) -> None:
        self._parts: list[np.ndarray] = []  # each [lines, columns]
        self.last = 0
        self.evaluations: list[dict[str, Any]] = []
        self.start = start
        self.total: int | None = None
        self.ended = False
        self.failure = Failure()
        self._tflops: float | None = None

    def lines(self, text: bytes) -> None:
        """Take whole lines: runs of ordinary iterations at once, others one by one."""
        for ordinary, matches in groupby(_LINES.findall(text), key=lambda match: not match[-1]):
            if ordinary:
                self._ordinary(list(matches))
            else:
                for match in matches:
                    self._other(match[-1].rstrip(b"\n"))

    def _ordinary(self, matches: list[tuple[bytes, ...]]) -> None:
        speeds, steps, totals, samples, ms, batches, losses, norms, skipped, nan, _ = zip(*matches, strict=True)
        columns = map(floats, (steps, losses, ms, norms, skipped, nan, speeds, batches, samples))
        part = np.column_stack(list(columns))
        part[:, _STEP_TIME] /= 1000
        self._add(part, int(totals[-1]))

    def _other(self, line: bytes) -> None:
        whose, line = log_lines.whose(line)
        heads = list(_HEAD.finditer(line))
        starts = [*(head.start() for head in heads), len(line)]
        self._text(line[: starts[0]], whose)
        for head, end in zip(heads, starts[1:], strict=True):
            if self._tflops is None:
                self._tflops = _tflops(line[head.end() : end])
            self._damaged_iteration(head, line[head.end() : end])
            self._text(line[head.end() : end], whose)  # for what may be glued to it

    def _text(self, line: bytes, whose: str) -> None:
        if (found := _tflops(line)) is not None:
            self._tflops, self.timed = found, True
        if found := _START.search(line):
            self.is_megatron = True
            self._started(int(found[1]))
        if _END in line:
            self.ended = True
            self.failure = Failure()
        if not self.is_megatron and (b"egatron" in line or b"Configuration Summary" in line):
            self.is_megatron = True
        if not self.relative:
            self.relative = next((name for name, mark in _RELATIVES.items() if mark in line), "")
        text = line.decode("utf-8", errors="replace")
        if "validation loss at" in text:
            self._evaluation(text)
        self.facts.line(text, whose)
        self.failure.line(text, whose)

    def _damaged_iteration(self, head: re.Match[bytes], rest: bytes) -> None:
        found = ((name, pattern.search(rest)) for name, pattern in _FIELDS.items())
        value = {name: number for name, match in found if match and (number := _number(match[1])) is not None}
        if "loss" not in value and not value.keys() >= {"step_time_s", "nan_iterations"}:
            return  # cut, so that a missing loss does not mean that it was NaN
        value = {"iteration": int(head[1]), "skipped": 0, "nan_iterations": 0} | value
        row = np.array([[value.get(name) for name in _COLUMNS]], dtype=float)
        row[:, _STEP_TIME] /= 1000
        self._add(row, int(head[2]))

    def _add(self, part: np.ndarray, total: int) -> None:
        """Take iterations, [lines, columns], as they were printed."""
        if np.isnan(part[0, _SPEED]) and self._tflops is not None:
            part[0, _SPEED] = self._tflops
        self._tflops = None
        numbers = part[:, _ITERATION]
        if numbers[0] > self.last and (np.diff(numbers) > 0).all():
            self._parts.append(part)
            self.last = int(numbers[-1])
        else:
            for row in range(len(part)):
                self._add_out_of_order(part[row : row + 1])
        self.total = total
        if self.failure.cause and self.failure.survived(len(part)):
            self.failure = Failure()

    def _add_out_of_order(self, row: np.ndarray) -> None:
        iteration = int(row[0, _ITERATION])
        if iteration == self.last:
            return  # the same line again, from another rank's output
        if iteration < self.last:  # another training, appended to the same log
            self._started(None)
        self._parts.append(row)
        self.last = iteration

    def training_lines(self) -> Lines:
        """All iterations of the training under way."""
        whole = np.concatenate([np.empty((0, len(_COLUMNS))), *self._parts])
        self._parts = [whole]
        columns = {name: whole[:, index] for index, name in enumerate(_COLUMNS)}
        samples, steps = np.diff(columns.pop("consumed_samples")), np.diff(columns["iteration"])
        if len(whole):  # what a line prints is the batch of its last iteration alone
            batches = columns["global_batch_size"] = columns["global_batch_size"].copy()
            batches[1:] = np.where(samples > 0, samples / steps, batches[1:])
        return Lines(columns)

    def _started(self, start: int | None) -> None:
        if self.last:
            self.trainings += 1
            self._new_training(start)
        self.start = start

    def _evaluation(self, text: str) -> None:
        if not (found := _EVALUATION.search(text)):
            return
        value = _EVALUATED_LOSS.search(found[3])
        split = "test" if found[2] == " on test set" else "validation"
        loss = _number(value[1].encode()) if value else None
        self.evaluations.append({"kind": "eval", "split": split, "iteration": int(found[1]), "loss": loss})

    def run(self, path: Path) -> Run:
        facts = self.facts
        lines = self.training_lines()
        parity = facts.parity()
        batches = lines.column("global_batch_size")
        if len(batches := batches[np.isfinite(batches)]):
            parity.setdefault("global_batch_size", round(batches[-1]))
        parity.setdefault("train_iters", self.total)
        parity["start_iteration"] = self.start
        parity = {name: value for name, value in parity.items() if value is not None}
        verdict, cause, notes = self._verdict(lines)
        if self.trainings:
            notes.append(f"the log holds {self.trainings + 1} trainings; the last one was read")
        environment: dict[str, Any] = {
            "source": "log",
            "parity": parity,
            "precision": facts.precision(),
            "mock_data": facts.mock_data,
            "parameters_billions": facts.parameters_billions,
            "notes": notes,
        }
        if parity.get("global_batch_size") and parity.get("sequence_length"):
            environment["tokens_per_step"] = parity["global_batch_size"] * parity["sequence_length"]
        each, resolution, why_not = flops.printed(
            lines, parity.get("sequence_length"), parity.get("world_size"), flops.per_token(parity)
        )
        environment |= {"flops_per_token": each, "flops_resolution": resolution}
        if why_not:
            notes.append(why_not)
        outcome: dict[str, Any] = {"verdict": verdict, "cause": cause}
        if facts.peak_memory_gb is not None:
            kind = f"torch allocated, printed after iteration {facts.peak_memory_after}"
            outcome["peak_memory"] = {"bytes": round(facts.peak_memory_gb * 1e9), "kind": kind}
            notes.append(
                f"peak memory is what was printed after iteration {facts.peak_memory_after}: "
                "Megatron-Bridge up to 0.4.1 does so before optimizer state exists, so the real peak is higher"
            )
        return Run(path, environment=environment, outcome=outcome, train=lines, evaluations=self.evaluations)

    def _verdict(self, lines: Lines) -> tuple[Verdict, str, list[str]]:
        """How the training ended, the cause, and what to say besides."""
        if self.ended:
            notes = [f"after the training had ended: {self.failure.cause}"] if self.failure.cause else []
            if _diverged(lines):
                return Verdict.DIVERGED, "the loss is not finite at the end", notes
            return Verdict.SUCCEEDED, "", notes
        if self.failure.cause:
            return self.failure.verdict, self.failure.cause, []
        if _diverged(lines):
            return Verdict.DIVERGED, "the loss is not finite where the log ends", []
        at = f"after iteration {self.last} of {self.total}" if self.last else "before iteration 1"
        return Verdict.INCOMPLETE, f"the log ends {at}, without '{_END.decode()}'", []


def _diverged(lines: Lines) -> bool:
    """No loss in the last line, where there was one before or NaN is counted.

    A log without any `lm loss` is one that was told not to print it (`skip_train_metrics_log`).
    """
    losses = lines.column("loss")
    if not len(losses) or not np.isnan(losses[-1]):
        return False
    return bool((~np.isnan(losses)).any() or lines.column("nan_iterations").any())


def _tflops(line: bytes) -> float | None:
    found = _TFLOPS.search(line)
    return _number(found[1] or found[2]) if found else None


def _number(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
