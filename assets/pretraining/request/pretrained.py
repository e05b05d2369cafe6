"""Whether a Hugging Face folder holds the model that is asked for: what it computes, and every tensor. No torch.

Megatron-Bridge fills the model of the recipe with what it finds, and says nothing of what it does not: a tensor that
is missing stays random, one that is too many is left, and of the config only the names of tensors are looked at.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretraining.errors import UsageError
from pretraining.inputs.safetensors_files import Tensor, read_json, some, tensors
from pretraining.request.models import MODELS, Model

SCHEME = "hf:"
# Fields of a Llama that change what it computes, with what `transformers` takes where one is missing.
_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
# Of a config: the field of Megatron's model that a user may have changed.
_MEGATRON = {
    "hidden_size": "hidden_size", "intermediate_size": "ffn_hidden_size", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_attention_heads", "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels", "rms_norm_eps": "layernorm_epsilon", "rope_theta": "rotary_base",
    "tie_word_embeddings": "share_embeddings_and_output_weights",
}  # fmt: skip
# What Megatron's model can have and Hugging Face's Llama has no place for.
_ONLY_MEGATRONS = {
    "add_bias_linear": False, "add_qkv_bias": False, "qk_layernorm": False, "gated_linear_unit": True,
    "normalization": "RMSNorm", "rotary_percent": 1.0, "rotary_interleaved": False, "window_size": None,
    "seq_len_interpolation_factor": None, "num_moe_experts": None, "layernorm_zero_centered_gamma": False,
    "apply_residual_connection_post_layernorm": False,
}  # fmt: skip
_DTYPES = {"BF16", "F16", "F32", "F64"}
# Tensors of GPTQ, AWQ, bitsandbytes, compressed-tensors, ModelOpt and fine-grained FP8.
_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|SCB|weight_format|(nested_)?absmax|(nested_)?quant_map|quant_state\..*|"
    r"(weight|input|output|[kv])_(scale|zero_point)(_inv|_2)?|weight_(packed|shape|g_idx)|[kv]_proj\.[kv]_scale)$|"
    r"\.weight\.(absmax|quant_map|quant_state\..*|nested_.*)$"
)
_QUANTIZERS_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
_BUFFER = re.compile(r"rotary_emb\.inv_freq$")  # old files have it, and it follows from the config


def source(given: str) -> str:
    """The repository or absolute folder that `--from` names. Raises UsageError where it is no folder of a model."""
    name = given.removeprefix(SCHEME)
    folder = Path(os.path.expanduser(name))  # which leaves ~NAME of no user as it is
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"--from {given}: {folder} has no config.json, so it is no Hugging Face model")
        return str(folder.resolve())  # relative links in it lead to the same places inside a container
    if not given.startswith(SCHEME):
        raise UsageError(f"--from {given}: no such folder; a repository of Hugging Face is written {SCHEME}{given}")
    return name


def asked_for(model: Model, changed: Mapping[str, Any]) -> dict[str, Any]:
    """The model's Hugging Face config with what is changed of it: fields of Megatron's model, as text or as values."""
    config = dict(model.hf_config)
    values = {name: _value(value) for name, value in changed.items()}
    for name, field in _MEGATRON.items():
        if values.get(field) is not None and name in config:
            config[name] = values[field]
    if config.get("rope_scaling") and values.get("rope_scaling") is False:
        config["rope_scaling"] = None
    elif config.get("rope_scaling") and values.get("rope_scaling_factor") is not None:
        config["rope_scaling"] = {**config["rope_scaling"], "factor": values["rope_scaling_factor"]}
    return config


def _value(written: Any) -> Any:
    try:
        return json.loads(written) if isinstance(written, str) else written
    except ValueError:
        return written


def without_a_place(built: Mapping[str, Any]) -> str:
    """What of a built Llama, by the fields of Megatron's model, no Hugging Face config can say; "" for nothing."""
    return some(
        f"model.{name}={built[name]}" for name, plain in _ONLY_MEGATRONS.items() if built.get(name, plain) != plain
    )


def check(folder: str, wanted: dict[str, Any], name: str, *, given: str = "", whole: bool = True) -> None:
    """Raise UsageError where a local folder is not the model called `name`: its config and, `whole`, its tensors.

    A repository is checked when it is loaded, and `given` is then what --from names.
    """
    if not Path(folder).is_dir():
        return
    try:
        check_config(read_json(Path(folder) / "config.json"), wanted, name)
        if whole:
            check_tensors(Path(folder), tensors(Path(folder)), wanted, name)
    except UsageError as error:
        raise UsageError(f"--from {given or folder}: {error}") from error


def check_config(config: dict[str, Any], wanted: dict[str, Any], name: str) -> None:
    """Raise UsageError where a config computes something else than the one asked for, or is of quantized weights."""
    if config.get("quantization_config"):
        how = config["quantization_config"]
        method = how.get("quant_method") or how.get("quant_algo") if isinstance(how, dict) else how
        raise _quantized(f"config.json has a quantization_config ({method or 'without a method'})")
    theirs, ours = computed(config, wanted), computed(wanted, wanted)
    if theirs == ours:
        return
    what = ", ".join(
        f"{field} {_shown(theirs.get(field))} and not {_shown(ours.get(field))}"
        for field in {**ours, **theirs}
        if theirs.get(field) != ours.get(field)
    )
    known = ((each.name, each.hf_config) for each in MODELS.values())
    like = next((model for model, own in known if computed(config, own) == computed(own, own)), None)
    way_out = f"take --model {like}" if like else "none of the models here is like it"
    raise UsageError(f"it is not {name}: it has {what}; {way_out}")


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value) if isinstance(value, bool | dict | list) else str(value)


def computed(config: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """What of a config changes what a model of the kind of `like` computes, with the defaults filled in."""
    kind = {name: config.get(name) for name in ("model_type", "architectures") if name in like}
    if like.get("model_type") != "llama":
        return kind | {name: config.get(name) for name in like if name != "max_position_embeddings"}
    found = {name: default if config.get(name) is None else config[name] for name, default in _LLAMA.items()}
    heads = found["num_attention_heads"]
    found["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    width = found["hidden_size"]
    by_heads = width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else None
    found["head_dim"] = config.get("head_dim") or by_heads
    if found["hidden_act"] == "swish":
        found["hidden_act"] = "silu"
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return kind | found | _rotary(config) | ({} if window is None else {"sliding_window": window})


def _rotary(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding's fields, which Transformers 5 gathers in `rope_parameters`."""
    given = [each for each in (config.get("rope_parameters"), config.get("rope_scaling")) if each]
    if strange := next((each for each in given if not isinstance(each, dict)), None):
        return {"rope_scaling": strange}
    scaling = {name: value for each in given for name, value in each.items() if value is not None}
    old = scaling.pop("type", "default")
    kind = scaling.pop("rope_type", old)
    theta = scaling.pop("rope_theta", config.get("rope_theta"))
    part = scaling.pop("partial_rotary_factor", config.get("partial_rotary_factor"))
    found = {"rope_theta": 10000.0 if theta is None else theta}
    if part not in (None, 1):
        found["partial_rotary_factor"] = part
    if kind == "default":  # and no other field counts, but a kind for each sort of layer
        return found | {name: value for name, value in scaling.items() if isinstance(value, dict)}
    return found | {"rope_type": kind, **scaling}


def check_tensors(folder: Path, found: dict[str, Tensor], wanted: dict[str, Any], name: str) -> None:
    """Raise UsageError where tensors are quantized, missing, too many or of another shape than the config's."""
    marked = [path for path in _QUANTIZERS_FILES if (folder / path).is_file()]
    odd = [f"{each} is {tensor.dtype}" for each, tensor in found.items() if tensor.dtype not in _DTYPES]
    odd += [each for each in found if _QUANTIZED.search(each)]
    if marked or odd:
        raise _quantized(some(marked + odd))
    if wanted.get("model_type") != "llama":
        return
    shapes = llama_shapes(wanted)
    missing = [each for each in shapes if each not in found]
    excess = [each for each in found if each not in shapes and not _BUFFER.search(each)]
    if wanted["tie_word_embeddings"] and excess == ["lm_head.weight"] and not missing:
        if not _same_bytes(found["lm_head.weight"], found["model.embed_tokens.weight"]):
            raise UsageError(f"it has an lm_head.weight of its own, and {name} ties it to its embeddings")
        excess = []
    if missing or excess:
        lacks = f"lacks {len(missing)} of {name}'s {len(shapes)} tensors: {some(missing)}" if missing else ""
        has = f"has {len(excess)} that {name} has not: {some(excess)}" if excess else ""
        raise UsageError(f"it {' and '.join(filter(None, (lacks, has)))}{_hint(missing, excess)}")
    unlike = [
        f"{each} is {list(found[each].shape)} and not {list(shape)}"
        for each, shape in shapes.items()
        if found[each].shape != shape
    ]
    if unlike:
        raise UsageError(f"its tensors are not {name}'s: {some(unlike)}")


def llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of Hugging Face's Llama, and their shapes."""
    whole = computed(config, config)
    words, width, inner = whole["vocab_size"], whole["hidden_size"], whole["intermediate_size"]
    queries, keys = (whole["head_dim"] * whole[name] for name in ("num_attention_heads", "num_key_value_heads"))
    layer = {
        "input_layernorm": (width,), "self_attn.q_proj": (queries, width), "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width), "self_attn.o_proj": (width, queries), "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
    }  # fmt: skip
    return {
        "model.embed_tokens.weight": (words, width),
        **{
            f"model.layers.{number}.{part}.weight": shape
            for number in range(whole["num_hidden_layers"])
            for part, shape in layer.items()
        },
        "model.norm.weight": (width,),
        **({} if whole["tie_word_embeddings"] else {"lm_head.weight": (words, width)}),
    }


def _hint(missing: list[str], excess: list[str]) -> str:
    """Why the names differ, where that is plain; "" else."""
    if any("lora_" in name or ".base_layer." in name for name in excess):
        return "; these are adapters: merge them into their base (`merge_and_unload`) and save that"
    if missing == ["lm_head.weight"]:
        return "; where it is tied to the embeddings, config.json says so (tie_word_embeddings)"
    for name in excess:
        if missing and name.endswith(missing[0]):
            prefix = name.removesuffix(missing[0])
            return f"; every name begins with {prefix}, as torch.compile or a wrapper leaves it: save the model inside"
        if missing and missing[0].endswith(f".{name}"):
            return f"; every name lacks {missing[0].removesuffix(name)}: save the whole LlamaForCausalLM"
    return ""


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.begin)
        second.seek(other.begin)
        sizes = (min(one.end - at, 1 << 24) for at in range(one.begin, one.end, 1 << 24))
        return all(first.read(size) == second.read(size) for size in sizes)


def _quantized(found: str) -> UsageError:
    return UsageError(
        f"it holds quantized weights: {found}; training begins with plain ones, the BF16 folder they were made from"
    )
