"""How the training of a log ended, by what explains most of what it says besides."""

from __future__ import annotations

import re

from pretraining.record import ends
from pretraining.record.ends import Strength
from pretraining.record.run_folder import Verdict

_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(?::(?: .*)?)?$")
# Looks like an exception's last line inside a traceback, but is another rank's or thread's message.
_NO_EXCEPTION = {"INFO", "WARNING", "ERROR", "DEBUG", "Warning", "UserWarning", "FutureWarning", "DeprecationWarning"}
_OF_CPP = re.compile(r"^\s*what\(\): +(.+)")  # of an exception that nobody caught in C++
_RANK_OF_CHILD = re.compile(r"^\s*rank +: (\d+)|process rank (\d+) |\blocal_rank: (\d+)")
_LONGEST = 300


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
        self._strength = Strength.NOTHING
        self._signal = ""  # the words for it, where the cause is one and its rank not yet known
        self._open: set[str] = set()  # ranks inside a traceback
        self._chained: set[str] = set()
        self._rank_of_cause: str | None = None
        self._child = ""
        self._iterations_since = 0

    def survived(self, iterations: int) -> bool:
        """Told of iterations after it was seen: whether training evidently went on."""
        self._iterations_since += iterations
        return self._iterations_since >= self.SURVIVED_AFTER

    def line(self, text: str, whose: str = "") -> None:
        """Take one line, and whose it is."""
        if found := _RANK_OF_CHILD.search(text):
            self._child = f" of local rank {found[3]}" if found[3] else f" of rank {found[1] or found[2]}"
        if _TRACEBACK in text:
            self._open.add(whose)
        elif whose in self._open:
            if text[:1].strip() and (found := _EXCEPTION.match(text.rstrip())) and found[1] not in _NO_EXCEPTION:
                self._open.discard(whose)
                self._exception(text.strip(), found[1].rpartition(".")[2], whose)
        elif text.startswith(_CHAINED) and whose == self._rank_of_cause:
            self._chained.add(whose)
        elif found := _OF_CPP.search(text):
            self._exception(found[1].strip(), "", whose)
        elif found := ends.OUT_OF_MEMORY.search(text):
            self._set(Verdict.OUT_OF_MEMORY, found[0], whose)
        elif told := ends.printed(text.strip()):
            end, words = told
            self._set(end.verdict, f"{end.cause}: {words}", whose, end.strength, replaces=end.strength)
        elif end := ends.signalled(text.strip()):
            self._signalled(end, text.strip(), whose)

    def _signalled(self, end: ends.End, text: str, whose: str) -> None:
        if self._child and self._signal == end.cause:
            self.cause, self._signal = self.cause.replace("a process ", f"a process{self._child} ", 1), ""
        elif self._set(end.verdict, f"a process{self._child} {end.told}: {text}", whose, end.strength, end.strength):
            self._signal = "" if self._child else end.cause

    def _exception(self, text: str, name: str, whose: str) -> None:
        if name == "ChildFailedError":
            cause = "a training process failed; its own error is not in the log"
            self._set(Verdict.FAILED, cause, whose, Strength.CHILD, Strength.CHILD)
        elif name in ("KeyboardInterrupt", "SignalException"):
            self._set(Verdict.INTERRUPTED, text, whose, Strength.ENDED, Strength.ENDED)
        elif found := ends.OUT_OF_MEMORY.search(text):
            self._set(Verdict.OUT_OF_MEMORY, found[0], whose)
        elif ends.LOST_PARTNER.search(text):
            self._set(Verdict.FAILED, text, whose, Strength.KILLED)
        else:
            self._set(Verdict.DIVERGED if ends.NOT_FINITE.search(text) else Verdict.FAILED, text, whose)

    def _set(
        self,
        verdict: Verdict,
        cause: str,
        whose: str,
        strength: Strength = Strength.CAUSE,
        replaces: Strength = Strength.KILLED,
    ) -> bool:
        """Take a cause where all that was found before explains less than `replaces`. Returns whether it did."""
        if self._strength >= replaces and whose not in self._chained:
            return False
        self._chained.discard(whose)
        self.verdict, self.cause, self._rank_of_cause = verdict, cause[:_LONGEST], whose
        self._strength, self._signal = strength, ""
        return True
