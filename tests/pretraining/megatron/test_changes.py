"""What the user changes in Megatron-Bridge's config: overrides, config files and plugins, on the real classes."""

import functools
from pathlib import Path

import pytest

from pretraining.errors import UsageError
from pretraining.inputs import plugin_file
from pretraining.megatron import plugin
from pretraining.request import config_file


@pytest.fixture
def overridden(megatron) -> dict[str, str]:
    """For each override what its field then holds, or "! " and what is said."""
    return megatron("overridden")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("optimizer.lr=1e-4", "0.0001"),
        ("model.hidden_size=64", "64"),
        ("model.attention_backend=flash", "AttnBackend.flash"),
        ("model.recompute_modules=[core_attn,mlp]", "['core_attn', 'mlp']"),
        ("model.recompute_granularity=null", "None"),
        ("optimizer.exp_avg_dtype=bf16", "torch.bfloat16"),
        ("ddp.overlap_grad_reduce=false", "False"),
        ("logger.wandb_project=12", "12"),
        ("comm_overlap.tp_comm_overlap=true", "True"),  # a section that the recipe leaves out
        ("mixed_precision.grad_reduce_in_fp32=false", "False"),
    ],
)
def test_a_value_gets_the_fields_type(overridden, word: str, value: str) -> None:
    assert overridden[word] == value


def test_a_function_by_its_name(overridden) -> None:
    assert "built-in function gelu" in overridden["model.activation_func=torch.nn.functional.gelu"]
    assert "is not the dotted name of a function" in overridden["model.activation_func=torch.nn.functional.gelo"]


def test_what_is_not_of_a_config_is_neither_imported_nor_called(overridden) -> None:
    for name in ("os.system", "megatron.core.utils.warnings.warn"):
        assert "is not the dotted name of a function" in overridden[f"model.activation_func={name}"]
    called = "comm_overlap={_target_: megatron.core.utils.divide, numerator: 4, denominator: 2}"
    assert "megatron.core.utils.divide is no class of a config" in overridden[called]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.lr=x", "optimizer.lr=x: 'x' is not a number"),
        ("model.hidden_size=6.5", "'6.5' is not a whole number"),
        ("model.attention_backend=flahs", "is not one of flash, fused, unfused, local, auto"),
        ("optimizer.exp_avg_dtype=x", "'x' is not a torch type"),
        ("ddp.overlap_grad_reduce=0", "'0' is not true or false"),
        ("model.num_layer=8", "there is no field model.num_layer: did you mean model.num_layers"),
        ("modle.num_layers=8", "there is no section 'modle' (modle.num_layers): did you mean model.num_layers?"),
        ("optimizer.train_iters=3", "there is no field optimizer.train_iters: did you mean train.train_iters?"),
        ("model.bf16=false", "model.bf16 is set from the mixed-precision preset: --precision decides it"),
        ("ddp.grad_reduce_in_fp32=false", "override mixed_precision.grad_reduce_in_fp32"),
    ],
)
def test_what_cannot_be_set_is_told(overridden, word: str, said: str) -> None:
    assert overridden[word].startswith("! ") and said in overridden[word]


def test_an_override_that_the_cpu_runtime_undoes_is_refused(megatron) -> None:
    said = "model.transformer_impl=transformer_engine has no effect: the CPU runtime sets it; leave it out"
    assert megatron("undone") == said


def test_a_precision_aware_optimizer_splits_fp32_weights_where_nothing_is_in_fp8(megatron) -> None:
    split, aware = megatron("split_weights"), "optimizer.use_precision_aware_optimizer"
    assert split["bf16"] == [True, False, []] and split["nvfp4"] == [True, False, []]
    for precision, splits in {"bf16": True, "nvfp4": True, "fp8": False}.items():
        assert split[f"{precision} {aware}=true"] == [True, splits, [aware]]


def test_a_saved_config_gives_the_same_config(megatron) -> None:
    again = megatron("config_files")["again"]
    assert again["same"] and again["changes"] == {"optimizer.lr": 0.001}
    assert (again["seed"], again["layers"]) == (5, [8, 1])


def test_an_edited_field_is_an_override(megatron) -> None:
    edited = megatron("config_files")["edited"]
    assert edited["changes"] == {"optimizer.adam_beta2": 0.9, "optimizer.lr": 0.001}
    assert edited["beta"] == 0.9 and not edited["same"]


def test_an_edited_setting_takes_what_follows_from_it_along(megatron) -> None:
    assert megatron("config_files")["edited setting"]["iterations"] == [70, 70]


def test_flags_beside_a_config_file_win(megatron) -> None:
    flags = megatron("config_files")["flags"]
    assert flags["iterations"] == [90, 90] and flags["changes"]["optimizer.lr"] == 0.002


def test_a_config_file_in_another_precision(megatron) -> None:
    found = megatron("config_files")
    assert (found["bf16"]["fp4"], found["again"]["fp4"]) == (None, "e2m1")
    assert found["bf16"]["changes"] == {"optimizer.lr": 0.001}


def test_a_section_that_the_recipe_leaves_out_is_taken_as_a_whole(megatron) -> None:
    found = megatron("config_files")
    assert found["whole section"]["overlap"] is True
    assert found["whole section"]["parsed"] == ["comm_overlap", "optimizer.lr"]
    assert found["empty section"]["overlap"] is None and found["empty section"]["parsed"] == ["optimizer.lr"]


def test_a_config_file_with_another_model(megatron) -> None:
    another = megatron("config_files")["another model"]
    assert another["layers"] == [16, 2] and another["changes"] == {"optimizer.lr": 0.001} and another["seed"] == 5


def test_a_config_file_written_by_hand(megatron) -> None:
    assert megatron("config_files")["by hand"] == [{"optimizer.lr": 0.001, "train.manual_gc_interval": 7}, 128]


def test_broken_config_files(megatron) -> None:
    found = megatron("config_files")
    assert "no field optimizer.adam_betta2: did you mean optimizer.adam_beta2" in found["unknown field"]
    assert "saved.yaml" in found["unknown field"]
    assert "is not YAML" in found["no yaml"] and "line 2" in found["no yaml"]
    assert "optimizer.lr is no section of fields" in found["no sections"]


def test_an_override_wins_over_the_plugin(megatron) -> None:
    assert megatron("plugins")["rates"] == [0.125, 0.25]


def test_a_plugins_errors_name_file_and_line(megatron) -> None:
    found = megatron("plugins")
    assert "my.py:5: ZeroDivisionError: division by zero" in found["fails"]
    assert "my.py:1: ModuleNotFoundError: No module named 'nowhere_to_be_found'" in found["at import"]
    assert "my.py:1: expected ':'" in found["syntax"]
    assert "defines none of configure, callbacks, forward_step, loss; did you mean configure?" in found["nothing"]
    assert "a forward_step returns its own loss; leave loss out" in found["two"]


def test_a_loss_takes_the_place_of_the_usual_one() -> None:
    def usual(state: str, iterator: str, model: str, plan: bool) -> tuple[str, object]:
        return f"output of {model}", functools.partial(print, "mask", check=True)

    output, loss = plugin.with_loss(usual, lambda mask, given: (mask, given))("state", "iterator", "model")
    assert loss(output) == ("mask", "output of model")


def test_a_plugin_is_inspected_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text("raise SystemExit\nfrom elsewhere import configure\ncallbacks: list = []\n")
    assert plugin_file.inspect(path) == ("configure", "callbacks")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        plugin_file.inspect(tmp_path)


def test_a_section_and_an_object_are_told_apart() -> None:
    tree = {"a": {"_target_": "A", "x": 1, "f": {"_target_": "torch.bfloat16", "_call_": False}, "empty": {}}}
    assert config_file.flat(tree) == {"a.x": 1, "a.f": tree["a"]["f"], "a.empty": {}}
    base = {"a": {"_target_": "A", "x": 2, "f": tree["a"]["f"], "empty": {}}}
    assert config_file.differences(tree, base) == {"a.x": 1}
    with pytest.raises(UsageError, match="the file's a is a A, and here it is a B"):
        config_file.differences(tree, {"a": {"_target_": "B"}})
