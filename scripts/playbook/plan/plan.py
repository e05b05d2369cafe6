"""The plan of a run: every choice as a value with its reason, printed first and stored as `plan.json`."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from playbook import PROJECT
from playbook.common.venvs import fingerprint
from playbook.plan.place import Choice, Place
from playbook.plan.place import show as show_choices
from pretraining.errors import UsageError
from pretraining.inputs import finetuning, plugin_file
from pretraining.record import run_folder
from pretraining.request import blends, config_file
from pretraining.request.flags import ASKED, OF_RUN
from pretraining.request.parallel import NO_CONTEXT_PARALLEL
from pretraining.request.precisions import find_precision
from pretraining.request.recipe import nvfp4_recipe
from pretraining.request.settings import Settings, resolve
from pretraining.run import signals

KEPT = ("bf16_head_layers", "bf16_tail_layers")
SAME_WORK = (
    *("num_layers", *KEPT, "train_iters", "warmup_iters", "global_batch_size", "micro_batch_size"),
    *("sequence_length", "data", "seed", "finetune", "tokenizer", "trains"),
)
SPEED_ONLY = "speed only: without BF16 layers the loss is not the recipe's"
BATCH = ("global_batch_size", "micro_batch_size", "seq_length")


@dataclass(frozen=True)
class Plan:
    """What will run, where, in so many processes (the world size), and what to print of it, in order."""

    settings: Settings
    place: Place
    processes: int
    choices: dict[str, Choice]

    def request(self) -> dict[str, Any]:
        """What was asked for, as comparable facts: two runs with the same request do the same work."""
        settings, place = self.settings, self.place
        asked = {
            "model": settings.model.name,
            "precision": settings.precision.name,
            **{name: getattr(settings, name) for name in SAME_WORK},
            "resume": str(settings.resume) if settings.resume else None,
            **({"iteration": settings.iteration} if settings.resume else {}),
            "from": settings.weights,
            "runtime": place.runtime,
            "processes": self.processes,
            "split": [settings.tensor_parallel, settings.pipeline_parallel, settings.context_parallel],
        }
        only_where_set = {
            "nvfp4": settings.nvfp4 and settings.nvfp4.words(),
            "engine_switches": list(settings.engine_switches),
            "switch": settings.late_switch and settings.switch,
            "emulate": settings.emulate,
            "writers": settings.writers,
            "profile": settings.profile,  # no comparison asks for it, and so none reuses such a run
            "sensitivity": settings.sensitivity,  # likewise
            "tuned": settings.tuned,
            "overrides": settings.changes,
            "config": settings.config and config_file.digest(settings.config.path),
            "plugin": settings.plugin and config_file.digest(settings.plugin),
            "packages": fingerprint("cpu") if place.runtime == "cpu" else None,
        }
        asked |= {name: value for name, value in only_where_set.items() if value}
        if settings.finetune:
            asked["data_files"] = [_state(file) for file in finetuning.files(settings.data).values()]
        elif settings.blends:  # enough to see that they changed, without reading terabytes
            prefixes = blends.prefixes(settings.blends)
            asked["data_files"] = [[_state(Path(f"{each}{end}")) for end in (".bin", ".idx")] for each in prefixes]
        if place.runtime == "container":
            asked |= {"image": place.found and place.found.digest, "gpu": place.uuids or None}
        return asked

    def at(self, place: Place) -> Plan:
        """The same at a place that is ready: its image is known by then."""
        return replace(self, place=place, choices={**self.choices, **place.choices})

    @property
    def grace_seconds(self) -> float | None:
        """How long an interrupted run may take to save, None where it keeps no checkpoints."""
        return signals.GRACE_SECONDS if self.settings.save else None

    def described(self, command: list[str]) -> dict[str, Any]:
        """What `plan.json` holds."""
        found = self.place.found
        written = {
            "kind": run_folder.KIND,
            "schema": run_folder.SCHEMA,
            "created": run_folder.utc_now(),
            "choices": {name: {"value": each.value, "reason": each.reason} for name, each in self.choices.items()},
            "request": self.request(),
            "command": command,
            "grace_seconds": self.grace_seconds,
            "git_commit": git_commit(),
        }
        if self.place.gpu:
            written["gpu"] = asdict(self.place.gpu)
        if found:
            written["image"] = {"name": found.name, "digest": found.digest}
        elif self.place.runtime == "cluster" and self.place.image:
            written["image"] = {"name": self.place.image}  # the nodes pull it, and tell no digest
        return written


def planned(args: argparse.Namespace, precision: str, where: Place) -> Plan:
    """The plan of a launcher's command line in one precision; what changes NVFP4 is left out of any other.

    Raises UsageError as `settings.resolve`; or TP=auto, and the GPU's memory is not known.
    """
    own = {"precision": precision, "disable_fp4": False}
    row = find_precision(precision)
    if not row.fp4:  # of a comparison, one side alone
        own |= {"emulate": None, "nvfp4": None}
    if not row.quantized:
        own["switch"] = None
    room = where.gpu and where.gpu.memory
    if args.auto_split and room is None:
        raise UsageError("TP=auto needs a GPU whose memory is known; give TP= and PP= as numbers")
    chosen = resolve(
        argparse.Namespace(**{**vars(args), **own}),
        on_gpu=where.runtime != "cpu",
        processes=args.nproc,
        gpu_bytes=room if args.auto_split else None,
    )
    if chosen.late_switch and where.gpu:
        chosen.late_switch.check(chosen.precision, where.gpu.capability)
    return make_plan(chosen, where, args.nproc)


def make_plan(settings: Settings, place: Place, processes: int) -> Plan:
    """Collect the choices to show, of resolved settings."""

    def choice(value: Any, otherwise: str, *names: str) -> Choice:
        return Choice(value, settings.reason(otherwise, *names))

    model, precision = settings.model, settings.precision
    runtime = place.runtime
    arithmetic = "emulated exactly on the CPU" if runtime == "cpu" else "on the GPU's tensor cores"
    if settings.emulate:
        by = {"triton": "", "reference": ", by Transformer Engine's reference quantizer"}[settings.emulate]
        arithmetic = f"emulated on the GPU's BF16 tensor cores{by}: {settings.reason(ASKED, 'emulate')}"
    kept = f"first {settings.bf16_head_layers} and last {settings.bf16_tail_layers} of {settings.num_layers} layers"
    choices = {
        **place.choices,
        "model": choice(model.name, f"the default {'without' if runtime == 'cpu' else 'with'} a GPU", "model"),
        "precision": Choice(precision.name, arithmetic),
    }
    if settings.num_layers != model.num_layers:
        who = settings.reason(ASKED, "num_layers")
        choices["layers"] = Choice(settings.num_layers, f"{who}; {model.name} has {model.num_layers}")
    if precision.quantized:
        speed_only = precision.is_speed_only(settings.bf16_head_layers, settings.bf16_tail_layers)
        speed_only &= not (settings.nvfp4 and settings.nvfp4.in_bf16)
        default = f"the default for {precision.name}"
        who = settings.reason(default, *KEPT)
        choices["kept in BF16"] = Choice(kept, f"{who}; {SPEED_ONLY}" if speed_only else who)
    if settings.nvfp4 and (how := nvfp4_recipe.differs(settings.nvfp4.facts())):
        choices["NVFP4 recipe"] = Choice(how, _why_less(settings))
    elif settings.late_switch:
        choices["late switch"] = choice(settings.switch, OF_RUN, "switch")
    if settings.engine_switches:
        choices["Transformer Engine"] = Choice(" ".join(settings.engine_switches), "set in the environment")
    batch = f"{settings.global_batch_size} x {settings.sequence_length} tokens, micro batches of"
    choices |= {
        "iterations": choice(settings.train_iters, f"{model.name}'s default", "train_iters"),
        "batch": choice(f"{batch} {settings.micro_batch_size}", f"{model.name}'s default", *BATCH),
        "data": choice(settings.data, f"{model.name}'s default", "data"),
    }
    choices |= {name: Choice(value, reason) for name, value, reason in _changes(settings, processes)}
    if not settings.trains:
        del choices["iterations"]
    if settings.weights:
        tuned = f": {settings.finetune}" if settings.finetune else ""
        choices["weights"] = Choice(settings.weights, f"asked for, to begin with{tuned}")
    if settings.resume:
        done = {True: "continues it", False: "exports it" if settings.export else "evaluates it"}
        of = f"{settings.resume.name}, iteration {settings.iteration}"
        choices["checkpoint"] = Choice(of, f"asked for: {done[settings.trains]}")
    if settings.save:
        default = "own data on a GPU: at the end (SAVE=0: never)"
        choices["checkpoints"] = choice(f"every {settings.save} iterations", default, "save")
    return Plan(settings, place, processes, choices)


def _why_less(settings: Settings) -> str:
    """Who said that the NVFP4 recipe is not whole."""
    if settings.emulate == "reference":
        return "which that quantizer does not have"
    changed, short, stands_for = settings.nvfp4.changed(), nvfp4_recipe.short_forms(), nvfp4_recipe.in_environment()
    if all(stands_for.get(word) == value for word, value in changed.items()):
        return f"asked for: {' '.join(short[word] for word in changed)}"
    return settings.reason(OF_RUN, "nvfp4", "switch")


def _changes(settings: Settings, processes: int) -> Iterator[tuple[str, Any, str]]:
    """How the model is split, and what the user changes in the config: name, value, reason."""
    split = {
        "tensor": settings.tensor_parallel,
        "pipeline": settings.pipeline_parallel,
        "context": settings.context_parallel,
    }
    if processes > 1:
        theirs = settings.model.recipe_context_parallel
        whole = f"; sequences stay whole, where the recipe splits them by {theirs}: {NO_CONTEXT_PARALLEL}"
        default = f"of {processes} processes{whole if theirs > 1 == settings.context_parallel else ''}"
        yield "split", split, settings.why.get("split", default)
    if settings.profile:
        who = settings.reason(ASKED, "profile")
        yield "profiled", f"the last {settings.profile} iterations", f"{who}; their step times tell nothing"
    if settings.sensitivity:
        who = settings.reason(ASKED, "sensitivity")
        yield "measured", f"the last {settings.sensitivity} iterations", f"{who}; their step times tell nothing"
    if settings.no_probe:
        yield "probe", "none", "asked for; the GPU's own kernels are not tried first, and the record says so"
    if settings.tuned:
        yield "tuned", "CUDA graphs, no NaN checks", "asked for; compares with tuned runs only"
    if settings.config:
        said = f"its edited fields; {settings.ignored() or 'flags given beside it win'}"
        yield "config file", settings.config.path, said
    if settings.plugin:
        yield "plugin", settings.plugin, f"defines {', '.join(plugin_file.inspect(settings.plugin))}"
    if settings.overrides:
        yield "overrides", " ".join(settings.changes), settings.reason(ASKED, "overrides")


def _state(file: Path) -> list[int]:
    state = file.stat()
    return [state.st_size, state.st_mtime_ns]


def git_commit() -> str | None:
    """The project's commit, with "-dirty" where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=10).stdout.decode().strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def show(plan: Plan, folder: Path, *, margin: str = "  ") -> None:
    """Print the plan: a line a choice, value then reason."""
    relative = folder.relative_to(PROJECT) if folder.is_relative_to(PROJECT) else folder
    show_choices({**plan.choices, "run folder": Choice(relative, "")}, margin=margin)
