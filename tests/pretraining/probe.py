# ruff: noqa: E402 - cpu.enable() comes before the imports of Megatron
"""Run by the tests in a process of its own: what Megatron-Bridge makes of this project's settings, as JSON.

    python probe.py FOLDER        writes FOLDER/answers.json, a value or {"error": traceback} for each function below

One process for all of it, because the imports take longer than the answers.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pretraining import cpu

cpu.enable()

import torch
from megatron.bridge import AutoBridge
from megatron.bridge.models.conversion.param_mapping import AutoMapping
from megatron.bridge.recipes.llama import llama3
from megatron.bridge.training import mixed_precision
from megatron.bridge.training.config import ConfigContainer, runtime_config_update
from megatron.bridge.training.utils import mlflow_utils
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining import ending, models, recipes, settings, versions
from pretraining.errors import UsageError
from pretraining.precision import PRECISIONS

FOLDER = Path(sys.argv[1])
TOKENS = 384


def presets() -> dict[str, Any]:
    """The preset of each precision: its formats, its head and tail layers."""
    answer = {}
    for name, row in PRECISIONS.items():
        found = getattr(mixed_precision, row.preset)()
        kept = found.first_last_layers_bf16
        answer[name] = {
            "bf16": found.bf16,
            "fp8": found.fp8,
            "recipe": found.fp8_recipe,
            "fp4": found.fp4,
            "head": found.num_layers_at_start_in_bf16 if kept else 0,
            "tail": found.num_layers_at_end_in_bf16 if kept else 0,
        }
    return answer


def missing_recipes() -> list[str]:
    """Recipes of the table that this Megatron-Bridge does not have."""
    return [model.recipe for model in models.MODELS.values() if not callable(getattr(llama3, model.recipe, None))]


def resolved(*flags: str, processes: int = 1, on_gpu: bool = False) -> tuple[settings.Settings, ConfigContainer]:
    """Settings and config of a command line."""
    args = settings.parser("probe").parse_args(list(flags))
    chosen = settings.resolve(args, on_gpu=on_gpu, processes=processes)
    return chosen, recipes.build_config(chosen, FOLDER / "run", processes=processes, builtin=None)


def gpu_configs() -> dict[str, Any]:
    """What would train on GPUs, for every model, on as many processes as its recipe wants."""
    answer = {}
    for name, model in models.MODELS.items():
        if model.on_cpu:
            continue
        processes = model.processes_a_copy(2) if model.split[0] > 1 else 1
        chosen, config = resolved("--model", name, on_gpu=True, processes=processes)
        provider, preset = config.model, config.mixed_precision
        answer[name] = {
            "num_hidden_layers": provider.num_layers,
            "hidden_size": provider.hidden_size,
            "intermediate_size": provider.ffn_hidden_size,
            "num_attention_heads": provider.num_attention_heads,
            "num_key_value_heads": provider.num_query_groups,
            "vocab_size": provider.vocab_size,
            "head_dim": provider.kv_channels,
            "rms_norm_eps": provider.layernorm_epsilon,
            "rope_theta": provider.rotary_base,
            "tie_word_embeddings": provider.share_embeddings_and_output_weights,
            "rope_factor": provider.rope_scaling_factor if provider.rope_scaling else None,
            "run": {
                "sequence": (provider.seq_length, config.dataset.seq_length),
                "batch": (config.train.global_batch_size, config.train.micro_batch_size),
                "iterations": (config.train.train_iters, config.scheduler.lr_warmup_iters),
                "decay": config.scheduler.lr_decay_iters,
                "rate": (config.optimizer.lr, config.optimizer.min_lr),
                "blend": (config.dataset.blend, config.dataset.blend_per_split),
                "checkpoint": (config.checkpoint.save, config.checkpoint.load),
                "fp4": preset.fp4,
                "tail": (preset.first_last_layers_bf16, preset.num_layers_at_end_in_bf16, chosen.bf16_tail_layers),
                "head": preset.num_layers_at_start_in_bf16,
            },
        }
    return answer


def splits() -> dict[str, Any]:
    """Processes that share a copy of the model, by the recipes: tensor x pipeline, and context."""
    answer = {}
    for name, model in models.MODELS.items():
        provider = recipes._from_recipe(model).model
        weights = provider.tensor_model_parallel_size * provider.pipeline_model_parallel_size
        answer[name] = (weights, provider.context_parallel_size)
    return answer


def refusal_of_too_few_processes() -> str:
    """What `build_config` says where the processes are not those that the settings were resolved for."""
    args = settings.parser("probe").parse_args(["--model", "llama31-70b"])
    chosen = settings.resolve(args, on_gpu=True, processes=32)
    try:
        recipes.build_config(chosen, FOLDER / "run", processes=8, builtin=None)
    except UsageError as error:
        return str(error)
    return "accepted"


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
    ours = built(resolved("--model", "tiny", "--data", "mock", "--precision", "bf16")[1])
    for kind in ("Column", "Row"):  # the bridge knows layers by the name of their class
        AutoMapping.register_module_type(f"BF16{kind}ParallelLinear", kind.lower())
    AutoBridge.from_hf_pretrained(str(folder), torch_dtype=torch.float32).load_hf_weights([ours])
    tokens = torch.randint(0, ours.vocab_size, (2, TOKENS))
    with torch.no_grad():
        expected = theirs(tokens).logits
        in_bf16 = logits(ours, tokens)
        for module in ours.modules():
            vars(module).pop("_forward_impl", None)  # Megatron's own float32 product again
        return {
            "largest": expected.abs().max().item(),
            "difference": (logits(ours, tokens) - expected).abs().max().item(),
            "bf16": (in_bf16 - expected).std().item(),
            "their bf16": (theirs.bfloat16()(tokens).logits.float() - expected).std().item(),
        }


def bridge_logits() -> dict[str, float]:
    """A shrunk Llama 3.2: tied embeddings, scaled rotary embedding, Megatron's plain local layers."""
    folder = FOLDER / "shrunk"
    config = LlamaConfig.from_pretrained(models.find_model("llama32-1b").hf_folder)
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
    tokens = torch.randint(0, 512, (2, TOKENS))
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = {
            "largest": expected.abs().max().item(),
            "difference": (logits(ours, tokens) - expected).abs().max().item(),
        }
        config.rope_scaling = {"rope_type": "default"}
        unscaled = LlamaForCausalLM(config).float().eval()
        unscaled.load_state_dict(theirs.state_dict())
        return found | {"without scaling": (unscaled(tokens).logits - expected).abs().max().item()}


def copied_to_mlflow() -> list[str]:
    """What Megatron-Bridge hands to MLflow of a saved checkpoint where its config has no switch against it."""
    copied = []
    versions.keep_checkpoints_out_of_mlflow(SimpleNamespace(logger=SimpleNamespace()))
    logger = SimpleNamespace(log_artifacts=lambda folder, **more: copied.append(folder))
    mlflow_utils.on_save_checkpoint_success("/c/iter_0000001", "/c", 1, logger)
    return copied


def answered(question: Callable[[], Any]) -> Any:
    """The answer, or the traceback."""
    try:
        return question()
    except Exception:
        return {"error": traceback.format_exc()}


def main() -> None:
    """Ask everything."""
    for name in ("MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    ending.claim_port(0, 1)
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    from megatron.core import tensor_parallel

    tensor_parallel.model_parallel_cuda_manual_seed(0)
    questions = (
        presets, missing_recipes, splits, gpu_configs, refusal_of_too_few_processes, arithmetics, product_logits,
        bridge_logits, copied_to_mlflow,
    )  # fmt: skip
    answers = {question.__name__: answered(question) for question in questions}
    (FOLDER / "answers.json").write_text(json.dumps(answers, indent=1, default=str))


if __name__ == "__main__":
    main()
