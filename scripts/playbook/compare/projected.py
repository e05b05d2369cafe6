"""A speed-up that was not measured by the runs compared: a number of the user's, or a published one."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

PUBLISHED = "published"


@dataclass(frozen=True)
class SpeedUp:
    """What `SPEEDUP=` gives.

    Attributes:
        source: in words, "given" or what published it.
        typed: as it was given.
    """

    value: float
    source: str
    typed: str

    @property
    def is_published(self) -> bool:
        """Whether it is that of the playbook's source, NVFP4's over BF16, and of no other pair."""
        return self.typed == PUBLISHED


def speed_up(text: str) -> SpeedUp:
    """The speed-up that `--speed-up` names. Raises ArgumentTypeError where it is none."""
    if text.strip().lower() == PUBLISHED:
        return SpeedUp(
            9.05 / 5.39,
            "published: 9.05 s over 5.39 s a step, Llama 3 8B on one GB300, NVIDIA's DGX Station playbook",
            PUBLISHED,
        )
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 0 is needed, such as 1.68, or {PUBLISHED}")
    return SpeedUp(value, "given", text)
