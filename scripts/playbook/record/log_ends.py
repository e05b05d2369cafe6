"""How the training of a log ended, by the first word of it that training did not survive."""

from __future__ import annotations

import re
import signal

from pretraining.record.run_folder import Verdict

_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(?::(?: .*)?)?$")
# Looks like an exception's last line inside a traceback, but is another rank's or thread's message.
_NO_EXCEPTION = {"INFO", "WARNING", "ERROR", "DEBUG", "Warning", "UserWarning", "FutureWarning", "DeprecationWarning"}
_OUT_OF_MEMORY = re.compile(
    r"(?:[\w.]*OutOfMemoryError: )?(?:CUDA out of memory|CUDA error: out of memory|.*can't allocate memory)"
    r".*?(?= Including non-PyTorch memory|$)"
)
_NOT_FINITE = re.compile(r"found (?:NaN|Inf) in|Unexpected result (?:nan|inf)|loss is (?:NaN|nan|not finite)")
# The last words of Megatron, Slurm, Kubernetes, shells and kernels: verdict and cause, `{0}` being the line's own text.
_LAST_WORDS = [
    (re.compile(pattern, re.IGNORECASE), verdict, cause)
    for pattern, verdict, cause in (
        (r"oom[-_ ]kill|OOMKilled|Out of memory: Kill", Verdict.KILLED, "the host ran out of memory: {0}"),
        (r"node was low on resource", Verdict.KILLED, "evicted from its node: {0}"),
        (r"DUE TO TIME LIMIT|\bTIMEOUT \*\*\*|DeadlineExceeded", Verdict.INTERRUPTED, "the job's time limit: {0}"),
        (r"DUE TO PREEMPTION|\bPreempted\b", Verdict.INTERRUPTED, "the job was preempted: {0}"),
        (r"DUE TO NODE FAIL|\bNODE_FAIL\b|NodeLost", Verdict.KILLED, "a node failed: {0}"),
        (r"(?:STEP|JOB) \S+ ON \S+ CANCELLED", Verdict.INTERRUPTED, "the job was cancelled: {0}"),
        (r"\[exiting program after receiving SIGTERM[^]]*", Verdict.INTERRUPTED, "ended by SIGTERM: {0}"),
        (r"\[exiting program at iteration \d+", Verdict.INCOMPLETE, "as train.exit_interval asked: {0}"),
        (r"\[exiting program after [\d.]+ minutes", Verdict.INCOMPLETE, "as train.exit_duration_in_mins asked: {0}"),
        (r"\[exiting program[^]]*", Verdict.INCOMPLETE, "{0}"),
        (r"Watchdog caught collective operation timeout", Verdict.FAILED, "NCCL's watchdog: a rank hung or died: {0}"),
        (r"NVRM: Xid", Verdict.FAILED, "the GPU failed: {0}"),
    )
]
# Ends by a signal: its number, or a shell's word for it.
_SIGNALLED = re.compile(
    r"exitcode *: *-(?P<negative>\d+)|Caught signal (?P<caught>\d+)|Signal (?P<named>\d+) \(SIG"
    r"|exit(?:ed)?(?: with)?(?: exit)?[ -]?(?:code|status)?:? *(?P<code>13[0-9]|14[0-3])\b"
    r"|(?:^|task[s ]+[\d,-]+: |line \d+: +\d+ )"
    r"(?P<word>Killed|Terminated|Segmentation fault|Aborted|Bus error)(?=$|  | \(core)",
    re.IGNORECASE,
)
_WORDS = {"killed": 9, "terminated": 15, "segmentation fault": 11, "aborted": 6, "bus error": 7}
_RANK_OF_CHILD = re.compile(r"^\s*rank +: (\d+)|\blocal_rank: (\d+)")


class Failure:
    """Finds what ended a run.

    The first traceback that training did not survive counts, the last exception of its chain; torchrun's own report
    that a child failed comes after it and explains nothing. `cause` is empty while nothing was found.
    """

    # A rank can print one more iteration after another one died, before it waits for it; two mean that nobody died.
    SURVIVED_AFTER = 2

    def __init__(self) -> None:
        self.verdict = Verdict.INCOMPLETE
        self.cause = ""
        self._open: set[str] = set()  # ranks inside a traceback
        self._chained: set[str] = set()
        self._rank_of_cause: str | None = None
        self._unexplained = False  # the cause is only that a child failed
        self._child = ""
        self._iterations_since = 0

    def survived(self, iterations: int) -> bool:
        """Told of iterations after it was seen: whether training evidently went on."""
        self._iterations_since += iterations
        return self._iterations_since >= self.SURVIVED_AFTER

    def line(self, text: str, whose: str = "") -> None:
        """Take one line, and whose it is."""
        if found := _RANK_OF_CHILD.search(text):
            self._child = f" of rank {found[1]}" if found[1] else f" of local rank {found[2]}"
        if _TRACEBACK in text:
            self._open.add(whose)
        elif whose in self._open:
            if text[:1].strip() and (found := _EXCEPTION.match(text.rstrip())) and found[1] not in _NO_EXCEPTION:
                self._open.discard(whose)
                self._exception(text.strip(), found[1].rpartition(".")[2], whose)
        elif text.startswith(_CHAINED) and whose == self._rank_of_cause:
            self._chained.add(whose)
        elif found := _OUT_OF_MEMORY.search(text):
            self._set(Verdict.OUT_OF_MEMORY, found[0], whose)
        else:
            self._last_words(text.strip(), whose)

    def _last_words(self, text: str, whose: str) -> None:
        for pattern, verdict, cause in _LAST_WORDS:
            if found := pattern.search(text):
                return self._set(verdict, cause.format(found[0].lstrip("[") if found[0][0] == "[" else text), whose)
        if not (found := _SIGNALLED.search(text)):
            return None
        number = next(int(value) for value in found.groups() if value and value.isdigit()) if not found["word"] else 0
        number = _WORDS[found["word"].lower()] if found["word"] else number - 128 * bool(found["code"])
        try:
            name = signal.Signals(number).name
        except ValueError:
            return None
        verdict = {2: Verdict.INTERRUPTED, 9: Verdict.KILLED, 15: Verdict.INTERRUPTED}.get(number, Verdict.FAILED)
        often = ", often the host running out of memory" if number == 9 else ""
        return self._set(verdict, f"a process{self._child} ended by {name} (signal {number}){often}: {text}", whose)

    def _exception(self, text: str, name: str, whose: str) -> None:
        if name == "ChildFailedError":
            if not self.cause:
                self._set(Verdict.FAILED, "a training process failed; its own error is not in the log", whose)
                self._unexplained = True
        elif name in ("KeyboardInterrupt", "SignalException"):
            self._set(Verdict.INTERRUPTED, text, whose)
        elif found := _OUT_OF_MEMORY.search(text):
            self._set(Verdict.OUT_OF_MEMORY, found[0], whose)
        else:
            self._set(Verdict.DIVERGED if _NOT_FINITE.search(text) else Verdict.FAILED, text, whose)

    def _set(self, verdict: Verdict, cause: str, whose: str) -> None:
        if self.cause and whose not in self._chained and not self._unexplained:
            return
        self._chained.discard(whose)
        self._unexplained = False
        self.verdict, self.cause, self._rank_of_cause = verdict, cause[:300], whose
