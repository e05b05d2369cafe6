"""The table of models, and the Hugging Face configs that stand for gated repositories."""

import importlib

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.errors import UsageError
from pretraining.request import footprint, models

# As published for the weights on Hugging Face (405B: the checkpoint with 8 key/value heads).
PARAMETERS = {
    "llama31-8b": 8_030_261_248,
    "llama31-70b": 70_553_706_496,
    "llama31-405b": 405_853_388_800,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama32-1b": 1_235_814_400,
    "llama32-3b": 3_212_749_824,
    "tiny": 853_376,
    "small": 6_427_392,
    "llama-120m": 120_738_048,
    "llama-110m": 110_119_680,
}
ON_GPU = [name for name in PARAMETERS if not models.find_model(name).on_cpu]
PUBLISHED = [name for name in ON_GPU if not name.startswith("llama-1")]  # those with published runs


def by_hand(config: dict) -> int:
    """Parameters of a Llama from its sizes, layer by layer."""
    hidden, head = config["hidden_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    attention = hidden * query + 2 * hidden * key + query * hidden
    layer = attention + 3 * hidden * config["intermediate_size"] + 2 * hidden
    tables = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    return tables + config["num_hidden_layers"] * layer + hidden


def test_the_table_has_these_models() -> None:
    assert set(models.MODELS) == {*PARAMETERS, "nemotron3-nano"}
    assert {name for name, model in models.MODELS.items() if model.on_cpu} == {"tiny", "small"}
    assert (models.DEFAULT_ON_GPU, models.DEFAULT_ON_CPU) == ("llama31-8b", "tiny")


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_to_the_unit(name: str) -> None:
    model = models.find_model(name)
    config = LlamaConfig.from_pretrained(model.hf_folder)
    with torch.device("meta"):
        built = LlamaForCausalLM(config)
    assert sum(parameter.numel() for parameter in built.parameters()) == PARAMETERS[name]
    assert by_hand(model.hf_config) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_config_keeps_every_field_through_transformers(name: str) -> None:
    model = models.find_model(name)
    written, read = model.hf_config, LlamaConfig.from_pretrained(model.hf_folder).to_dict()
    renamed = {"torch_dtype", "rope_theta", "rope_scaling"}  # transformers 5 calls these otherwise
    assert {key: read.get(key) for key in written if key not in renamed} == {
        key: value for key, value in written.items() if key not in renamed
    }
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert written["num_attention_heads"] % written["num_key_value_heads"] == 0
    assert max(written["bos_token_id"], written["eos_token_id"]) < written["vocab_size"]


@pytest.mark.parametrize(
    ("name", "factor", "positions"),
    [
        ("llama31-8b", 8.0, 131072), ("llama31-70b", 8.0, 131072), ("llama31-405b", 8.0, 131072),
        ("llama32-1b", 32.0, 131072), ("llama32-3b", 32.0, 131072), ("llama3-8b", None, 8192),
        ("llama3-70b", None, 8192),
    ],
)  # fmt: skip
def test_rotary_embedding_of_each_generation(name: str, factor: float | None, positions: int) -> None:
    config = models.find_model(name).hf_config
    assert config["rope_theta"] == 500000.0
    assert (config["rope_scaling"] or {}).get("factor") == factor
    assert config["max_position_embeddings"] == positions


@pytest.mark.parametrize("model", models.MODELS.values(), ids=lambda model: model.name)
def test_defaults_fit_together(model: models.Model) -> None:
    assert 0 < model.warmup_iters < model.train_iters
    assert model.global_batch_size % model.micro_batch_size == 0
    assert model.sequence_length <= model.hf_config["max_position_embeddings"]
    assert model.num_layers == model.hf_config["num_hidden_layers"]
    assert (model.data == models.MOCK) == (model.eval_iters == 0)  # mock data has nothing to validate on


def test_gpu_models_have_the_settings_of_the_published_runs() -> None:
    gpu = [models.find_model(name) for name in PUBLISHED]
    found = {
        (model.train_iters, model.warmup_iters, model.global_batch_size, model.micro_batch_size, model.sequence_length)
        for model in gpu
    }
    assert found == {(50, 2, 64, 4, 4096)}
    assert {(model.learning_rate, model.data) for model in gpu} == {(None, models.MOCK)}  # the recipe's own rate


def test_the_model_of_the_ablation_trains_ten_minutes_at_the_utilization_that_its_comment_names() -> None:
    model = models.find_model(models.ABLATED_ON_GPU)
    tokens = model.train_iters * model.global_batch_size * model.sequence_length
    flops = tokens * footprint.flops_per_token(footprint.shape_of(model.hf_config), model.sequence_length)
    assert flops == pytest.approx(1.2e17, rel=0.05)
    assert flops / (0.2 * 989e12) == pytest.approx(600, rel=0.05)


def test_every_recipe_exists(megatron) -> None:
    assert megatron("missing_recipes") == []


def test_splits_are_the_recipes_own(megatron) -> None:
    assert megatron("splits") == {
        name: {
            "tensor": model.tensor_parallel,
            "pipeline": model.pipeline_parallel,
            "virtual": model.virtual_pipeline,
            "expert": model.expert_parallel,
            "context": model.recipe_context_parallel,
        }
        for name, model in models.MODELS.items()
    }


def test_what_would_train_on_gpus_is_the_hugging_face_config(megatron) -> None:
    """Sizes from the config beside this script and not from the recipe's own, gated one."""
    for name, found in megatron("gpu_configs").items():
        config = models.find_model(name).hf_config
        sizes = {key: value for key, value in found.items() if key not in ("run", "rope_factor")}
        assert sizes == {key: config[key] for key in sizes}, name
        assert found["rope_factor"] == (config["rope_scaling"] or {}).get("factor"), name


def test_what_would_train_on_gpus_has_the_settings(megatron) -> None:
    found = megatron("gpu_configs")
    assert set(found) == set(ON_GPU)
    small = found[models.ABLATED_ON_GPU]["run"]
    assert small["sequence"] == [1024, 1024] and small["batch"] == [128, 32] and small["iterations"] == [1200, 120]
    assert small["rate"] == [6e-4, 6e-5] and small["fp4"] == "e2m1" and small["tail"] == [True, 1, 1]
    for name in PUBLISHED:
        run, layers = found[name]["run"], models.find_model(name).num_layers
        assert run["sequence"] == [4096, 4096] and run["batch"] == [64, 4], name
        assert run["iterations"] == [50, 2] and run["decay"] == 50, name
        assert run["rate"] == [3e-4, 3e-5], name
        assert run["blend"] == [None, None] and run["checkpoint"] == [None, None], name
        assert run["fp4"] == "e2m1" and run["head"] == 0, name
        assert run["tail"] == [True, layers // 8, layers // 8], name


def test_an_unknown_model_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown model 'llama31-8B': did you mean llama31-8b\? There are llama31"):
        models.find_model("llama31-8B")
    with pytest.raises(UsageError) as caught:
        models.find_model("qqqq")
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in models.MODELS)


def test_the_table_is_read_without_torch(project, in_python) -> None:
    loaded = in_python("""
        import sys
        from pretraining.request import models
        from pretraining.request import precisions as precision
        from pretraining.record import run_folder as record
        from pretraining.request import settings
        answer = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "numpy", "megatron", "transformers"})
    """)
    assert loaded == []
    assert importlib.util.find_spec("pretraining.request.models").origin.startswith(str(project))
