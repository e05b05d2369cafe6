"""Comparisons as they come out of real use, with made-up figures: GB300-like, the CPU, forced, three arms, and so on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from playbook.parity import Difference
from playbook.results import Arm, Comparison, Contrast, Distribution, Ratio, RunResult
from playbook.stats import Figure, Window
from pretraining.record import Run

Case = tuple[Comparison, dict[str, list[Run]]]

IQR, WITHIN = "interquartile range", "95 % block bootstrap, within this run only"
REPEATS = "95 % t-interval over 3 paired repeats"
PUBLISHED = "published: under 1 % in the stable phase, about 1.5 % at the end of decay (arXiv 2509.25149)"
GB300 = {"kind": "gpu", "name": "NVIDIA GB300", "capability": [10, 3], "memory_bytes": 288 * 10**9, "driver": "580.95"}
CPU = {"kind": "cpu", "name": "AMD EPYC 9B14", "threads": 2}
FULL = {"rht": True, "stochastic": True, "two_d": True}


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
    **facts: Any,
) -> Run:
    """A run folder as it is read: losses of one curve for all, `gap` above it, and their own noise."""
    shared, own = np.random.default_rng(11), np.random.default_rng(seed)
    numbers = np.arange(1, iterations + 1)
    curve = 2.1 + 9 / (1 + numbers * 60 / iterations) ** 0.9 + shared.normal(0, 0.03, iterations)
    losses = curve * (1 + gap * numbers / iterations) + own.normal(0, 0.004, iterations)
    steps = step * (1 + np.abs(own.normal(0, noise, iterations)))
    steps[own.random(iterations) < 0.02] *= 1.12
    steps[0] = 8 * step
    columns = (numbers.tolist(), losses.tolist(), steps.tolist())
    train = [
        {"kind": "train", "iteration": number, "loss": loss, "step_time_s": seconds, "grad_norm": 1.0}
        for number, loss, seconds in zip(*columns, strict=True)
    ]
    evaluations = [{"kind": "eval", "split": "validation", "iteration": iterations, "loss": 2.3 * (1 + gap)}]
    arithmetic = "native" if device["kind"] == "gpu" else "emulated"
    kept = {"name": precision, "arithmetic": arithmetic, "bf16_head_layers": 0, "bf16_tail_layers": 4}
    parity = {"model": "llama31-8b", "parameters": 8_030_261_248, "sequence_length": 4096, "global_batch_size": 64,
              "seed": 1234, "data": "mock", "device": device["name"]} | facts  # fmt: skip
    environment = {
        "host": "station", "model": parity["model"], "started": "2026-11-22T10:15:30Z", "device": device, "parity": parity,
        "precision": kept | ({"ingredients": FULL} if precision == "nvfp4" else {}), "mock_data": True,
        "tokens_per_step": parity["global_batch_size"] * parity["sequence_length"],
        "versions": {"python": "3.12.3", "torch": "2.11.0", "megatron-bridge": "0.4.0", "transformer-engine": "2.14.0"},
    }  # fmt: skip
    plan = {"command": ["make", precision, "ITERS=50"], "git_commit": "6d8a112",
            "image": {"name": "nvcr.io/nvidia/nemo:26.04", "digest": "sha256:" + "5f1c" * 16}}  # fmt: skip
    folder = Path(f"/srv/nemo_experiments/20261122T1015{seed:02d}Z-{precision}-{parity['model']}")
    seconds = min(20_000, max(20, int(iterations * step)))
    samples = [_sample(second, seconds, used, watts, own) for second in range(seconds)]
    return Run(folder, plan, environment, {"verdict": "succeeded"}, train, evaluations, samples if used else [])


def _sample(
    second: int, last: int, used: float | None, watts: float | None, noise: np.random.Generator
) -> dict[str, Any]:
    grown = (used or 0) * min(1.0, 0.35 + second / 12)
    drawn = watts and watts * (0.35 if second < 6 else 1) + float(noise.normal(0, 12))
    return {
        "time": 1763806530.0 + second,
        "device": 0,
        "used_bytes": grown,
        "process_bytes": grown - 6e8,
        "power_w": drawn,
    }


def middle(runs: Sequence[Run], unit: str, scale: float = 1.0, *, power: int = 1) -> Figure:
    """The median step of all runs, as `unit`."""
    steps = np.concatenate([[line["step_time_s"] for line in run.train[len(run.train) // 2 :]] for run in runs])
    low, value, high = np.sort(scale * np.quantile(steps, [0.25, 0.5, 0.75]) ** power)
    return Figure(float(value), unit, float(low), float(high), REPEATS if len(runs) > 2 else IQR, len(steps))


def make_arm(name: str, runs: list[Run], *, peak: float | None, joules: float | None) -> Arm:
    """An arm with figures that come from its runs."""
    first = runs[0].environment
    tokens, native = first["tokens_per_step"], first["precision"]["arithmetic"] == "native"
    step = middle(runs, "s")
    per_second = middle(runs, "tokens/s", tokens, power=-1)
    tflops = middle(runs, "MODEL_TFLOP/s/GPU", tokens * 48.25e9 / 1e12, power=-1) if native else None
    losses = [line["loss"] for line in runs[0].train[-5:]]
    loss = Figure(float(np.mean(losses)), "nats a token", min(losses), max(losses), "standard deviation", 5)
    return Arm(
        name=name, precision=first["precision"]["name"], arithmetic=first["precision"]["arithmetic"], bf16_head_layers=0,
        bf16_tail_layers=4, ingredients=first["precision"].get("ingredients", {}), runs=[make_result(run) for run in runs],
        step_time=step, tokens_per_second=per_second, tokens_per_second_per_gpu=per_second, model_tflops_per_gpu=tflops,
        mfu=replace(tflops, value=tflops.value / 147, unit="%", low=None, high=None) if tflops else None,
        mfu_peak="of 14,700 TFLOP/s, NVFP4 dense on a GB300 (dgxc-benchmarking)" if tflops else "", training_loss=loss,
        validation_loss=Figure(runs[0].evaluations[-1]["loss"], "nats a token"), test_loss=None,
        peak_memory=Figure(peak, "GB") if peak else None, peak_memory_kind="device used" if peak else "",
        energy_per_step=Figure(joules, "J") if joules else None,
        joules_per_token=Figure(joules / tokens, "J/token") if joules else None,
    )  # fmt: skip


def make_result(run: Run) -> RunResult:
    """One run's own figures."""
    iterations = len(run.train)
    steps = np.array([line["step_time_s"] for line in run.train[min(19, iterations // 2) :]])
    low, half, high = np.quantile(steps, [0.25, 0.5, 0.75])
    spread = Distribution(half, steps.mean(), steps.std(), low, high, steps.min(), steps.max(), 1, len(steps))
    return RunResult(
        path=str(run.folder), source="run folder", verdict="succeeded", cause="", device=run.environment["device"]["kind"],
        iterations=iterations, timed=Window(min(20, iterations // 2 + 1), iterations, "iterations 20 to the end"),
        step_times=spread, tokens_per_second=None, tokens_per_second_per_gpu=None, model_tflops_per_gpu=None, mfu=None,
        training_loss=None, validation_loss=None, validated_at=iterations, test_loss=None, memory={}, energy_per_step=None,
        joules_per_token=None, mean_power=None, warnings=[], facts=run.parity,
    )  # fmt: skip


def make_contrast(arm: Arm, base: Arm, gap: Figure, *, what: str = "speed-up", spread: str = WITHIN) -> Contrast:
    """An arm against the baseline, with the interval that `spread` names."""
    value = base.step_time.value / arm.step_time.value
    value = value if what == "speed-up" else 1 / value
    ratio = Figure(value, "x", value * 0.991, value * 1.009, spread, 3)
    shows = "; an emulation shows no speed" if what != "speed-up" else ""
    memory = (
        arm.peak_memory
        and base.peak_memory
        and replace(arm.peak_memory, value=arm.peak_memory.value - base.peak_memory.value)
    )
    joules = arm.joules_per_token and Figure(arm.joules_per_token.value / base.joules_per_token.value, "x")
    return Contrast(
        candidate=arm.name,
        step_time=Ratio(what, ratio, f"{value:.2f} times the {base.label} step{shows}", differs=True),
        peak_memory=memory,
        joules_per_token=joules,
        training_loss_gap=gap,
        validation_loss_gap=Figure(gap.value * 1.1, "%"),
        published_gap=PUBLISHED if arm.precision == "nvfp4" else "",
        placed=f"The gap of {gap.value:+.2f} % lies inside the published band.",
    )


def gb300() -> Case:
    """Three repeats on a DGX Station, as the playbook published them."""
    runs = {
        "A": [make_run("bf16", 9.02 + 0.02 * at, seed=at, used=221.6e9, watts=1290) for at in range(3)],
        "B": [make_run("nvfp4", 5.37 + 0.015 * at, seed=9 + at, gap=0.006, watts=1330) for at in range(3)],
    }
    base, new = (
        make_arm("A", runs["A"], peak=221.6, joules=11_600.0),
        make_arm("B", runs["B"], peak=207.8, joules=7_130.0),
    )
    gap = Figure(0.54, "%", 0.35, 0.73, "95 % interval over the last tenth", 5)
    return Comparison(
        created="2026-11-22T12:00:00Z", forced=False,
        verdict="NVFP4 trains 1.68 times as fast as BF16 (95 % interval 1.66 to 1.69) in 13.8 GB less memory. "
        "Its loss lies 0.54 % higher at the end of 50 iterations, inside the published band.",
        arms=[base, new], baseline="A", contrasts=[make_contrast(new, base, gap, spread=REPEATS)],
        scope="50 iterations (13.1M tokens) of mock data show whether the arithmetic trains; they say nothing about "
        "convergence.", bigram_entropy=None, differences=[], unchecked=[],
        warnings=["B: 3 outlying steps over 3 runs: close what else uses the GPU and repeat"],
        bands=["B: 2,347 MODEL_TFLOP/s/GPU lies in the band of a GB300 in NVFP4, 2,200 to 2,450 (NVIDIA's playbook)"],
        reproduce="make compare REPEAT=3 MODEL=llama31-8b ITERS=50",
    ), runs  # fmt: skip


def on_cpu() -> Case:
    """Both emulated on the CPU: no speed, no power, one run each."""
    facts = {"model": "tiny", "parameters": 853_376, "sequence_length": 128, "global_batch_size": 32}
    known = {"device": CPU, "iterations": 120, "noise": 0.05, "watts": None, **facts}
    runs = {
        "A": [make_run("bf16", 0.476, seed=1, used=1.10e9, **known)],
        "B": [make_run("nvfp4", 0.530, seed=2, used=1.31e9, gap=-0.004, **known)],
    }
    base, new = make_arm("A", runs["A"], peak=1.10, joules=None), make_arm("B", runs["B"], peak=1.31, joules=None)
    gap = Figure(-0.37, "%", -0.61, -0.13, "95 % interval over the last tenth", 12)
    result = gb300()[0]
    return replace(
        result,
        verdict="Both precisions are emulated on a CPU: an emulation shows no speed. The losses lie −0.37 % apart.",
        arms=[base, new],
        contrasts=[make_contrast(new, base, gap, what="cost of emulation")],
        scope="120 iterations (492k tokens) show whether the two learn alike at first; nothing about convergence at scale.",
        bigram_entropy=Figure(2.4037, "nats a byte"),
        warnings=["A and B: the interquartile range is 11 % of the median: system fluctuation; close other programs"],
        bands=[],
        reproduce="make compare ITERS=120",
    ), runs


def forced() -> Case:
    """Two that did not do the same work, compared all the same; names and values as an attacker would choose them."""
    runs = {
        "A": [make_run("bf16", 9.05, seed=1, used=221e9)],
        "B": [
            make_run(
                "<script>alert(1)</script>", 5.39, seed=2, global_batch_size=32, data="<img src=x onerror=alert(2)>"
            )
        ],
    }
    base, new = make_arm("A", runs["A"], peak=221.6, joules=None), make_arm("B", runs["B"], peak=None, joules=None)
    gap = Figure(2.31, "%", 1.2, 3.4, "95 % interval over the last tenth", 5)
    differences = [
        Difference("global_batch_size", 64, 32, "run one of them again with the settings of the other"),
        Difference(
            "data", "mock", "<img src=x onerror=alert(2)>", "run one of them again with the settings of the other"
        ),
    ]
    return replace(
        gb300()[0], forced=True, verdict="Forced: these runs did not do the same work, so no figure here stands up.",
        arms=[base, new], contrasts=[make_contrast(new, base, gap)], differences=differences, unchecked=["tokenizer"],
        warnings=["not known of both, so not checked: tokenizer"], bands=[], reproduce="make compare A=x B='<b>' && true",
    ), runs  # fmt: skip


def three_arms() -> Case:
    """BF16, FP8 and NVFP4; the last two with no memory and no energy."""
    (result, runs), extra = gb300(), make_run("mxfp8", 6.71, seed=20, gap=0.002, used=None, watts=None)
    two = make_arm("C", [extra], peak=None, joules=None)
    gap = Figure(0.2, "%", -0.1, 0.5, "95 % interval over the last tenth", 5)
    verdict = "NVFP4 trains 1.68 times as fast as BF16, MXFP8 1.35 times."
    contrasts = [*result.contrasts, make_contrast(two, result.arms[0], gap)]
    return replace(result, verdict=verdict, arms=[*result.arms, two], contrasts=contrasts), runs | {"C": [extra]}


def without_samples() -> Case:
    """Runs of which nothing is known but their iterations, as raw logs are."""
    runs = {
        name: [replace(make_run(precision, step, seed=3, used=None), plan={}, evaluations=[])]
        for name, precision, step in (("A", "bf16", 9.05), ("B", "nvfp4", 5.39))
    }
    for (run,) in runs.values():
        environment = {"source": "log", "parity": {"global_batch_size": 64}, "precision": run.precision}
        run.environment.clear() or run.environment.update(environment)
    known = gb300()[0]
    arms = [
        replace(arm, runs=[replace(arm.runs[0], path=f"/srv/{arm.name}.log", source="raw log", device="")],
                peak_memory=None, energy_per_step=None, joules_per_token=None, validation_loss=None)
        for arm in known.arms
    ]  # fmt: skip
    contrast = replace(known.contrasts[0], peak_memory=None, joules_per_token=None, validation_loss_gap=None)
    return replace(known, arms=arms, contrasts=[contrast], warnings=[], bands=[], reproduce=""), runs


def million(iterations: int = 1_000_000) -> Case:
    """Two runs of a million iterations with a single stall that must not be lost."""
    runs = {
        "A": [make_run("bf16", 9.05, seed=1, iterations=iterations, used=221e9)],
        "B": [make_run("nvfp4", 5.39, seed=2, iterations=iterations, gap=0.012)],
    }
    base, new = (
        make_arm("A", runs["A"], peak=221.6, joules=11_600.0),
        make_arm("B", runs["B"], peak=207.8, joules=7_130.0),
    )
    gap = Figure(1.14, "%", 1.1, 1.18, "95 % interval over the last tenth", iterations // 10)
    return replace(gb300()[0], arms=[base, new], contrasts=[make_contrast(new, base, gap)]), runs


CASES = {
    "gb300": gb300,
    "cpu": on_cpu,
    "forced": forced,
    "three-arms": three_arms,
    "without-samples": without_samples,
}
