"""Why a training ended: one table for whoever finds out, by an exception, a signal, Slurm's state or what was printed.

Several things are said about one end: a rank is killed for want of memory, torch.distributed.run ends its partners,
and these lose their connections. `strength` tells which of them explains the others.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from enum import IntEnum

from pretraining.record.run_folder import Verdict

OUT_OF_MEMORY = re.compile(
    r"(?:[\w.]*OutOfMemoryError: )?(?:CUDA out of memory|CUDA error: out of memory|.*can't allocate memory"
    r"|could not create a primitive.*memory).*?(?= Including non-PyTorch memory|$)"
)
NOT_FINITE = re.compile(r"found (?:NaN|Inf) in|Unexpected result (?:nan|inf)|loss is (?:NaN|nan|not finite)")
# What gloo and NCCL say on the ranks that another one leaves behind.
LOST_PARTNER = re.compile(
    r"Connection (closed|reset) by (remote )?peer|Broken pipe|Socket closed|remote process exited|"
    r"NCCL communicator was aborted|TCPStore|Timed out waiting \d+ms|Connection refused",
    re.IGNORECASE,
)


class Strength(IntEnum):
    """How much a finding explains; a later one counts where it explains more."""

    NOTHING = 0
    CHILD = 1  # some process failed
    ENDED = 2  # it was asked to end, as partners of a failed one are
    KILLED = 3  # it was ended from outside, or lost its partners
    CAUSE = 4


@dataclass(frozen=True)
class End:
    """A row: how an end counts, what it is called, and how it is told.

    Attributes:
        states: Slurm's words for it.
        printed: a pattern of the lines that tell it, "" for none.
        remedy: what to do, "" where the cause says it.
    """

    verdict: Verdict
    cause: str
    states: tuple[str, ...] = ()
    printed: str = ""
    strength: Strength = Strength.CAUSE
    remedy: str = ""

    @property
    def told(self) -> str:
        """The cause, and what to do."""
        return f"{self.cause}: {self.remedy}" if self.remedy else self.cause


_OF_MEMORY = (
    r"oom[-_ ]kill|OOMKilled|Out of memory: Kill|cgroup out.of.memory|task\S* [\d,-]+: Out Of Memory"
    r"|Exceeded (?:job|step) memory limit|TERM_MEMLIMIT"
)
_EVICTED = r"node was low on resource|\bEvicted\b|exceeds the total limit of containers|imminent node shutdown"
_TOO_LONG = (
    r"DUE TO TIME ?LIMIT|\bTIMEOUT \*\*\*|DeadlineExceeded|longer than specified deadline|TERM_RUNLIMIT"
    r"|walltime \S+ exceeded limit"
)
_PREEMPTED = r"DUE TO PREEMPTION|\bPreempted\b|TERM_PREEMPT"
_NODE = r"DUE TO NODE FAIL|\bNODE_FAIL\b|NodeLost|Node failure on \S+"
_CANCELLED = r"(?:STEP|JOB) \S+ ON \S+ CANCELLED|Force Terminated job|TERM_OWNER"
_GPU = r"NVRM: Xid|uncorrectable ECC error|fallen off the bus"
_HUNG = "Watchdog caught collective operation timeout"
_LOWER = "lower MBS or free some; more with sbatch: {mem: }"
_LONGER = "raise time in cluster.yaml, or let it restart"

ENDS = (
    End(
        Verdict.OUT_OF_MEMORY,
        "the host ran out of memory (not the GPU's)",
        ("OUT_OF_MEMORY",),
        _OF_MEMORY,
        remedy=_LOWER,
    ),
    End(Verdict.KILLED, "evicted from its node", (), _EVICTED),
    End(Verdict.INTERRUPTED, "the job's time limit", ("TIMEOUT", "DEADLINE"), _TOO_LONG, remedy=_LONGER),
    End(Verdict.INTERRUPTED, "the job was preempted", ("PREEMPTED",), _PREEMPTED),
    End(Verdict.KILLED, "a node failed", ("NODE_FAIL", "BOOT_FAIL"), _NODE),
    End(Verdict.INTERRUPTED, "the job was cancelled", ("CANCELLED", "REVOKED"), _CANCELLED, Strength.KILLED),
    End(Verdict.FAILED, "the job failed before training began: its log says why", ("FAILED",)),
    End(Verdict.FAILED, "the job ended without a verdict", ("COMPLETED",)),
    End(Verdict.INTERRUPTED, "ended by SIGTERM", (), r"\[exiting program after receiving SIGTERM[^]]*"),
    End(Verdict.INCOMPLETE, "as train.exit_interval asked", (), r"\[exiting program at iteration \d+"),
    End(Verdict.INCOMPLETE, "as train.exit_duration_in_mins asked", (), r"\[exiting program after [\d.]+ minutes"),
    End(Verdict.INCOMPLETE, "Megatron's own end", (), r"\[exiting program[^]]*"),
    End(Verdict.FAILED, "the GPU failed", (), _GPU),
    End(Verdict.FAILED, "NCCL's watchdog: a rank hung or died", (), _HUNG, Strength.KILLED),
)
BY_STATE = {state: end for end in ENDS for state in end.states}
_PRINTED = [(re.compile(end.printed, re.IGNORECASE), end) for end in ENDS if end.printed]
# Ends by a signal: its number, a shell's exit code for it, or a word.
_SIGNALLED = re.compile(
    r"exitcode *: *-(?P<negative>\d+)|Caught signal (?P<caught>\d+)|Signal (?P<named>\d+) \(SIG"
    r"|(?:on|by) signal (?P<by>\d+)\b|died with <Signals\.SIG\w+: (?P<python>\d+)>"
    r"|exit(?:ed)?(?: with)?(?: exit)?[ -]?(?:code|status)?(?: is|:)? *(?P<code>13[0-9]|14[0-3])\b"
    r"|(?:^|task[s ]+[\d,-]+: |line \d+: +\d+ |Fatal Python error: )"
    r"(?P<word>Killed|Terminated|Segmentation fault|Aborted|Bus error)(?=$|  | \(core|\n)",
    re.IGNORECASE,
)
_WORDS = {"killed": 9, "terminated": 15, "segmentation fault": 11, "aborted": 6, "bus error": 7}


def printed(line: str) -> tuple[End, str] | None:
    """The end that a printed line tells, and its words for it: Megatron's in brackets, or the whole line."""
    for pattern, end in _PRINTED:
        if found := pattern.search(line):
            return end, found[0][1:] if found[0][0] == "[" else line
    return None


def signalled(line: str) -> End | None:
    """The end by a signal that a printed line tells."""
    if not (found := _SIGNALLED.search(line)):
        return None
    how, value = next((how, value) for how, value in found.groupdict().items() if value)
    number = _WORDS[value.lower()] if how == "word" else int(value) - 128 * (how == "code")
    return by_signal(number) if number in set(signal.Signals) else None


def by_signal(number: int) -> End:
    """The end by a signal, with its name: ended by SIGKILL (signal 9)."""
    cause = f"ended by {signal.Signals(number).name} (signal {number})"
    if number == signal.SIGKILL:
        remedy = "if nobody did that, the host ran out of memory (`dmesg | tail` says so)"
        return End(Verdict.KILLED, cause, strength=Strength.KILLED, remedy=remedy)
    if number in (signal.SIGINT, signal.SIGTERM):
        return End(Verdict.INTERRUPTED, cause, strength=Strength.ENDED)
    return End(Verdict.FAILED, cause)
