"""`--plugin FILE.py`: the user's own code in a training. It defines one or more of

    def configure(config)      changes Megatron-Bridge's ConfigContainer before training, or returns another
    callbacks = [...]          objects of megatron.bridge.training.callbacks.Callback, beside the playbook's own
    def forward_step(state, data_iterator, model, return_schedule_plan=False)
                               in place of megatron.bridge.training.gpt_step.forward_step
    def loss(loss_mask, output_tensor)
                               in place of the masked sum of next-token losses. Both are (batch, sequence); the output
                               holds each token's cross-entropy in nats. Returns what Megatron wants of it: the sum, the
                               number of tokens (int), and {"lm loss": tensor([sum, number])} for the log.

`configure` sees the recipe with the run's sizes, precision and data; overrides come after it and win. The file's own
folder is importable. Its content is a fact of the run: two runs with other plugins are not compared.

`inputs.plugin_file.inspect` runs on the host, without executing the file.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretraining.errors import UsageError
from pretraining.inputs.plugin_file import MODULE
from pretraining.megatron import compat


class Plugin:
    """A plugin that is loaded. Raises UsageError where it fails on import, with the file and line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(MODULE, path)
        assert spec is not None and spec.loader is not None
        self._module = importlib.util.module_from_spec(spec)
        sys.modules[MODULE] = self._module  # pickle looks classes up there
        self._called(spec.loader.exec_module, self._module)

    def configure(self, config: Any) -> Any:
        """The config as the plugin wants it. Raises UsageError where it fails, with the file and line."""
        wanted = getattr(self._module, "configure", None)
        changed = self._called(wanted, config) if wanted else None
        return config if changed is None else changed

    @property
    def callbacks(self) -> list[Any]:
        """The plugin's own callbacks. Raises UsageError where one is none."""
        from megatron.bridge.training.callbacks import Callback

        found = list(getattr(self._module, "callbacks", ()))
        for each in found:
            if not isinstance(each, Callback):
                raise UsageError(f"{self.path}: callbacks has {each!r}, which is no megatron.bridge Callback")
        return found

    def forward_step(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        """The forward step to train with, in place of the `usual` one."""
        own, loss = (getattr(self._module, name, None) for name in ("forward_step", "loss"))
        if own is not None:
            return own
        return usual if loss is None else with_loss(usual, loss)

    def _called(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise UsageError(f"{located(error, self.path) or self.path}: {type(error).__name__}: {error}") from error


def with_loss(usual: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., Any]:
    """`usual`, a forward step, with another loss."""

    @functools.wraps(usual)
    def forward_step(state: Any, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
        output, own = usual(state, data_iterator, model, return_schedule_plan)
        return output, functools.partial(loss, compat.loss_mask(own))

    return forward_step


def located(error: BaseException, path: Path) -> str | None:
    """ "file.py:12", the innermost line of the plugin that an error went through; None where it went through none."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"{path}:{lines[-1]}" if lines else None
