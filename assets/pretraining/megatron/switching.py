"""The late switch of a training on a GPU: after it, Megatron-Core's FP8 or FP4 context is another one's.

Megatron asks for a context a layer and forward pass (`get_fp8_context`, `get_fp4_context`); recomputed activations take
the one of the same iteration. Transformer Engine makes new quantizers for a recipe of another class, and keeps the
weights' quantized copies, which are dropped here. `numerics/` switches by itself where it computes: on the CPU, and
emulated NVFP4 in the forward pass alone.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from megatron.bridge.training.callbacks import Callback

from pretraining.errors import UsageError
from pretraining.megatron import bridge_config, compat
from pretraining.numerics import forward_in_bf16, late_switch

if TYPE_CHECKING:
    from megatron.bridge.training.callbacks import CallbackContext
    from megatron.bridge.training.config import ConfigContainer

    from pretraining.request.settings import Settings


class Switching(Callback):
    """Says at each iteration's start where training is, and at the switch what changes."""

    def __init__(self, chosen: Settings) -> None:
        self._chosen, self._told = chosen, False

    def on_train_step_start(self, context: CallbackContext) -> None:
        done = context.state.train_state.step
        late_switch.begin_iteration(done)
        if self._told or not late_switch.switched_to():
            return
        self._told = True
        for module in (each for chunk in context.model for each in chunk.modules()):
            vars(module).get("_fp8_workspaces", {}).clear()
        if torch.distributed.get_rank() == 0:
            said = f"iteration {done + 1} and later ones train by --switch {self._chosen.late_switch}"
            print(f"pretrain_llama.py: {said}", flush=True)


def check(config: ConfigContainer, chosen: Settings) -> None:
    """Raise UsageError where the user turned on CUDA graphs, which a late switch cannot change."""
    if found := compat.cuda_graphs(config):
        raise UsageError(
            f"{found} replays each iteration as it was first, and so cannot --switch {chosen.late_switch}: drop one"
        )


def provide(config: ConfigContainer, chosen: Settings) -> None:
    """Replace the contexts of Megatron-Core. Call when its modules are imported, before the model is built."""
    from megatron.core.fp4_utils import get_fp4_context, get_fp4_recipe
    from megatron.core.fp8_utils import get_fp8_context, get_fp8_recipe

    own = "fp4" if chosen.precision.fp4 else "fp8"
    context, recipe = {"fp4": (get_fp4_context, get_fp4_recipe), "fp8": (get_fp8_context, get_fp8_recipe)}[own]
    switch = chosen.late_switch
    if switch.to == "bf16":
        after = _bf16_context
    elif switch.to != "forward":
        preset = bridge_config.mixed_precision(switch.precision, 0, 0)
        after = _with(get_fp8_context, fp8=preset.fp8, fp8_recipe=preset.fp8_recipe, fp4=None)
    elif chosen.emulate:
        return
    else:
        forward_in_bf16.use(recipe(config.mixed_precision))
        factory = f"{forward_in_bf16.__name__}.{forward_in_bf16.quantizer_factory.__name__}"
        after = _with(context, **{f"{own}_recipe": "custom", f"{own}_quantizer_factory": factory})

    def replaced(config: Any, layer_no: int = -1, is_init: bool = False) -> Any:
        switched = late_switch.switched_to() and not is_init
        return (after if switched else context)(config, layer_no, is_init)

    for module in [each for name, each in sys.modules.items() if name.startswith("megatron.")]:
        if vars(module).get(context.__name__) is context:  # each that imported it has a name of its own for it
            setattr(module, context.__name__, replaced)


def _bf16_context(*_: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _with(context: Callable[..., Any], **fields: Any) -> Callable[..., Any]:
    """A context as of a config with other fields."""

    def changed(config: Any, *rest: Any) -> Any:
        config = copy.copy(config)
        vars(config).update(fields)
        return context(config, *rest)

    return changed
