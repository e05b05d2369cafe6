"""What runs where training runs. Nothing here imports from `scripts/`.

selfcheck   a GPU's own NVFP4 kernels against this project's arithmetic
run         the life of one training process: signals, outcome, log, device samples
megatron    all that knows Megatron-Bridge: the config, its optimizer, the data loader, checkpoints, the CPU
numerics    NVFP4's arithmetic
data        text to a dataset
request     what is asked for: models, precisions, defaults, flags
inputs      what the user's files hold
record      the run folder

The last three need no torch, and the host reads them too, so that each schema, default and table stands once.
"""

from __future__ import annotations

import sys
from types import TracebackType

_shown = sys.excepthook


def _unless_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a script still loads, before it can say so in words, ends it without a traceback, as 130."""
    if not issubclass(kind, KeyboardInterrupt):
        _shown(kind, error, trace)


sys.excepthook = _unless_interrupted
