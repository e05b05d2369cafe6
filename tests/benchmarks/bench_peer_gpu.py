"""BF16 of the same Llama in plain PyTorch: what `torch.compile` reaches without Megatron, to hold `make bf16` against.

    PYTHONPATH=assets python tests/benchmarks/bench_peer_gpu.py [--model llama31-8b] [--num-layers 8] [--json FILE]

FP32 parameters under autocast, every layer compiled, PyTorch's own attention and cross entropy, fused AdamW, clipped
gradients, random tokens; gradients accumulate over micro batches as Megatron's do. Run `make bf16` with the same
MODEL, GBS, MBS and SEQ, `--num-layers` and `DATA=mock` on the same GPU before and after it: times of two days tell
nothing. Without a GPU it takes two steps of the tiny model, to show that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from pretraining.request import footprint, models

WARM = 3  # steps that compile and settle
LLAMAS = [name for name in models.MODELS if name.startswith(("llama", "tiny"))]


class Layer(nn.Module):
    """A Llama layer: [batch, sequence, hidden] to the same."""

    def __init__(self, shape: footprint.Shape) -> None:
        super().__init__()
        self.heads, self.groups, self.size = shape.heads, shape.groups, shape.head_size
        self.before = nn.RMSNorm(shape.hidden, eps=1e-5)
        self.qkv = nn.Linear(shape.hidden, (shape.heads + 2 * shape.groups) * shape.head_size, bias=False)
        self.proj = nn.Linear(shape.heads * shape.head_size, shape.hidden, bias=False)
        self.between = nn.RMSNorm(shape.hidden, eps=1e-5)
        self.fc1 = nn.Linear(shape.hidden, 2 * shape.mlp_size, bias=False)
        self.fc2 = nn.Linear(shape.mlp_size, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        batch, sequence, _ = x.shape
        heads = self.qkv(self.before(x)).view(batch, sequence, -1, self.size).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.groups, self.groups], dim=1)
        q, k = (each * cosine + _turned(each) * sine for each in (q, k))
        mixed = functional.scaled_dot_product_attention(q.to(v), k.to(v), v, is_causal=True, enable_gqa=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, sequence, -1))
        gate, up = self.fc1(self.between(x)).chunk(2, dim=-1)
        return x + self.fc2(functional.silu(gate) * up)


def _turned(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class Llama(nn.Module):
    """Tokens of shape [batch, sequence + 1] to their mean loss."""

    def __init__(self, shape: footprint.Shape, layers: int, sequence: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.words, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=1e-5)
        self.output = nn.Linear(shape.hidden, shape.words, bias=False)
        if shape.tied:
            self.output.weight = self.embedding.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        turns = 500_000.0 ** (-torch.arange(0, shape.head_size, 2) / shape.head_size)
        angles = torch.outer(torch.arange(sequence), torch.cat((turns, turns)))
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens[:, :-1])
        for layer in self.layers:
            x = layer(x, self.cosine, self.sine)
        return self.loss(x, tokens[:, 1:])

    def loss(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of the last layer's output."""
        return functional.cross_entropy(self.output(self.norm(x)).flatten(0, 1).float(), labels.flatten())


def step_times(args: argparse.Namespace, shape: footprint.Shape, device: torch.device) -> list[float]:
    """Seconds of each step after the first WARM."""
    with device:
        model = Llama(shape, args.num_layers, args.seq_length)
    if device.type == "cuda":
        for layer in model.layers:
            layer.compile()
        model.loss = torch.compile(model.loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    size = (args.micro_batch_size, args.seq_length + 1)
    micro_batches = args.global_batch_size // args.micro_batch_size
    times = []
    for _ in range(WARM + args.steps):
        batches = [torch.randint(0, shape.words, size, device=device) for _ in range(micro_batches)]
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for tokens in batches:
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(tokens) / micro_batches
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total = loss.item() * micro_batches  # waits for the GPU, as a loop that logs its loss does
        times.append(time.perf_counter() - began)
    wanted = math.log(shape.words)
    print(f"loss of the last micro batch {total:.3f}; random tokens of {shape.words:,} words want {wanted:.3f}")
    return times[WARM:]


def main() -> None:
    """Measure and print; `--json` also writes."""
    gpu = torch.cuda.is_available()
    flags = argparse.ArgumentParser(description="BF16 of the same Llama in plain PyTorch.")
    flags.add_argument(
        "--model",
        default="llama31-8b" if gpu else "tiny",
        choices=LLAMAS,
    )
    flags.add_argument("--num-layers", type=int, default=4 if gpu else 2)
    flags.add_argument("--seq-length", type=int, default=4096 if gpu else 64)
    flags.add_argument("--global-batch-size", type=int, default=16 if gpu else 4)
    flags.add_argument("--micro-batch-size", type=int, default=4 if gpu else 2)
    flags.add_argument("--steps", type=int, default=20 if gpu else 2)
    flags.add_argument("--json", type=Path)
    args = flags.parse_args()
    torch.manual_seed(1234)
    torch.set_float32_matmul_precision("high")
    shape = footprint.shape_of(models.MODELS[args.model].hf_config | {"num_hidden_layers": args.num_layers})
    times = step_times(args, shape, torch.device("cuda" if gpu else "cpu"))
    step = statistics.median(times)
    tokens = args.global_batch_size * args.seq_length / step
    tflops = tokens * footprint.flops_per_token(shape, args.seq_length) / 1e12
    peak = torch.cuda.max_memory_allocated() / 1e9 if gpu else 0.0
    where = torch.cuda.get_device_name() if gpu else "CPU: a check that it runs, no measurement"
    print(f"{where}, PyTorch {torch.__version__}: {args.model}, {args.num_layers} layers, sequence {args.seq_length}")
    print(
        f"step {step:.4f} s ({min(times):.4f} to {max(times):.4f}, {len(times)} steps), {tokens:,.0f} tokens/s, ",
        end="",
    )
    print(f"{tflops:.1f} MODEL_TFLOP/s, {peak:.1f} GB allocated at most")
    if args.json:
        row = {"step_time_s": times, "tokens_per_second": tokens, "tflops": tflops, "peak_bytes": int(peak * 1e9)}
        args.json.write_text(json.dumps({"where": where, **vars(args), "json": None, **row}) + "\n")


if __name__ == "__main__":
    main()
