#!/usr/bin/env python3
"""Pretrain a Llama with Megatron-Bridge in NVFP4 or BF16, and leave a run folder that explains itself.

    torchrun --nproc_per_node 1 assets/pretrain_llama.py                   NVFP4, Llama 3.1 8B, mock data
    torchrun --nproc_per_node 1 assets/pretrain_llama.py --disable-fp4     the same in BF16
    python3 assets/pretrain_llama.py --model tiny                          one process, with or without a GPU

Exit codes: 0 trained, 1 failed, 2 wrong usage, 130 interrupted. What the folder holds:
`pretraining/record/run_folder.py`.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not Path("/dev/nvidiactl").exists():
    # A CPU run. OpenMP reads this once, when torch is loaded: threads that wait by spinning make a step up to twelve
    # times longer as soon as another program wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pretraining import packages
from pretraining.errors import EndedEarly, UsageError, WrongKernels
from pretraining.inputs import finetuning
from pretraining.megatron import compat, cpu, writers
from pretraining.megatron.plugin import Plugin
from pretraining.numerics import late_switch
from pretraining.record import files, run_folder
from pretraining.request import flags as training_flags
from pretraining.request import settings
from pretraining.request.recipe import nvfp4_recipe
from pretraining.run import device_monitor, ending, rendezvous, signals, tee

if TYPE_CHECKING:
    from megatron.bridge.training.callbacks import CallbackContext
    from megatron.bridge.training.config import ConfigContainer

    from pretraining.megatron.changes import Change
    from pretraining.request.precisions import Precision
    from pretraining.run.run_facts import EnvironmentFile


def train(run: ending.RunEnd, chosen: settings.Settings, processes: int, on_gpu: bool) -> None:
    """Build the config, train, and leave peak memory and iteration count in `run`."""
    writers.check(chosen)
    if chosen.nvfp4:
        nvfp4_recipe.use(chosen.nvfp4)
    late_switch.use(chosen.late_switch, chosen.switches_at, done=chosen.train_iters * (not chosen.trains))
    if not on_gpu:
        os.environ.setdefault("NUMBA_CACHE_DIR", str(chosen.cache_dir / "numba"))  # beside the source may be read-only
        cpu.enable()
    else:
        ending.check_capability(chosen)
        compat.give_nvrx_a_version()
    run.sampler = device_monitor.start(run.folder, on_gpu=on_gpu)
    from megatron.bridge.training.pretrain import pretrain

    from pretraining.data import builtin_text, corpus
    from pretraining.megatron import bridge_config, changes, weights
    from pretraining.record import checkpoint
    from pretraining.run import run_facts

    checkpoint.guard()
    rendezvous.use_own_store(processes)
    builtin = builtin_text.prepare(chosen.cache_dir) if chosen.data == settings.PYTHON_STDLIB else None
    corpus.check(chosen, builtin)
    environment = run_facts.EnvironmentFile(
        run.folder, chosen, on_gpu=on_gpu, processes=processes, builtin=builtin, writes=run.rank == 0
    )
    plugin = Plugin(chosen.plugin) if chosen.plugin else None
    config, changed = changes.configured(chosen, run.folder, plugin, builtin)
    make_ready(config, changed, chosen, run, on_gpu)

    def on_start(context: CallbackContext) -> None:
        bridge_config.check_built(context.state, chosen)
        changes.check_kept(context.state.cfg, changed, "Megatron-Bridge")
        environment.complete(context, run.sampler.describe() if run.sampler else {}, changes.facts(chosen, changed))
        if on_gpu:
            admit_kernels(context.state.cfg, chosen, environment)
        if chosen.export:
            weights.export(context.model, chosen.model, chosen.export, chosen.resume)
        if chosen.save:
            run.saving.begin(context)

    step, callbacks = parts_of_the_loop(run, chosen, on_start, plugin, on_gpu)
    with ending.asked_for(config.train, run):
        pretrain(config, step, callbacks=callbacks)
    if chosen.trains and run.telemetry.iterations < chosen.train_iters:
        raise EndedEarly(run.telemetry.iterations, chosen.train_iters)


def make_ready(
    config: ConfigContainer, changed: dict[str, Change], chosen: settings.Settings, run: ending.RunEnd, on_gpu: bool
) -> None:
    """Write the config into the run folder; then fit it, and Megatron, to this machine."""
    from pretraining.megatron import bridge_config, changes, switching, tuning

    if run.rank == 0:
        files.write_text(run.folder / run_folder.CONFIG, changes.as_text(config, chosen, changed))
    if not on_gpu:
        cpu.adapt(config)
        changes.check_kept(config, changed, changes.CPU)
    tuning.keep_loaded_base(config, chosen, run.folder)
    if on_gpu:
        bridge_config.check_weights(config, chosen)
        bridge_config.check_resumed(config, chosen)
    if on_gpu and chosen.switches_at is not None:
        switching.check(config, chosen)
        switching.provide(config, chosen)
    compat.skip_compile_helpers()
    if chosen.save:
        compat.save_without_nvrx()


def admit_kernels(config: ConfigContainer, chosen: settings.Settings, environment: EnvironmentFile) -> None:
    """Hold a GPU's own kernels of each of a run's precisions against the specification, and record what came of it."""
    import torch

    from pretraining.megatron import bridge_config
    from pretraining.selfcheck import probe

    native = dict(bridge_config.native_configs(config.model, chosen))
    if chosen.no_probe and native:
        environment.add(probe={"skipped": True})
    if chosen.no_probe or not native:
        return
    probed = {
        row: probe.probe(
            lambda model=model: probe.TransformerEngine(compat.engine_recipe(model)),
            required=row.is_probed(torch.cuda.get_device_capability()),
        )
        for row, model in native.items()
    }
    environment.add(
        probe={
            "passed": not any(found.problem for found in probed.values()),
            "seconds": round(sum(found.seconds for found in probed.values()), 3),
            "found": {f"{row.name}: {of}": said for row, found in probed.items() for of, said in found.found.items()},
        }
    )
    for row, found in probed.items():
        if found.problem:
            raise WrongKernels(_wrong(row, found.problem))


def _wrong(precision: Precision, problem: str) -> str:
    import torch

    also = ", or --emulate (EMULATE=1), which needs no such kernels" if precision.fp4 else ""
    return (
        f"{precision.name} of Transformer Engine {packages.installed().get('transformer-engine')} is wrong on this "
        f"{torch.cuda.get_device_name()}: {problem}. Take a newer image (TAG=){also}; --no-probe (PROBE=0) trains all "
        "the same, and the record says so"
    )


def parts_of_the_loop(
    run: ending.RunEnd,
    chosen: settings.Settings,
    on_start: Callable[[CallbackContext], None],
    plugin: Plugin | None,
    on_gpu: bool,
) -> tuple[Callable[..., Any], list[Any]]:
    """The forward step, and the callbacks around every iteration; telemetry's are `run`'s too."""
    from megatron.bridge.training.gpt_step import forward_step

    from pretraining.megatron.switching import Switching
    from pretraining.run.profiling import Profiler
    from pretraining.run.sensitivity import Sensitivity
    from pretraining.run.sequence_losses import SequenceLosses
    from pretraining.run.telemetry import Telemetry

    on_end = run.saving.end if chosen.save else lambda: None
    run.telemetry = Telemetry(run.folder, on_start, on_end, run.saving.instead_of_raising)
    step = plugin.forward_step(forward_step) if plugin else forward_step
    callbacks = [run.telemetry, *(plugin.callbacks if plugin else ())]
    if chosen.switches_at is not None:
        callbacks.append(Switching(chosen))
    if chosen.evaluate:
        losses = SequenceLosses(run.folder)
        step = losses.forward_step(step)
        callbacks.append(losses)
    if chosen.profile and run.rank == 0:
        callbacks.append(Profiler(chosen, run.folder, on_gpu=on_gpu))
    if chosen.sensitivity:
        callbacks.append(Sensitivity(chosen, run.folder, on_gpu=on_gpu))
    return step, callbacks


def main() -> int:
    """Parse, train, record how it ended. Returns the exit code."""
    try:
        rank, processes = rendezvous.number_of_this()
        args = training_flags.parser("pretrain_llama.py").parse_args()
        on_gpu = ending.has_gpu()
        chosen = settings.resolve(args, on_gpu=on_gpu, processes=processes)
        held = ending.claim_run_dir(chosen)
    except UsageError as error:
        print(f"pretrain_llama.py: {error}", file=sys.stderr)
        return 2

    folder = held.folder
    copier = tee.tee(*run_folder.logs_of(folder, rank, processes))
    print(f"{time.strftime('%H:%M:%S')} {chosen.model.name} in {chosen.precision.name}: {folder}", flush=True)
    if held.problem and rank == 0:
        print(f"pretrain_llama.py: {held.problem}", file=sys.stderr, flush=True)
    if rank == 0 and (ignored := chosen.ignored()):
        print(f"--config {chosen.config.path}: {ignored}", flush=True)
    if rank == 0 and chosen.finetune and (left_out := finetuning.left_out(chosen.data)):
        print(f"--data {chosen.data}: {left_out}", flush=True)
    run = ending.RunEnd(folder, rank, chosen.plugin)
    try:
        ending.interrupt_on_sigterm()
        signals.outlive_signals()
        rendezvous.describe(rank, processes)
        train(run, chosen, processes, on_gpu)
        code = run.succeeded()
    except BaseException as raised:
        error = ending.caught(raised)
        if not (
            isinstance(error, UsageError | EndedEarly | WrongKernels) or run.ended_by_saving(error)
        ):  # whose one line says all
            traceback.print_exc()
        code = run.failed(error)
    writers.finish(chosen, succeeded=code == 0)
    ending.settled(code)
    tee.finish(copier, ending.PATIENCE_SECONDS if code == ending.INTERRUPTED else None)
    ending.leave(code)


if __name__ == "__main__":
    sys.exit(main())
