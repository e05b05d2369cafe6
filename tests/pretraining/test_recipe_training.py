"""Real trainings of the tiny model by words of the NVFP4 recipe, beside the whole recipe and BF16."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from trainings import PRECISIONS, losses

from pretraining.record import run_folder
from pretraining.record.run_folder import Run

pytestmark = pytest.mark.slow

SWITCHES = {"from the start": "0", "at the end": "1.0", "in the middle": "0.5:forward"}


@pytest.fixture(scope="session")
def switched(train, runs) -> dict[str, Run]:
    """NVFP4 with a late switch, and one that is added where the unbroken run has its checkpoint of iteration 6."""
    more = {name: ("--nvfp4", f"switch={at}") for name, at in SWITCHES.items()}
    recompute = ("granularity=full", "method=uniform", "num_layers=1")
    more["recomputed"] = (*more["in the middle"], *(f"model.recompute_{each}" for each in recompute))
    more["added"] = ("--nvfp4", "switch=6", "--resume", str(runs["nvfp4"]), "--train-iters", "8")
    with ThreadPoolExecutor(2) as pool:
        folders = pool.map(lambda flags: train("nvfp4", *flags)[0], more.values())
        return {name: run_folder.read_run(folder) for name, folder in zip(more, folders, strict=True)}


def test_a_late_switch_is_nvfp4_before_it_and_bf16_after(runs, switched) -> None:
    bf16, nvfp4 = (run_folder.read_run(runs[precision]) for precision in PRECISIONS)
    assert losses(switched["from the start"]) == losses(bf16) and losses(switched["at the end"]) == losses(nvfp4)
    middle = losses(switched["in the middle"])
    assert losses(switched["recomputed"]) == middle  # recomputed activations are their own iteration's
    assert middle[:3] == losses(nvfp4)[:3] and middle[3] not in (losses(nvfp4)[3], losses(bf16)[3])
    assert switched["in the middle"].precision["switches_at"] == 3
    assert switched["in the middle"].precision["ingredients"]["switch"] == "0.5:forward"
    assert [line["iteration"] for line in switched["added"].train] == [7, 8]
    assert switched["added"].precision["switches_at"] == 6


ALL_IN_BF16 = """
def configure(config):
    from pretraining.megatron import linear_layers
    from pretraining.request.recipe.kept_in_bf16 import KeptInBf16
    linear_layers.keep(config, KeptInBf16.read("qkv,proj,fc1,fc2"))
"""


@pytest.fixture(scope="session")
def kept(train, tmp_path_factory) -> dict[str, Run]:
    """NVFP4 with products in BF16: the last layer's, those of two layers more, and by a plugin all of them."""
    plugin = tmp_path_factory.mktemp("kept") / "all_in_bf16.py"
    plugin.write_text(ALL_IN_BF16)
    flags = {
        "the last": ("--nvfp4", "bf16=layers:3", "--bf16-tail-layers", "0"),
        "all but one": ("--nvfp4", "bf16=qkv:0,1,proj:0-1,fc1:1,0,fc2:0,1"),
        "all": ("--plugin", str(plugin)),
    }
    with ThreadPoolExecutor(2) as pool:
        folders = pool.map(lambda given: train("nvfp4", *given)[0], flags.values())
        return {name: run_folder.read_run(folder) for name, folder in zip(flags, folders, strict=True)}


def test_products_that_are_kept_in_bf16(runs, kept) -> None:
    bf16, nvfp4 = (run_folder.read_run(runs[precision]) for precision in PRECISIONS)
    assert losses(kept["the last"]) == losses(nvfp4), "what is kept there without being asked for"
    assert losses(kept["all"]) == losses(bf16)
    near, far = (
        [abs(a - b) for a, b in zip(losses(run), losses(bf16), strict=True)] for run in (kept["all but one"], nvfp4)
    )
    assert all(near) and sum(near) < sum(far)
    assert kept["all but one"].precision["ingredients"]["in_bf16"] == "layers:0,1"
    assert kept["all but one"].precision["bf16_tail_layers"] == 1


def test_activations_scaled_by_row(train, runs) -> None:
    rows = run_folder.read_run(train("nvfp4", "--nvfp4", "activations=rows")[0])
    gaps = [abs(a - b) for a, b in zip(losses(rows), losses(run_folder.read_run(runs["nvfp4"])), strict=True)]
    assert all(gaps) and max(gaps) < 0.3 and gaps[0] < 0.05  # the same weights and text, rounded a little otherwise
    assert rows.precision["ingredients"]["activations"] == "rows"
