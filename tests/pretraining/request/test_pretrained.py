"""A Hugging Face folder that is not the model asked for, not whole, or not what its names say, is refused by name."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretraining.errors import UsageError
from pretraining.inputs import safetensors_files
from pretraining.request import pretrained
from pretraining.request.models import MODELS, find_model

TINY = find_model("tiny")
LLAMA31 = find_model("llama31-8b")
SHAPES = pretrained.llama_shapes(TINY.hf_config)
Tensors = dict[str, tuple[int, ...]]


@pytest.fixture
def write_model(write_tensors) -> Callable[..., Path]:
    """`write_model(folder, tensors, rope_theta=5e5)`: a folder of tiny's config, changed so, and those tensors."""

    def write(folder: Path, tensors: Tensors = SHAPES, **config: Any) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**TINY.hf_config, **config}))
        write_tensors(folder / "model.safetensors", tensors)
        return folder

    return write


@pytest.fixture
def shard(write_tensors) -> Callable[..., None]:
    """`shard(folder, 3, index=True)`: the same tensors in 3 files."""

    def write(folder: Path, count: int, index: bool) -> None:
        (folder / "model.safetensors").unlink()
        names = list(SHAPES)
        placed = {}
        for number in range(count):
            file = f"model-{number + 1:05}-of-{count:05}.safetensors"
            part = names[number::count]
            write_tensors(folder / file, {name: SHAPES[name] for name in part})
            placed |= dict.fromkeys(part, file)
        if index:
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))

    return write


def refusal(folder: Path, wanted: dict[str, Any] = TINY.hf_config) -> str:
    with pytest.raises(UsageError) as told:
        pretrained.check(str(folder), wanted, "tiny")
    said = str(told.value)
    assert said.startswith(f"--from {folder}: ") and "\n" not in said and len(said) < 900
    return said


@pytest.fixture
def folder(write_model, tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def accepted(folder: Path) -> None:
    pretrained.check(str(folder), TINY.hf_config, "tiny")


def test_what_is_whole_is_taken(write_model, shard, folder: Path) -> None:
    accepted(folder)
    shard(folder, 3, index=True)
    accepted(folder)
    (folder / "model.safetensors.index.json").unlink()
    accepted(folder)
    inverse = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": (16,) for n in range(4)}
    write_model(folder.parent / "old", SHAPES | inverse)
    accepted(folder.parent / "old")


SCALED = LLAMA31.hf_config["rope_scaling"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_theta": 500000.0}, "rope_theta 500000.0 and not 10000.0"),
        ({"rope_scaling": SCALED}, "rope_type llama3 and not none, factor 8.0 and not none"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type linear and not none"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type dynamic"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type yarn"),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_theta 500000.0"),
        ({"rope_parameters": {"rope_theta": 1e4, **SCALED}}, "rope_type llama3 and not none"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ({"rope_scaling": "linear"}, "rope_scaling linear and not none"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 and not none"),
        ({"hidden_act": "gelu"}, "hidden_act gelu and not silu"),
        ({"hidden_act": "relu"}, "hidden_act relu and not silu"),
        ({"attention_bias": True}, "attention_bias true and not false"),
        ({"mlp_bias": True}, "mlp_bias true and not false"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-06 and not 1e-05"),
        ({"rms_norm_eps": None}, "rms_norm_eps 1e-06 and not 1e-05"),
        ({"head_dim": 64}, "head_dim 64 and not 32"),
        ({"num_attention_heads": 8, "head_dim": None}, "num_attention_heads 8 and not 4"),
        ({"num_key_value_heads": None}, "num_key_value_heads 4 and not 2"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings true and not false"),
        ({"sliding_window": 1024}, "sliding_window 1024 and not none"),
        ({"num_hidden_layers": 3}, "num_hidden_layers 3 and not 4"),
        ({"vocab_size": 272}, "vocab_size 272 and not 257"),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "model_type mistral and not llama"),
        ({"model_type": None}, "model_type none and not llama"),
        ({"architectures": ["LlamaForSequenceClassification"]}, '["LlamaForSequenceClassification"]'),
    ],
)
def test_a_field_that_changes_what_is_computed(write_model, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    said = refusal(write_model(tmp_path / "model", **change))
    assert "it is not tiny: it has " in said and words in said
    assert said.endswith("; none of the models here is like it")


@pytest.mark.parametrize(
    "change",
    [
        {"torch_dtype": "float16"}, {"use_cache": False}, {"max_position_embeddings": 8192}, {"pad_token_id": 0},
        {"transformers_version": "5.1.0", "dtype": "float32"}, {"attention_dropout": 0.1}, {"pretraining_tp": 2},
        {"rope_theta": 10000}, {"rope_theta": None}, {"hidden_act": "swish"}, {"head_dim": None},
        {"rope_scaling": {"rope_type": "default"}}, {"rope_theta": None, "rope_parameters": {"rope_theta": 10000.0}},
        {"sliding_window": None}, {"sliding_window": 1024, "use_sliding_window": False}, {"attention_bias": None},
        {"quantization_config": None}, {"partial_rotary_factor": 1.0}, {"unsloth_version": "2025.1"},
    ],
    ids=str,
)  # fmt: skip
def test_a_field_that_changes_nothing(write_model, tmp_path: Path, change: dict[str, Any]) -> None:
    accepted(write_model(tmp_path / "model", **change))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_like_itself_alone(name: str) -> None:
    """So Llama 3 is not taken for 3.1, nor 3.2's 1B for 3B."""
    config = find_model(name).hf_config
    for other, model in MODELS.items():
        if other == name:
            pretrained.check_config(config, model.hf_config, other)
        else:
            with pytest.raises(UsageError, match=rf"it is not {other}: it has .*; take --model {name}$"):
                pretrained.check_config(config, model.hf_config, other)


def test_llama_3_as_transformers_5_writes_it_is_llama_3() -> None:
    config = dict(LLAMA31.hf_config)
    config["rope_parameters"] = {**config.pop("rope_scaling"), "rope_theta": config.pop("rope_theta")}
    pretrained.check_config(config, LLAMA31.hf_config, "llama31-8b")
    config["rope_parameters"]["factor"] = 32.0
    with pytest.raises(UsageError, match=r"factor 32\.0 and not 8\.0"):
        pretrained.check_config(config, LLAMA31.hf_config, "llama31-8b")


def test_what_the_user_changed_of_the_model_is_what_the_folder_has_to_be(write_model, tmp_path: Path) -> None:
    wanted = pretrained.asked_for(TINY, {"num_layers": 2, "rotary_base": "500000", "layernorm_epsilon": "1e-6"})
    assert (wanted["num_hidden_layers"], wanted["rope_theta"], wanted["rms_norm_eps"]) == (2, 500000, 1e-6)
    two = {name: shape for name, shape in SHAPES.items() if not name.startswith(("model.layers.2", "model.layers.3"))}
    folder = write_model(tmp_path / "model", two, rope_theta=5e5, rms_norm_eps=1e-6, num_hidden_layers=2)
    pretrained.check(str(folder), wanted, "tiny")
    assert "num_hidden_layers 2 and not 4, rms_norm_eps" in refusal(folder)
    scaled = pretrained.asked_for(LLAMA31, {"rope_scaling_factor": 16.0})
    assert scaled["rope_scaling"]["factor"] == 16.0 and LLAMA31.hf_config["rope_scaling"]["factor"] == 8.0
    assert pretrained.asked_for(LLAMA31, {"rope_scaling": False})["rope_scaling"] is None


def test_what_a_llama_has_no_place_for() -> None:
    assert pretrained.without_a_place({"add_bias_linear": False, "normalization": "RMSNorm"}) == ""
    assert pretrained.without_a_place({"add_qkv_bias": True}) == "model.add_qkv_bias=True"


FIRST = "model.embed_tokens.weight"
LAYER = "model.layers.1.self_attn.q_proj.weight"


def without(*names: str) -> Tensors:
    return {name: shape for name, shape in SHAPES.items() if name not in names}


def renamed(change: Callable[[str], str]) -> Tensors:
    return {change(name): shape for name, shape in SHAPES.items()}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (without(LAYER), f"it lacks 1 of tiny's 39 tensors: {LAYER}"),
        (without(LAYER, FIRST), f"it lacks 2 of tiny's 39 tensors: {FIRST}, {LAYER}"),
        (without("lm_head.weight"), "lm_head.weight; where it is tied to the embeddings, config.json says so"),
        (SHAPES | {"model.layers.0.self_attn.q_proj.bias": (128,)}, "it has 1 that tiny has not: model.layers.0.self"),
        (SHAPES | {"model.layers.4.input_layernorm.weight": (128,)}, "has 1 that tiny has not: model.layers.4.input"),
        (SHAPES | {"score.weight": (2, 128)}, "it has 1 that tiny has not: score.weight"),
        (renamed(lambda name: f"_orig_mod.{name}"), "every name begins with _orig_mod., as torch.compile"),
        (renamed(lambda name: f"module.{name}"), "every name begins with module.,"),
        (renamed(lambda name: f"module._orig_mod.{name}"), "every name begins with module._orig_mod.,"),
        (renamed(lambda name: name.removeprefix("model.")), "every name lacks model.: save the whole LlamaForCausalLM"),
        (renamed(lambda name: f"language_model.{name}"), "every name begins with language_model.,"),
        (SHAPES | {"base_model.model.model.layers.0.q_proj.lora_A.weight": (8, 128)}, "these are adapters: merge them"),
        (SHAPES | {FIRST: (272, 128)}, f"its tensors are not tiny's: {FIRST} is [272, 128] and not [257, 128]"),
        (SHAPES | {"model.norm.weight": (1, 128)}, "model.norm.weight is [1, 128] and not [128]"),
    ],
)
def test_tensors_missing_too_many_or_unlike(write_model, tmp_path: Path, tensors: Tensors, words: str) -> None:
    assert words in refusal(write_model(tmp_path / "model", tensors))


@pytest.mark.parametrize("same", [True, False])
def test_tied_embeddings(write_model, write_tensors, tmp_path: Path, same: bool) -> None:
    """Some folders have the tied tensor twice: the same is taken, another one refused."""
    tied = {**TINY.hf_config, "tie_word_embeddings": True}
    folder = write_model(tmp_path / "model", without("lm_head.weight"), tie_word_embeddings=True)
    pretrained.check(str(folder), tied, "tiny")
    write_tensors(folder / "model.safetensors", SHAPES)
    if same:
        pretrained.check(str(folder), tied, "tiny")
        return
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] = 1
    (folder / "model.safetensors").write_bytes(content)
    assert "has an lm_head.weight of its own, and tiny ties it" in refusal(folder, tied)


QUANTIZED = "it holds quantized weights: "


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "quantization_config (fp8)"),
        ({"quant_method": "gptq", "bits": 4}, "(gptq)"), ({"quant_algo": "NVFP4"}, "(NVFP4)"),
        ({"load_in_4bit": True}, "(without a method)"), ("awq", "(awq)"),
    ],
)  # fmt: skip
def test_a_quantized_config(write_model, tmp_path: Path, config: Any, words: str) -> None:
    assert words in refusal(write_model(tmp_path / "model", quantization_config=config))


@pytest.mark.parametrize(
    ("tensors", "dtypes", "words"),
    [
        ({}, {LAYER: "F8_E4M3"}, f"{LAYER} is F8_E4M3"),
        ({}, {LAYER: "U8"}, f"{LAYER} is U8"),
        ({}, {LAYER: "I8"}, f"{LAYER} is I8"),
        ({LAYER.replace("weight", "qweight"): (16, 128)}, {LAYER.replace("weight", "qweight"): "I32"}, "qweight"),
        ({f"{LAYER}_scale_inv": (1, 1)}, {f"{LAYER}_scale_inv": "F32"}, "weight_scale_inv"),
        ({f"{LAYER}_scale": ()}, {f"{LAYER}_scale": "F32"}, "weight_scale"),
        ({LAYER.replace("weight", "input_scale"): ()}, {}, "input_scale"),
        ({f"{LAYER}.absmax": (4,)}, {}, "weight.absmax"),
        ({LAYER.replace("weight", "SCB"): (4,)}, {}, ".SCB"),
    ],
)
def test_quantized_tensors(write_tensors, folder: Path, tensors: Tensors, dtypes: dict[str, str], words: str) -> None:
    """Without a word of it in config.json."""
    write_tensors(folder / "model.safetensors", SHAPES | tensors, dtypes)
    said = refusal(folder)
    assert QUANTIZED in said and words in said


def test_a_quantizers_own_file(folder: Path) -> None:
    (folder / "hf_quant_config.json").write_text("{}")
    assert f"{QUANTIZED}hf_quant_config.json" in refusal(folder)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 976\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Log in</body></html>"
DAMAGES = [
    (lambda content: b"", "is empty (0 bytes)"),
    (lambda content: POINTER, "is a Git LFS pointer and not the file itself: `git -C "),
    (lambda content: PAGE, "is a web page"),
    (lambda content: b"\x1f\x8b\x08" + bytes(99), "is compressed: unpack it"),
    (lambda content: bytes(5000), "is nothing but zero bytes"),
]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(("change", "words"), DAMAGES)
def test_a_file_is_named_for_what_it_is(shard, folder: Path, name: str, change: Callable, words: str) -> None:
    if name.endswith("index.json"):
        shard(folder, 2, index=True)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    said = refusal(folder)
    assert f"{folder / name} {words}" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:-1], "is cut short: "),
        (lambda content: content[: len(content) // 3], "is cut short: "),
        (lambda content: content[:100], "is cut short, within its header: 100 bytes"),
        (lambda content: content[:7], "is no safetensors file"),
        (lambda content: content + b"\0", "is damaged: "),
        (lambda content: b"PK\x03\x04" + bytes(999), "is a pickle of PyTorch, whatever its name"),
        (lambda content: b"\x80\x02}q\x00" + bytes(999), "is a pickle of PyTorch"),
        (lambda content: b"GGUF\x03" + bytes(999), "is a GGUF file"),
        (lambda content: content.replace(b'"shape": [257', b'"shape": [258', 1), "damaged one"),
        (lambda content: content.replace(b'"BF16"', b'"F32" ', 1), "damaged one"),
        (lambda content: content.replace(b'"shape"', b'"shope"', 1), "damaged one"),
    ],
)
def test_damaged_weights(folder: Path, change: Callable[[bytes], bytes], words: str) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    assert f"{file} is " in (said := refusal(folder)) and words in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"model_type": "llama", }', "is not JSON at line 1 column 2"),
        (b"\xef\xbb\xbf{}", "begins with a byte order mark, which JSON has not: `sed -i"),
        (b"[]", "holds a list and no JSON object"), (b'"llama"', "holds a str"),
        (b'{"a": "\xff"}', "is not JSON in UTF-8"), (b"[" * 100_000, "is not JSON"), (b"{}", "model_type none"),
    ],
)  # fmt: skip
def test_a_config_that_is_none(folder: Path, content: bytes, words: str) -> None:
    (folder / "config.json").write_bytes(content)
    assert words in refusal(folder)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("gone", [1, 2, 3])
def test_a_missing_shard(shard, folder: Path, index: bool, gone: int) -> None:
    shard(folder, 3, index)
    name = f"model-{gone:05}-of-00003.safetensors"
    (folder / name).unlink()
    assert f"it lacks {name}, 1 of its files" in refusal(folder)


def test_an_index_that_is_none_or_another(shard, folder: Path) -> None:
    shard(folder, 2, index=True)
    index = folder / "model.safetensors.index.json"
    placed = json.loads(index.read_text())["weight_map"]
    for changed, words in (
        ({}, "has no weight_map"),
        ({**placed, FIRST: "../model.safetensors"}, "names '../model.safetensors', and a model's files lie beside"),
        ({**placed, "x.weight": placed[FIRST]}, "disagree on where x.weight is"),
        ({name: file for name, file in placed.items() if name != LAYER}, f"disagree on where {LAYER} is"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        assert words in refusal(folder)


def test_a_tensor_in_two_files(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert "is in consolidated.safetensors and in model.safetensors: remove one of them" in refusal(folder)


def test_a_link_that_leads_nowhere(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/4d7a")
    assert "model.safetensors is a link to ../../blobs/4d7a, which is not there" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "pickles of PyTorch"), ("pytorch_model-00001-of-00002.bin", "pickles of PyTorch"),
        ("consolidated.00.pth", "Meta's own format"), ("adapter_model.bin", "adapters alone"),
        ("llama-q4.gguf", "GGUF"), ("README.md", "were they downloaded?"),
    ],
)  # fmt: skip
def test_other_formats(folder: Path, name: str, words: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    said = refusal(folder)
    assert "it has no *.safetensors" in said and words in said


def test_the_headers_are_what_the_library_reads(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    saved = {"a": torch.ones(3, 5, dtype=torch.bfloat16), "b": torch.zeros(7), "c": torch.tensor(2.0)}
    save_file(saved, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = safetensors_files.tensors(tmp_path)
    assert {name: (each.dtype, each.shape) for name, each in found.items()} == {
        "a": ("BF16", (3, 5)), "b": ("F32", (7,)), "c": ("F32", ()),
    }  # fmt: skip
    content = (tmp_path / "model.safetensors").read_bytes()
    assert content[found["b"].begin : found["b"].end] == bytes(28)
    assert content[found["c"].begin : found["c"].end] == struct.pack("<f", 2.0)


def test_a_home_of_nobody_is_no_folder() -> None:
    with pytest.raises(UsageError, match="~nosuch/x"):
        pretrained.source("~nosuch/x")
