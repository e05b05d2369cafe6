"""What Megatron-Bridge built is looked at before the first iteration."""

from types import SimpleNamespace

import pytest

from pretraining.errors import UsageError
from pretraining.megatron import bridge_config
from pretraining.request.models import find_model


@pytest.mark.parametrize(
    ("step", "last", "ways_out"), [(3, 3, True), (0, 3, False), (6, 6, False), (3, 6, False), (0, 0, False)]
)
@pytest.mark.parametrize("evaluate", [True, False])
def test_what_trains_nothing_is_refused_where_it_would(step: int, last: int, ways_out: bool, evaluate: bool) -> None:
    """A plugin may name another checkpoint, or more iterations: it is seen before the first one."""
    state = SimpleNamespace(
        train_state=SimpleNamespace(step=step),
        cfg=SimpleNamespace(
            train=SimpleNamespace(train_iters=last), dataset=SimpleNamespace(mock=False),
            model=SimpleNamespace(vocab_size=257),
        ),
    )  # fmt: skip
    chosen = SimpleNamespace(
        trains=False, evaluate=evaluate, iteration=3, finetune=None, data="text", model=find_model("tiny"),
        tensor_parallel=1,
    )  # fmt: skip
    if ways_out:
        bridge_config.check_built(state, chosen)
        return
    what = "--evaluate" if evaluate else "--export"
    with pytest.raises(UsageError, match=f"{what} is of iteration 3, .* at iteration {step} and train until {last}"):
        bridge_config.check_built(state, chosen)
