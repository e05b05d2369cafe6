"""What a training's command line comes to, or is refused with."""

from typing import Any

import pytest

from pretraining.errors import UsageError
from pretraining.request import flags as training_flags
from pretraining.request import settings


def resolve(*flags: str, on_gpu: bool = False, processes: int | None = 1, **more: Any) -> settings.Settings:
    args = training_flags.parser("pretrain_llama.py").parse_args(list(flags))
    return settings.resolve(args, on_gpu=on_gpu, processes=processes, **more)


def refusal(*flags: str, **where: Any) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(*flags, **where)
    message = str(caught.value)
    assert "\n" not in message
    return message
