"""What `bf16=` of the NVFP4 recipe says: one value for all its spellings, and what is wrong with others."""

import itertools

import pytest

from pretraining.errors import UsageError
from pretraining.request.recipe.kept_in_bf16 import EXAMPLE, PROJECTIONS, KeptInBf16
from pretraining.request.recipe.nvfp4_recipe import is_spelled


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("qkv,proj", "qkv,proj"),
        ("fc2,qkv,fc2", "qkv,fc2"),
        ("layers:31,0,1,28-30", "layers:0,1,28-31"),
        ("fc2:0,1,30-31", "fc2:0,1,30,31"),
        ("qkv,layers:0,1,fc2:28-31", "qkv,layers:0,1,fc2:28-31"),
        ("fc2:3,5,layers:2-3,qkv:5", "layers:2,3,qkv:5,fc2:5"),
        ("qkv:1,proj:1,fc1:1-2,fc2:1", "layers:1,fc1:2"),
        ("qkv:7,layers:7", "layers:7"),
        ("fc1:4,fc1", "fc1"),
        ("qkv,proj,fc1,fc2:3", "qkv,proj,fc1,layers:3"),
        ("layers:007", "layers:7"),
    ],
)
def test_one_spelling(text: str, spelled: str) -> None:
    kept = KeptInBf16.read(text)
    assert str(kept) == spelled and KeptInBf16.read(spelled) == kept and is_spelled("bf16", spelled)
    assert is_spelled("in_bf16", text) == (text == spelled)


def test_every_set_of_a_small_model_has_one_spelling_that_reads_as_it() -> None:
    cells = list(itertools.product(PROJECTIONS[:2], range(3)))
    for chosen in itertools.chain.from_iterable(itertools.combinations(cells, size) for size in (1, 2, 3, 5)):
        kept = KeptInBf16.read(",".join(f"{name}:{layer}" for name, layer in chosen)).of(3, range(3))
        assert {cell for cell in itertools.product(PROJECTIONS, range(3)) if kept.holds(*cell)} == set(chosen)
        assert KeptInBf16.read(str(kept)).of(3, range(3)) == kept


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("qvk", "unknown product in bf16= of --nvfp4 'qvk': did you mean qkv?"),
        ("linear_fc1", "did you mean fc1?"),
        ("layer:0", "did you mean layers:0,1?"),
        ("QKV", "unknown product"),
        ("qkv,", "unknown product in bf16= of --nvfp4 ''"),
        ("0,1", "'0' follows no list of layers; write layers:0"),
        ("qkv,3", "'3' follows no list of layers; write layers:3"),
        ("layers", "'' is neither a layer nor a range of them; write layers:0,1,28-31"),
        ("fc2:", "write fc2:0,1,28-31"),
        ("fc2:3-1", "'3-1' is neither"),
        ("layers:0,1-", "'1-' is neither"),
        ("layers:-1", "'-1' is neither"),
        ("layers:1.5", "'1.5' is neither"),
        ("layers:0-99999", "'0-99999' is neither"),
        ("layers:٣", "'٣' is neither"),
        ("layers:all", "'all' is neither"),
    ],
)
def test_what_is_none(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        KeptInBf16.read(text)
    assert said in str(caught.value) and not is_spelled("in_bf16", text)


def test_a_model_has_its_layers() -> None:
    assert str(KeptInBf16.read("qkv:0-3,fc1:0-2").of(4, range(4))) == "qkv,fc1:0-2"
    assert KeptInBf16.read(EXAMPLE).of(32, range(32)).holds("fc1", 31)
    assert KeptInBf16.read("layers:1,2").of(4, range(1, 4)).holds("fc2", 2), "3 is left"
    for text, layers, quantized, said in (
        ("layers:32", 32, range(32), "names layer 32; the model has 32, 0 to 31"),
        ("fc2:40-41", 32, range(32), "names layer 41"),
        ("layers:1-3", 4, range(1, 4), "leaves nothing in NVFP4"),
        ("qkv,proj,layers:0,fc1:1,fc2:1", 2, range(2), "leaves nothing in NVFP4"),
    ):
        with pytest.raises(UsageError, match=said):
            KeptInBf16.read(text).of(layers, quantized)
