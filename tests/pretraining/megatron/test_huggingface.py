"""Megatron's Llama on the CPU is Hugging Face's Llama: the same weights give the same logits.

And what is said where Hugging Face gives nothing.
"""

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from pretraining import huggingface
from pretraining.errors import UsageError
from pretraining.megatron import weights
from pretraining.request.models import find_model


def test_the_model_that_trains_gives_hugging_faces_logits(megatron) -> None:
    """From recipe to `cpu.adapt`, weights moved by Megatron-Bridge, without the emulated rounding."""
    found = megatron("product_logits")
    assert found["largest"] > 3
    assert found["difference"] < 1e-4


def test_the_loss_of_a_known_text_is_compared_before_training(megatron) -> None:
    """To 1e-3, in float32: what begins with the folder's weights, and what is a little beside them."""
    same, other = megatron("product_logits")["losses"]
    assert same == ""
    assert "a known text has a loss of" in other and other.endswith("what trains is not this model")


def test_every_llama_is_built_as_its_config_says(megatron) -> None:
    """What begins with a folder's weights, or is exported, is compared by these fields."""
    found = megatron("providers")
    assert {"tiny", "llama31-8b", "llama3-8b", "llama32-1b"} <= set(found)
    assert set(map(tuple, found.values())) == {("", True)}


def test_emulated_bf16_is_as_near_as_bf16_should_be(megatron) -> None:
    found = megatron("product_logits")
    assert 1e-3 < found["bf16"] < found["their bf16"]  # theirs also keeps the residual stream in BF16


def test_tied_embeddings_and_scaled_rotary_embedding(megatron) -> None:
    """What the GPU models of Llama 3.1 and 3.2 have and the CPU models have not."""
    found = megatron("bridge_logits")
    assert found["largest"] > 3
    assert found["difference"] < 1e-4
    assert found["without scaling"] > 0.1  # so the scaling did take part


def test_the_cpu_runtime_leaves_the_meta_device_alone(megatron) -> None:
    assert megatron("on_meta") == "meta"


@pytest.mark.parametrize("answer", ["product_logits", "bridge_logits"])
def test_weights_come_back_bit_for_bit(megatron, answer: str) -> None:
    """From Hugging Face to Megatron and to a folder that `transformers` loads, with and without tied embeddings."""
    assert megatron(answer)["came back"] == {"tensors": True, "logits": True}


KEPT = "--precision nvfp4 --nvfp4 bf16=qkv,fc2:1 --bf16-head-layers 1 --bf16-tail-layers 0"


def quantized(found: dict[str, str]) -> set[int]:
    return {int(name.split(".")[2]) for name, arithmetic in found.items() if arithmetic == "NVFP4"}


def test_which_layers_are_in_nvfp4(megatron) -> None:
    found = megatron("arithmetics")
    assert {flags: quantized(layers) for flags, layers in found.items()} == {
        "--precision bf16": set(),
        "--precision nvfp4": {0, 1, 2},
        "--precision nvfp4 --bf16-head-layers 1 --bf16-tail-layers 2": {1},
        "--precision nvfp4 --bf16-tail-layers 0": {0, 1, 2, 3},
        "--precision nvfp4 --model small": set(range(7)),
        "--precision nvfp4 --nvfp4 bf16=layers:0,2": {1},
        KEPT: {1, 2, 3},
    }
    assert {tuple(name.split(".")[2::2]) for name, arithmetic in found[KEPT].items() if arithmetic == "NVFP4"} == {
        *((number, part) for number in "123" for part in ("linear_proj", "linear_fc1")),
        ("2", "linear_fc2"),
        ("3", "linear_fc2"),
    }


def test_every_linear_layer_has_an_arithmetic(megatron) -> None:
    for flags, found in megatron("arithmetics").items():
        layers = dict(found)
        count = 8 if "small" in flags else 4
        assert layers.pop("without") == [], flags
        assert layers.pop("output_layer") == "BF16", flags
        assert set(layers) == {
            f"decoder.layers.{number}.{part}"
            for number in range(count)
            for part in ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
        }, flags
        for number in range(count):
            here = {each for name, each in layers.items() if name.startswith(f"decoder.layers.{number}.")}
            assert len(here) == 1 or flags == KEPT, (flags, number)  # a layer is in one precision as a whole


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.GatedRepoError, "is gated: accept its licence at https://huggingface.co/meta/llama and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, "neither a local folder nor a repository of Hugging Face that you can see"),
        (None, "cannot be had from Hugging Face (no answer); without a network give a local folder"),
    ],
)
def test_why_hugging_face_gives_nothing(monkeypatch, kind: type[Exception] | None, words: str) -> None:
    """As `transformers` raises it: an OSError with the reason behind it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "https://localhost.invalid")
    with pytest.raises(UsageError) as told, huggingface.explained("meta/llama", "--from"):
        raise OSError("no answer.\nMore of it") from (kind.__new__(kind) if kind else None)
    assert str(told.value).startswith("--from meta/llama ") or str(told.value).startswith("--from meta/llama: ")
    assert words in str(told.value) and "\n" not in str(told.value)


def test_a_list_of_all_models_is_cut(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://localhost.invalid")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with (
        pytest.raises(UsageError, match=r"Unrecognized model.* \.\.\.$") as told,
        huggingface.explained(str(tmp_path), "--from"),
    ):
        raise ValueError(f"Unrecognized model. Should have one of these in its name: {', '.join(['llama'] * 500)}")
    assert len(str(told.value)) < huggingface.LONGEST + len(str(tmp_path)) + 20


def test_a_full_disk_is_not_hugging_faces_fault(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="Can't load it") as told, huggingface.explained("meta/llama", "--from"):
        raise OSError("Can't load it") from full
    assert told.value.__cause__ is full


@pytest.mark.parametrize("whole", [True, False])
def test_a_repository_of_another_model_is_not_downloaded(monkeypatch, make_model, tmp_path: Path, whole: bool) -> None:
    """Its config comes first, and its weights only where it is the model asked for."""
    folder, asked = make_model(tmp_path / "snapshot"), []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **more: asked.append(more) or str(folder))
    if whole:
        (folder / "model.safetensors").write_bytes(b"")
    else:
        (folder / "config.json").write_text(json.dumps({**find_model("tiny").hf_config, "rope_theta": 7.0}))
    chunks = [SimpleNamespace(config=SimpleNamespace(num_layers=4))]
    with pytest.raises(UsageError) as told:
        weights.loader("my/llama", find_model("tiny"))(chunks)
    said = str(told.value)
    assert said.startswith("--from my/llama: ") and ("is empty" if whole else "rope_theta 7.0 and not") in said
    assert len(asked) == (2 if whole else 1) and asked[0] == {"allow_patterns": "*.json"}
