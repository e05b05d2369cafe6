"""Comparisons as they come out of real use, of made-up records: GB300-like, the CPU, forced, three arms, and so on."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from playbook.compare import comparison
from playbook.compare.model import Comparison
from playbook.record.columns import Lines
from pretraining.record.run_folder import Run

Case = tuple[Comparison, dict[str, list[Run]]]

START = 1763806530.0
FULL = {"rht": True, "stochastic": True, "two_d": True}
GB300 = {"kind": "gpu", "name": "NVIDIA GB300", "capability": [10, 3], "memory_bytes": 288 * 10**9, "driver": "580.95"}
CPU = {"kind": "cpu", "name": "AMD EPYC 9B14", "threads": 2}
LLAMA = {
    "model": "llama31-8b",
    "parameters": 8_030_261_248,
    "num_layers": 32,
    "hidden_size": 4096,
    "sequence_length": 4096,
    "global_batch_size": 64,
    "micro_batch_size": 4,
    "seed": 1234,
    "data": "mock",
    "world_size": 1,
}
TINY = LLAMA | {
    "model": "tiny",
    "parameters": 853_376,
    "num_layers": 4,
    "hidden_size": 128,
    "sequence_length": 128,
    "global_batch_size": 32,
    "data": "python-stdlib-3.11.7-508919032030",
}


def make_run(
    precision: str,
    step: float,
    *,
    iterations: int = 50,
    seed: int = 0,
    noise: float = 0.004,
    gap: float = 0.0,
    device: dict[str, Any] = GB300,
    used: float | None = 207.8e9,
    watts: float | None = 1150.0,
    work: dict[str, Any] = LLAMA,
) -> Run:
    """A run folder as it is read: one loss curve for all, `gap` above it at the end, and noise of its own.

    Args:
        step: seconds.
        noise: of a step, relative.
        used, watts: what the device tells at most; None where it does not.
    """
    shared, own = np.random.default_rng(11), np.random.default_rng(seed)
    numbers = np.arange(1, iterations + 1)
    curve = 2.1 + 9 / (1 + numbers * 60 / iterations) ** 0.9 + shared.normal(0, 0.03, iterations)
    losses = curve * (1 + gap * numbers / iterations) + own.normal(0, 0.004, iterations)
    steps = step * (1 + np.abs(own.normal(0, noise, iterations)))
    steps[own.random(iterations) < 0.02] *= 1.12
    steps[0] = 8 * step
    norms = np.ones(iterations)
    train = Lines({"iteration": numbers.astype(float), "loss": losses, "step_time_s": steps, "grad_norm": norms,
                   "time": START + np.cumsum(steps)})  # fmt: skip
    parity = work | {"device": device["name"], "train_iters": iterations, "start_iteration": 0}
    arithmetic = "native" if device["kind"] == "gpu" else "emulated"
    kept = {"name": precision, "arithmetic": arithmetic, "bf16_head_layers": 0, "bf16_tail_layers": 4}
    environment = {
        "host": "station",
        "model": work["model"],
        "device": device,
        "parity": parity,
        "precision": kept | ({"ingredients": FULL} if precision == "nvfp4" else {}),
        "mock_data": work["data"] == "mock",
        "tokens_per_step": work["global_batch_size"] * work["sequence_length"],
        "flops_per_token": 48.25e9 if work["model"] == "llama31-8b" else 5.3e6,
        "versions": {"python": "3.12.3", "torch": "2.11.0", "megatron-bridge": "0.4.0", "transformer-engine": "2.14.0"},
        **({"text": {"bigram_entropy": 2.4037}} if work["data"] != "mock" else {}),
    }
    plan = {"command": ["make", precision], "git_commit": "6d8a112"}
    if device["kind"] == "gpu":
        plan["image"] = {"name": "nvcr.io/nvidia/nemo:26.04", "digest": "sha256:" + "5f1c" * 16}
    outcome = {"verdict": "succeeded", "peak_memory": {"bytes": used and used - 9e9, "kind": "torch allocated"}}
    if device["kind"] == "cpu":
        outcome["peak_memory"] = {"bytes": used, "kind": "resident set size of the process"}
    evaluations = [{"kind": "eval", "split": "validation", "iteration": iterations, "loss": 2.3 * (1 + gap)}]
    folder = Path(f"/srv/nemo_experiments/20261122T1015{seed:02d}Z-{precision}-{work['model']}")
    samples = list(make_samples(float(steps.sum()), device, used, watts, own)) if used else []
    return Run(folder, plan, environment, outcome, train, evaluations, samples)


def make_samples(seconds: float, device: dict[str, Any], used: float, watts: float | None, noise: np.random.Generator):
    """One sample a second, at most some hours of them."""
    for second in range(min(20_000, int(seconds) + 3)):
        grown = used * min(1.0, 0.35 + second / 12)
        drawn = watts and watts * (0.35 if second < 6 else 1) + float(noise.normal(0, 12))
        known = {"time": START - 1 + second, "samples": 10, "power_w": drawn}
        if device["kind"] == "cpu":
            yield known | {"device": "cpu", "used_bytes": None, "process_bytes": grown}
        else:
            yield known | {"device": 0, "used_bytes": grown, "process_bytes": grown - 6e8}
            yield known | {"device": "cpu", "used_bytes": None, "process_bytes": 9e11, "power_w": None}


def compared(*groups: list[Run], reproduce: str, force: bool = False) -> Case:
    """The comparison of these configurations, and their runs by the names of its arms."""
    result = comparison.compare(groups, force=force, reproduce=reproduce)
    result = replace(result, created="2026-11-22T12:00:00Z")
    return result, dict(zip((arm.name for arm in result.arms), groups, strict=True))


def gb300() -> Case:
    """Three repeats on a DGX Station, about as the playbook published them."""
    bf16 = [make_run("bf16", 9.02 + 0.02 * at, seed=at, used=221.6e9, watts=1290) for at in range(3)]
    nvfp4 = [make_run("nvfp4", 5.37 + 0.015 * at, seed=9 + at, gap=0.006, watts=1330) for at in range(3)]
    return compared(bf16, nvfp4, reproduce="make compare REPEAT=3")


def on_cpu() -> Case:
    """Both emulated on the CPU: no speed, no power, one run each."""
    known: dict[str, Any] = {"device": CPU, "iterations": 120, "noise": 0.08, "watts": None, "work": TINY}
    bf16 = make_run("bf16", 0.476, seed=1, used=1.10e9, **known)
    nvfp4 = make_run("nvfp4", 0.530, seed=2, used=1.31e9, gap=-0.004, **known)
    return compared([bf16], [nvfp4], reproduce="make compare")


def control() -> Case:
    """BF16 against itself."""
    runs = [[make_run("bf16", 9.05, seed=10 * arm + at, used=221e9) for at in range(3)] for arm in (1, 2)]
    return compared(*runs, reproduce="make compare A=bf16 B=bf16 REPEAT=3")


def forced() -> Case:
    """Two that did not do the same work, compared all the same; names and values as an attacker would choose them."""
    other = LLAMA | {"global_batch_size": 32, "data": "<img src=x onerror=alert(2)>"}
    bf16 = make_run("bf16", 9.05, seed=1, used=221e9)
    new = make_run("<script>alert(1)</script>", 5.39, seed=2, used=None, watts=None, gap=0.02, work=other)
    return compared([bf16], [new], force=True, reproduce=f"compare.py {shlex.quote('a b')} '<b>' --force")


def three_arms() -> Case:
    """BF16, NVFP4 and MXFP8; the last with no memory and no energy."""
    (_, runs), mxfp8 = gb300(), make_run("mxfp8", 6.71, seed=20, gap=0.002, used=None, watts=None)
    return compared(*runs.values(), [mxfp8], reproduce="make compare RUNS='a b c'")


def raw_logs() -> Case:
    """Runs of which nothing is known but their iterations."""
    known = {"source": "log", "parity": {"global_batch_size": 64, "start_iteration": 0}}
    runs = []
    for precision, step in (("bf16", 9.05), ("nvfp4", 5.39)):
        run = make_run(precision, step, seed=3, used=None)
        facts = known | {"precision": {"name": precision, "arithmetic": "native"}}
        runs.append([replace(run, folder=Path(f"/srv/{precision}.log"), plan={}, environment=facts, evaluations=[])])
    return compared(*runs, reproduce="", force=True)


def long(iterations: int = 1_000_000) -> Case:
    """Two long runs with a single stall that must not be lost."""
    bf16 = make_run("bf16", 9.05, seed=1, iterations=iterations, used=221e9)
    nvfp4 = make_run("nvfp4", 5.39, seed=2, iterations=iterations, gap=0.012)
    nvfp4.train.column("step_time_s")[iterations // 2] = 300.0
    return compared([bf16], [nvfp4], reproduce="make compare")


def emulators() -> Case:
    """NVFP4's two emulators on one GPU, beside BF16."""
    bf16 = make_run("bf16", 1.65, seed=1, used=83e9)
    groups = [[bf16]]
    for at, (emulator, step) in enumerate((("triton", 1.66), ("reference", 19.2)), 2):
        run = make_run("nvfp4", step, seed=at, used=90e9)
        run.environment["precision"] |= {"arithmetic": "emulated", "emulator": emulator}
        groups.append([run])
    return compared(*groups, reproduce="make compare RUNS='a b c'")


def recipes() -> Case:
    """BF16, NVFP4 and NVFP4 with much of its recipe changed, which makes a long name; three seeds each."""
    changed = {"rht": False, "stochastic": False, "four_over_six": "weights", "in_bf16": "qkv,proj"}
    groups = []
    for at, (precision, ingredients) in enumerate((("bf16", {}), ("nvfp4", FULL), ("nvfp4", FULL | changed))):
        groups.append([])
        for seed in range(3):
            known: dict[str, Any] = {"device": CPU, "iterations": 120, "watts": None, "work": TINY | {"seed": seed}}
            run = make_run(precision, 0.476, seed=10 * at + seed, used=1.1e9, gap=0.004 * at, **known)
            run.environment["precision"] |= {"ingredients": ingredients, "bf16_tail_layers": 0}
            groups[-1].append(run)
    return compared(*groups, reproduce="make compare RUNS='a b c'")


CASES = {
    "gb300": gb300,
    "cpu": on_cpu,
    "control": control,
    "forced": forced,
    "three-arms": three_arms,
    "raw-logs": raw_logs,
    "emulators": emulators,
    "recipes": recipes,
}
