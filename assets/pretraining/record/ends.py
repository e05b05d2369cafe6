"""Why a training ended: one table for whoever finds out, by an exception, a signal, Slurm's state or what was printed.

Several things are said about one end: a rank is killed for want of memory, torch.distributed.run ends its partners,
and these lose their connections. `Strength` tells which of them explains the others.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from enum import IntEnum

from pretraining.record.run_folder import Verdict


class Strength(IntEnum):
    """How much a finding explains; a later one counts where it explains more."""

    NOTHING = 0
    CHILD = 1  # some process failed
    ENDED = 2  # it was asked to end, as partners of a failed one are
    KILLED = 3  # it was ended from outside, or lost its partners
    CAUSE = 4


@dataclass(frozen=True)
class End:
    """A row: how an end counts, what it is called, and how it is told."""

    verdict: Verdict
    cause: str = ""  # "" where the words that tell it say all
    states: tuple[str, ...] = ()  # Slurm's words for it
    printed: str = ""  # a pattern of the lines that tell it; its first group, or the whole line, is the words for it
    raised: str = ""  # the same of exceptions
    strength: Strength = Strength.CAUSE
    remedy: str = ""  # "" where the cause says it
    signal: int = 0  # its number, where it is one

    @property
    def told(self) -> str:
        """The cause, and what to do."""
        return f"{self.cause}: {self.remedy}" if self.remedy else self.cause


OUT_OF_MEMORY = (
    r"((?:[\w.]*OutOfMemoryError: )?(?:CUDA out of memory|CUDA error: out of memory|.*can't allocate memory"
    r"|could not create a primitive.*memory).*?(?= Including non-PyTorch memory|\n|$))"
)
NOT_FINITE = r"found (?:NaN|Inf) in|Unexpected result (?:nan|inf)|loss is (?:NaN|nan|not finite)"
# What gloo and NCCL say on the ranks that another one leaves behind.
LOST_PARTNER = (
    r"Connection (?:closed|reset) by (?:remote )?peer|Broken pipe|Socket closed|remote process exited"
    r"|NCCL communicator was aborted|TCPStore|Timed out waiting \d+ms|Connection refused"
)
_HOST_MEMORY = (
    r"oom[-_ ]kill|OOMKilled|Out of memory: Kill|cgroup out.of.memory|task\S* [\d,-]+: Out Of Memory"
    r"|Exceeded (?:job|step) memory limit|TERM_MEMLIMIT"
)
_EVICTED = r"node was low on resource|\bEvicted\b|exceeds the total limit of containers|imminent node shutdown"
_TIME_LIMIT = (
    r"DUE TO TIME ?LIMIT|\bTIMEOUT \*\*\*|DeadlineExceeded|longer than specified deadline|TERM_RUNLIMIT"
    r"|walltime \S+ exceeded limit"
)
_NODE = r"DUE TO NODE FAIL|\bNODE_FAIL\b|NodeLost|Node failure on \S+"
_CANCELLED = r"(?:STEP|JOB) \S+ ON \S+ CANCELLED|Force Terminated job|TERM_OWNER"
_HUNG = "Watchdog caught collective operation timeout"
_HOST = "the host ran out of memory (not the GPU's)"
_CHILD = "a training process failed; its own error is not in the log"
_LOWER, _LONGER = "lower MBS or free some", "raise time in cluster.yaml, or let it restart"
_EXITING = r"\[(exiting program{}[^]]*)"
_OF, _BY, _NO = Verdict.FAILED, Verdict.INTERRUPTED, Verdict.INCOMPLETE

ENDS = (
    End(Verdict.OUT_OF_MEMORY, printed=OUT_OF_MEMORY, raised=OUT_OF_MEMORY),
    End(Verdict.DIVERGED, raised=NOT_FINITE),
    End(_OF, raised=LOST_PARTNER, strength=Strength.KILLED),
    End(_OF, _CHILD, raised=r"ChildFailedError", strength=Strength.CHILD),
    End(_BY, raised=r"^(?:KeyboardInterrupt|[\w.]*SignalException)", strength=Strength.ENDED),
    End(Verdict.OUT_OF_MEMORY, _HOST, ("OUT_OF_MEMORY",), _HOST_MEMORY, remedy=_LOWER),
    End(Verdict.KILLED, "evicted from its node", printed=_EVICTED),
    End(_BY, "the job's time limit", ("TIMEOUT", "DEADLINE"), _TIME_LIMIT, remedy=_LONGER),
    End(_BY, "the job was preempted", ("PREEMPTED",), r"DUE TO PREEMPTION|\bPreempted\b|TERM_PREEMPT"),
    End(Verdict.KILLED, "a node failed", ("NODE_FAIL", "BOOT_FAIL"), _NODE),
    End(_BY, "the job was cancelled", ("CANCELLED", "REVOKED"), _CANCELLED, strength=Strength.KILLED),
    End(_OF, "the job failed before training began: its log says why", ("FAILED",)),
    End(_OF, "the job ended without a verdict", ("COMPLETED",)),
    End(_OF, "the GPU failed", printed=r"NVRM: Xid|uncorrectable ECC error|fallen off the bus"),
    End(_OF, "NCCL's watchdog: a rank hung or died", printed=_HUNG, strength=Strength.KILLED),
    End(_OF, printed=r"^what\(\): +(.+)"),  # an exception that nobody caught in C++
    End(_BY, "ended by SIGTERM", printed=_EXITING.format(" after receiving SIGTERM")),
    End(_NO, "as train.exit_interval asked", printed=_EXITING.format(r" at iteration \d+")),
    End(_NO, "as train.exit_duration_in_mins asked", printed=_EXITING.format(r" after [\d.]+ minutes")),
    End(_NO, printed=_EXITING.format("")),
)
BY_STATE = {state: end for end in ENDS for state in end.states}
_PRINTED = [(re.compile(end.printed, re.IGNORECASE), end) for end in ENDS if end.printed]
_RAISED = [(re.compile(end.raised, re.IGNORECASE), end) for end in ENDS if end.raised]
# Ends by a signal: its number, a shell's exit code for it, or a word.
_SIGNALLED = re.compile(
    r"exitcode *: *-(?P<negative>\d+)|Caught signal (?P<caught>\d+)|Signal (?P<named>\d+) \(SIG"
    r"|(?:on|by) signal (?P<by>\d+)\b|died with <Signals\.SIG\w+: (?P<python>\d+)>"
    r"|exit(?:ed)?(?: with)?(?: exit)?[ -]?(?:code|status)?(?: is|:)? *(?P<code>13[0-9]|14[0-3])\b"
    r"|(?:^|task[s ]+[\d,-]+: |line \d+: +\d+ |Fatal Python error: )"
    r"(?P<word>Killed|Terminated|Segmentation fault|Aborted|Bus error)(?=$|  | \(core)",
    re.IGNORECASE,
)
_WORDS = {"killed": 9, "terminated": 15, "segmentation fault": 11, "aborted": 6, "bus error": 7}


def printed(line: str) -> tuple[End, str] | None:
    """The end that a line tells, and the words for it; None for any other line."""
    return _first(_PRINTED, line) or ((end, line) if (end := signalled(line)) else None)


def raised(exception: str) -> tuple[End, str]:
    """The end that an exception's last line stands for, and the words for it."""
    return _first(_RAISED, exception) or (End(Verdict.FAILED), exception)


def _first(patterns: list[tuple[re.Pattern[str], End]], text: str) -> tuple[End, str] | None:
    found = ((end, match) for pattern, end in patterns if (match := pattern.search(text)))
    return next(((end, match[1] if match.re.groups else text) for end, match in found), None)


def signalled(line: str) -> End | None:
    """The end by a signal that a line tells; None for any other line."""
    if not (found := _SIGNALLED.search(line)):
        return None
    how, value = next((how, value) for how, value in found.groupdict().items() if value)
    number = _WORDS[value.lower()] if how == "word" else int(value) - 128 * (how == "code")
    return by_signal(number) if number in set(signal.Signals) else None


def by_signal(number: int) -> End:
    """The end by a signal: ended by SIGKILL (signal 9)."""
    cause = f"ended by {signal.Signals(number).name} (signal {number})"
    if number == signal.SIGKILL:
        remedy = "if nobody did that, the host ran out of memory (`dmesg | tail` says so)"
        return End(Verdict.KILLED, cause, strength=Strength.KILLED, remedy=remedy, signal=number)
    if number in (signal.SIGINT, signal.SIGTERM):
        return End(Verdict.INTERRUPTED, cause, strength=Strength.ENDED, signal=number)
    return End(Verdict.FAILED, cause, signal=number)
