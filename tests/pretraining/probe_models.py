"""What `probe.py` asks of models that are built: their arithmetic, and logits beside Hugging Face's."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import torch
from megatron.bridge import AutoBridge
from megatron.bridge.training.config import ConfigContainer, runtime_config_update
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from probe_configs import FOLDER, resolved
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.errors import UsageError
from pretraining.megatron import cpu, weights
from pretraining.request import models, pretrained

TOKENS = 384


def built(config: ConfigContainer) -> GPTModel:
    """The model of a CPU config, as `pretrain()` would build it."""
    cpu.adapt(config)
    runtime_config_update(config)
    return config.model.provide_distributed_model(wrap_with_ddp=False)[0].eval()


def arithmetics() -> dict[str, Any]:
    """The arithmetic of every linear layer: "decoder.layers.0.mlp.linear_fc1" to "BF16"."""
    answer = {}
    for flags in (
        "--precision bf16",
        "--precision nvfp4",
        "--precision nvfp4 --bf16-head-layers 1 --bf16-tail-layers 2",
        "--precision nvfp4 --bf16-tail-layers 0",
        "--precision nvfp4 --model small",
        "--precision nvfp4 --nvfp4 bf16=layers:0,2",
        "--precision nvfp4 --nvfp4 bf16=qkv,fc2:1 --bf16-head-layers 1 --bf16-tail-layers 0",
    ):
        model = built(resolved("--data", "mock", *flags.split())[1])
        answer[flags] = {
            name: type(module._forward_impl.keywords["arithmetic"]).__name__
            for name, module in model.named_modules()
            if "_forward_impl" in vars(module)
        }
        answer[flags]["without"] = [
            name
            for name, module in model.named_modules()
            if name.rpartition(".")[2].startswith("linear_") and "_forward_impl" not in vars(module)
        ]
    return answer


def random_llama(config: LlamaConfig, folder: Path) -> LlamaForCausalLM:
    """A Llama with weights that matter, norms too, saved to `folder`."""
    torch.manual_seed(0)
    config.initializer_range = 0.1
    model = LlamaForCausalLM(config).float().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    return model


def logits(model: GPTModel, tokens: torch.Tensor) -> torch.Tensor:
    """Megatron's logits, causally masked."""
    length = tokens.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]
    return model(tokens, torch.arange(length).expand_as(tokens), mask)[..., : model.vocab_size]


def product_logits() -> dict[str, float]:
    """The model that training builds, from recipe to `cpu.adapt`, against Hugging Face's with the same weights."""
    folder = FOLDER / "tiny"
    theirs = random_llama(LlamaConfig.from_pretrained(models.find_model("tiny").hf_folder), folder)
    chosen, config = resolved("--model", "tiny", "--data", "mock", "--precision", "bf16", "--from", str(folder))
    ours = built(config)
    weights.export([ours], chosen.model, FOLDER / "again")
    tokens = torch.randint(0, ours.vocab_size, (2, TOKENS))
    with torch.no_grad():
        expected = theirs(tokens).logits
        in_bf16 = logits(ours, tokens)
        losses = [refused_loss(ours, folder), refused_loss(ours, folder, 1.01)]
        for module in ours.modules():
            vars(module).pop("_forward_impl", None)  # Megatron's own float32 product again
        return {
            "largest": expected.abs().max().item(),
            "difference": (logits(ours, tokens) - expected).abs().max().item(),
            "bf16": (in_bf16 - expected).std().item(),
            "came back": came_back(theirs, FOLDER / "again", tokens),
            "losses": losses,
            "their bf16": (theirs.bfloat16()(tokens).logits.float() - expected).std().item(),
        }


def refused_loss(ours: GPTModel, folder: Path, factor: float = 1.0) -> str:
    """What is said of the loss of a known text, where a norm is so many times Hugging Face's; "" for nothing."""
    ours.decoder.final_layernorm.weight.mul_(factor)
    try:
        weights.compare_losses([ours], str(folder))
    except UsageError as error:
        return str(error)
    finally:
        ours.decoder.final_layernorm.weight.div_(factor)
    return ""


def providers() -> dict[str, Any]:
    """Of each Llama as Megatron-Bridge builds it: what no Hugging Face config can say, and whether it is its own."""
    answer = {}
    for model in models.MODELS.values():
        if model.hf_config["model_type"] == "llama":
            built = vars(AutoBridge.from_hf_pretrained(str(model.hf_folder)).to_megatron_provider(load_weights=False))
            found = pretrained.computed(pretrained.asked_for(model, built), model.hf_config)
            same = found == pretrained.computed(model.hf_config, model.hf_config)
            answer[model.name] = [pretrained.without_a_place(built), same]
    return answer


def came_back(theirs: LlamaForCausalLM, folder: Path, tokens: torch.Tensor) -> dict[str, bool]:
    """Whether an exported folder holds the very same tensors, and gives the very same logits."""
    again = LlamaForCausalLM.from_pretrained(folder, dtype="auto").eval()
    before, after = theirs.state_dict(), again.state_dict()
    return {
        "tensors": list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before),
        "logits": torch.equal(again(tokens).logits, theirs(tokens).logits),
    }


def bridge_logits() -> dict[str, float]:
    """A shrunk Llama 3.2: tied embeddings, scaled rotary embedding, Megatron's plain local layers."""
    folder, model = FOLDER / "shrunk", models.find_model("llama32-1b")
    config = LlamaConfig.from_pretrained(model.hf_folder)
    for name, value in {
        "hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 512, "vocab_size": 512,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1,
    }.items():  # fmt: skip
        setattr(config, name, value)
    theirs = random_llama(config, folder)
    provider = AutoBridge.from_hf_pretrained(str(folder), torch_dtype=torch.float32).to_megatron_provider()
    fused = ("persist_layer_norm", "apply_rope_fusion", "masked_softmax_fusion", "gradient_accumulation_fusion")
    for name in (*fused, "bias_activation_fusion", "bias_dropout_fusion", "bf16", "fp16"):
        setattr(provider, name, False)
    provider.transformer_impl, provider.use_cpu_initialization = "local", True
    provider.transformer_layer_spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    provider.params_dtype = provider.pipeline_dtype = torch.float32
    provider.finalize()
    ours = provider.provide_distributed_model(wrap_with_ddp=False, bf16=False, fp16=False)[0].eval()
    like = types.SimpleNamespace(name="shrunk", hf_config=json.loads((folder / "config.json").read_text()))
    weights.export([ours], like, FOLDER / "shrunk again")
    tokens = torch.randint(0, 512, (2, TOKENS))
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = {
            "largest": expected.abs().max().item(),
            "difference": (logits(ours, tokens) - expected).abs().max().item(),
            "came back": came_back(theirs, FOLDER / "shrunk again", tokens),
        }
        config.rope_scaling = {"rope_type": "default", "rope_theta": model.hf_config["rope_theta"]}  # 5 reads it there
        unscaled = LlamaForCausalLM(config).float().eval()
        unscaled.load_state_dict(theirs.state_dict())
        return found | {"without scaling": (unscaled(tokens).logits - expected).abs().max().item()}


def on_meta() -> str:
    """Where a tensor is made inside `torch.device("meta")`, as transformers makes every one it loads."""
    with torch.device("meta"):
        return str(torch.empty(1).device)
