"""Reads a raw Megatron-Bridge log (0.3 to 0.6) into the same facts a run folder gives.

The lines are written by `training_log` in `megatron/bridge/training/utils/train_utils.py`:

    Step Time : 1.44s GPU utilization: 656.2MODEL_TFLOP/s/GPU                      (rank 0)
     [time] iteration  3/  10 | consumed samples: ... | lm loss: 6.114180E+00 | ...  (last rank)

and the settings by the "Configuration Summary" before them. Beyond what `log_lines` undoes, text is glued to lines,
`lm loss` is left out when it is NaN, and the last line may be cut. So everything is searched for, never expected at
the start of a line, and a number counts only when the ` |` that ends it is there.
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
from playbook.record.columns import CHUNK, COLUMNS, Lines, floats
from playbook.record.log_ends import Failure
from playbook.record.log_settings import Facts
from pretraining.record.run_folder import Run, Verdict

# One match takes the two lines of an iteration as Megatron-Bridge writes them, or else any one line. Possessive, and
# both lines at once, because two logs of 1,000,000 iterations have to be compared in less than ten seconds.
_PREFIX = rb"(?:\x1f[^\x1f\n]*+\x1f)? *"  # `log_lines.MARK`, whose line it is
_NUMBER = rb": *+([-+]?(?:[0-9]++(?:\.[0-9]*+)?+(?:[Ee][-+]?[0-9]++)?+|(?i:nan|inf))) *+\|"
_STEP = rb"Step Time : [0-9.]++s GPU utilization: *([0-9]++\.[0-9]++) *MODEL_TFLOP/s/GPU"
# What is kept of an iteration, and its label; whatever other fields it has, and in whatever order.
_FIELDS = {
    "consumed_samples": rb"consumed samples",
    "step_time_s": rb"elapsed time per iteration \(ms\)",
    "throughput": rb"throughput per GPU \(TFLOP/s/GPU\)",
    "global_batch_size": rb"global batch size",
    "loss": rb"lm loss",
    "grad_norm": rb"grad norm",
    "skipped": rb"number of skipped iterations",
    "nan_iterations": rb"number of nan iterations",
}
# A number under any label, or a text; what is glued to a line has a bracket or a digit before its colon, and no number.
_OTHER_FIELD = rb"[^|\n:]++: *+[-+.0-9Ee]++ *+\||[^|\n:\[0-9]++:[^|\n\[]*+\|"
_ITERATION_LINE = (
    rb"(?:\[[0-9 :.-]++\] )?iteration ++([0-9]++)/ *+([0-9]++) *+\|(?: *+(?:"
    + b"|".join(label + _NUMBER for label in _FIELDS.values())
    + b"|" + _OTHER_FIELD + rb"))*+"
)  # fmt: skip
_LINES = re.compile(
    rb"(?:" + _PREFIX + _STEP + rb" *\n)?" + _PREFIX + _ITERATION_LINE + rb" *+(?:\n|\Z)|([^\n]*+\n|[^\n]++)"
)
_COLUMNS = ("model_tflops", "iteration", "total", *_FIELDS)  # what one match gives
_SPEED, _NUMBER_OF, _TOTAL = range(3)
_STEP_TIME, _LOSS, _NAN = map(_COLUMNS.index, ("step_time_s", "loss", "nan_iterations"))
_ITERATION = re.compile(_ITERATION_LINE)
_STEP_LINE = re.compile(_STEP)
_EVALUATION = re.compile(
    r"validation loss at iteration (\d+)(?: on (test|validation) set)? \|"
    r"(?:.*?lm loss value: *([-+]?(?:\d+(?:\.\d*)?(?:E[-+]?\d+)?|nan|inf)) *\|)?",
    re.IGNORECASE,
)
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

    The record is as of a run folder, `folder` being the log's path; of several trainings (a resumed run appended to the
    log) the last. What a line prints of `step_time_s` and `global_batch_size` is the mean since the line before, where
    `log_interval` is above 1. `environment["notes"]` says what a reader of the figures has to know.

    Raises OSError, and NotAMegatronLog where it is empty or no log of Megatron-Bridge.
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
        self._new_training()

    def _new_training(self) -> None:
        self.trainings += 1
        self._parts: list[np.ndarray] = []  # each [lines, columns]
        self.last = 0
        self.evaluations: list[dict[str, Any]] = []
        self.start: int | None = None
        self.total: int | None = None
        self.ended = False
        self.failure = Failure()
        self._tflops = math.nan

    def lines(self, text: bytes) -> None:
        """Take whole lines: runs of ordinary iterations at once, others one by one."""
        for ordinary, matches in groupby(_LINES.findall(text), key=lambda match: not match[-1]):
            if ordinary:
                self._iterations([match[:-1] for match in matches])
            else:
                for match in matches:
                    self._other(match[-1].rstrip(b"\n"))

    def _other(self, line: bytes) -> None:
        whose, line = log_lines.whose(line)
        if not self.relative:
            self.relative = next((name for name, mark in _RELATIVES.items() if mark in line), "")
        at = 0
        for found in _ITERATION.finditer(line):
            self._text(line[at : found.start()], whose)
            self._iterations([(b"", *found.groups(b""))])
            at = found.end()
        self._text(line[at:], whose)  # all of an ordinary line, or what was glued to an iteration

    def _text(self, line: bytes, whose: str) -> None:
        if found := _STEP_LINE.search(line):
            self._tflops, self.timed = float(found[1]), True
        if found := _START.search(line):
            self.is_megatron = True
            if self.last:
                self._new_training()
            self.start = int(found[1])
        if _END in line:
            self.ended = True
            self.failure = Failure()
        if b"egatron" in line or b"Configuration Summary" in line:
            self.is_megatron = True
        text = line.decode("utf-8", errors="replace")
        if found := _EVALUATION.search(text):
            value, split = float(found[3] or "nan"), (found[2] or "validation").lower()
            loss = value if math.isfinite(value) else None
            self.evaluations.append({"kind": "eval", "split": split, "iteration": int(found[1]), "loss": loss})
        self.facts.line(text, whose)
        self.failure.line(text, whose)

    def _iterations(self, matches: list[tuple[bytes, ...]]) -> None:
        """Take iterations as they were printed: the texts of `_COLUMNS` of each."""
        part = np.column_stack([floats(texts) for texts in zip(*matches, strict=True)])
        part[~np.isfinite(part)] = np.nan
        # One that was cut has no loss for another reason than that it was NaN.
        part = part[~np.isnan(part[:, _LOSS]) | ~np.isnan(part[:, [_STEP_TIME, _NAN]]).any(axis=1)]
        numbers = part[:, _NUMBER_OF]
        before = np.concatenate([[self.last], numbers])[:-1]
        part, before = part[numbers != before], before[numbers != before]  # the same line again, of another rank
        if not len(part):
            return
        if np.isnan(part[0, _SPEED]):
            part[0, _SPEED] = self._tflops
        begun = np.flatnonzero(part[:, _NUMBER_OF] < before)  # where another training was appended to the same log
        for _ in begun:
            self._new_training()
        part = part[begun[-1] if len(begun) else 0 :]
        self._tflops = math.nan
        self._parts.append(part)
        self.last, self.total = int(part[-1, _NUMBER_OF]), int(part[-1, _TOTAL])
        if self.failure.cause and self.failure.survived(len(part)):
            self.failure = Failure()

    def training_lines(self) -> Lines:
        """All iterations of the training under way."""
        whole = np.concatenate([np.empty((0, len(_COLUMNS))), *self._parts])
        self._parts = [whole]
        found = dict(zip(_COLUMNS, whole.T.copy(), strict=True))
        found["step_time_s"] /= 1000
        found |= {name: np.nan_to_num(found[name]) for name in ("skipped", "nan_iterations")}
        speed, throughput = found["model_tflops"], found["throughput"]
        found["model_tflops"] = np.where(np.isnan(speed), throughput, speed)
        samples, batches = np.diff(found["consumed_samples"]), found["global_batch_size"]
        # What a line prints is the batch of its last iteration alone.
        batches[1:] = np.where(samples > 0, samples / np.diff(found["iteration"]), batches[1:])
        return Lines({name: found[name] for name in COLUMNS if name in found})

    def run(self, path: Path) -> Run:
        lines, printed, parity = self.training_lines(), self.facts.printed, self.facts.parity()
        batches = lines.column("global_batch_size")
        if len(batches := batches[np.isfinite(batches)]):
            parity.setdefault("global_batch_size", round(batches[-1]))
        of_lines = {"train_iters": self.total, "start_iteration": self.start}
        parity = {name: value for name, value in of_lines.items() if value is not None} | parity
        verdict, cause, notes = self._verdict(lines)
        if self.trainings > 1:
            notes.append(f"the log holds {self.trainings} trainings; the last one was read")
        environment = {"source": "log", "parity": parity, "precision": self.facts.precision(), "notes": notes}
        environment |= {name: printed.get(name) for name in ("mock_data", "parameters_billions")}
        environment |= flops.of_log(parity, lines, notes)
        outcome: dict[str, Any] = {"verdict": verdict, "cause": cause}
        if peak := printed.get("peak_memory"):
            when = f"printed after iteration {printed['measured_after']}"
            outcome["peak_memory"] = {"bytes": round(peak * 1e9), "kind": f"torch allocated, {when}"}
            notes.append(
                f"peak memory is what was {when}: "
                "Megatron-Bridge up to 0.4.1 does so before optimizer state exists, so the real peak is higher"
            )
        return Run(path, environment=environment, outcome=outcome, train=lines, evaluations=self.evaluations)

    def _verdict(self, lines: Lines) -> tuple[Verdict, str, list[str]]:
        """How the training ended, the cause, and what to say besides."""
        cause = self.failure.cause
        if cause and not self.ended:
            return self.failure.verdict, cause, []
        notes = [f"after the training had ended: {cause}"] if cause else []
        if _diverged(lines):
            where = "at the end" if self.ended else "where the log ends"
            return Verdict.DIVERGED, f"the loss is not finite {where}", notes
        if self.ended:
            return Verdict.SUCCEEDED, "", notes
        at = f"after iteration {self.last} of {self.total}" if self.last else "before iteration 1"
        return Verdict.INCOMPLETE, f"the log ends {at}, without '{_END.decode()}'", []


def _diverged(lines: Lines) -> bool:
    """No loss in the last line, where there was one before or NaN is counted.

    A log without any `lm loss` is one that was told not to print it (`skip_train_metrics_log`).
    """
    known = np.isfinite(lines.column("loss"))
    return len(known) > 0 and not known[-1] and bool(known.any() or lines.column("nan_iterations").any())
