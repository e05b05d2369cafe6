"""How the training of a log ended: what explains most of all that it says about it."""

from __future__ import annotations

import re

from pretraining.record import ends
from pretraining.record.ends import End, Strength
from pretraining.record.run_folder import Verdict

_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(?::(?: .*)?)?$")
# Looks like an exception's last line inside a traceback, but is another rank's or thread's message.
_NO_EXCEPTION = {"INFO", "WARNING", "ERROR", "DEBUG", "Warning", "UserWarning", "FutureWarning", "DeprecationWarning"}
_RANK_OF_CHILD = re.compile(r"^\s*rank +: (\d+)|process rank (\d+) |\blocal_rank: (\d+)")


class Failure:
    """Finds what ended a run. `verdict` and `cause` say it; `cause` is empty while nothing was found.

    The first traceback that training did not survive counts, the last exception of its chain; torchrun's own report
    that a child failed comes after it and explains nothing.
    """

    # A rank can print one more iteration after another one died, before it waits for it; two mean that nobody died.
    SURVIVED_AFTER = 2

    def __init__(self) -> None:
        self.cause = ""
        self._end = End(Verdict.INCOMPLETE, strength=Strength.NOTHING)
        self._rank_of_cause: str | None = None
        self._open: set[str] = set()  # ranks inside a traceback
        self._chained: set[str] = set()
        self._child = ""  # the process that torchrun's report is at
        self._iterations_since = 0

    @property
    def verdict(self) -> Verdict:
        return self._end.verdict

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
                self._found(*ends.raised(text.strip()), whose, Strength.KILLED)
        elif text.startswith(_CHAINED) and whose == self._rank_of_cause:
            self._chained.add(whose)
        elif told := ends.printed(text.strip()):
            self._found(*told, whose, told[0].strength)

    def _found(self, end: End, words: str, whose: str, replaces: Strength) -> None:
        """Take an end where what was found before explains less than `replaces`, or is the same without its rank."""
        of_rank = end.signal and end == self._end and " of " not in self.cause
        if self._end.strength >= min(replaces, end.strength) and whose not in self._chained and not of_rank:
            return
        self._chained.discard(whose)
        cause = f"a process{self._child} {end.told}" if end.signal else end.cause
        said = [cause] if cause else []
        said += [words] if end.strength > Strength.CHILD else []
        self._end, self.cause, self._rank_of_cause = end, ": ".join(said)[:300], whose
