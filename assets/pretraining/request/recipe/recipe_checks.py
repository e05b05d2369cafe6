"""What a command line asks of the NVFP4 recipe and of a late switch, checked before anything heavy is imported."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from pretraining import packages
from pretraining.errors import UsageError
from pretraining.record import run_folder, schema
from pretraining.request import footprint
from pretraining.request.precisions import NEVER, LateSwitch
from pretraining.request.recipe import nvfp4_recipe
from pretraining.request.recipe.kept_in_bf16 import PROJECTIONS


def check_precision(words: str | None, *precisions: str) -> None:
    """Raise UsageError where a recipe was given, and none of these has one."""
    if words and "nvfp4" not in precisions:
        raise UsageError(f"--nvfp4 is nvfp4's recipe and does nothing for {' and '.join(precisions)}; leave it out")


def recipe(
    args: argparse.Namespace, emulator: str | None, layers: int, ends: tuple[int, int]
) -> nvfp4_recipe.Nvfp4Recipe | None:
    """How NVFP4 trains: as asked for, else as the run that is resumed did; None in another precision.

    Args:
        args: as in `checks`.
        ends: how many of the first and of the last layers are in BF16.

    Raises:
        UsageError: words that the emulator, the engine or the model does not know, or another recipe than the resumed
            run's.
    """
    if not args.precision.fp4:
        return None
    facts = _past_precision(args)
    past = nvfp4_recipe.Nvfp4Recipe.recorded(facts["ingredients"]) if "ingredients" in facts else None
    found = nvfp4_recipe.Nvfp4Recipe.of({**(past.words() if past else {}), **args.nvfp4})
    if emulator == "reference":
        if others := not_of_the_reference(found):
            raise UsageError(
                f"--emulate reference rounds to nearest and knows no other change of the recipe: leave "
                f"{' and '.join(f'{word}={found.changed()[word]}' for word in others)} out"
            )
        kept = {name: getattr(found, name) for name in ("switch", "in_bf16", "primary")}
        found = nvfp4_recipe.Nvfp4Recipe(stochastic=False, **kept)
    if found.chosen_by != nvfp4_recipe.Nvfp4Recipe.chosen_by and not found.four_over_six:
        raise UsageError(f"error={found.chosen_by} is how scale=4over6 chooses; write both, or leave it out")
    if found.in_bf16:
        if footprint.shape_of(args.model.hf_config).experts:
            raise UsageError(
                f"bf16={found.in_bf16} in --nvfp4: not every layer of {args.model.name} has {', '.join(PROJECTIONS)}; "
                "leave it out, or keep whole layers in BF16 (--bf16-head-layers, --bf16-tail-layers)"
            )
        kept = found.kept_in_bf16.of(layers, range(ends[0], layers - ends[1]))
        found = replace(found, in_bf16=str(kept))
    if args.on_gpu and not emulator and (why := not_native(found)):
        raise UsageError(why)
    # Where it switches may change before it has, see `late_switch`.
    if past and replace(past, switch=found.switch) != found and args.trains and not args.sensitivity:
        raise UsageError(
            f"--resume {args.resume} was trained with {nvfp4_recipe.as_text(past.words())}, and this asks for "
            f"{nvfp4_recipe.as_text(found.words())}: leave --nvfp4 and the like out, or begin anew"
        )
    return found


def _past_precision(args: argparse.Namespace) -> dict[str, Any]:
    """The record's facts of precision of the run that is resumed; {} where there is none, or it was in another.

    Raises:
        Damaged: its recipe is none.
    """
    known = args.resume and run_folder.holds_run(args.resume)
    facts = run_folder.read_facts(args.resume).precision if known else {}
    for name, value in facts.get("ingredients", {}).items():
        if name in nvfp4_recipe.TITLES and not nvfp4_recipe.is_spelled(name, value):
            found = f"precision.ingredients.{name} is {schema.shown(value)}, which no run is trained with"
            raise schema.Damaged(run_folder.there(args.resume / run_folder.ENVIRONMENT), found)
    return facts if facts.get("name") == args.precision.name else {}


def not_of_the_reference(found: nvfp4_recipe.Nvfp4Recipe) -> list[str]:
    """The words that Transformer Engine's reference quantizer does not know; it rounds to nearest, whatever is said."""
    knows = {"stochastic", "bf16", "primary"} | ({"switch"} if not found.switch.endswith(":forward") else set())
    return [word for word in found.changed() if word not in knows]


def not_native(found: nvfp4_recipe.Nvfp4Recipe) -> str:
    """What Transformer Engine's own kernels do not compute (read: 2.20), and what would; "" where they do."""
    if found.four_over_six in ("all", "activations") and found.rht:
        return (
            f"scale={found.words()['scale']}: Transformer Engine's kernels choose no scale of a tensor with a Hadamard "
            "transform; scale=4over6:weights works, or rht=off beside it, or --emulate (EMULATE=1)"
        )
    beside = {
        "rht=off": not found.rht,
        "bf16=proj": bool(found.kept_in_bf16) and "proj" in found.kept_in_bf16.everywhere,
        "scale=6 or 4over6:weights": found.four_over_six in ("", "weights"),
        "no switch of the forward pass": not found.switch.endswith(":forward"),
    }
    if found.activations and (missing := [words for words, are in beside.items() if not are]):
        return (  # Megatron-Core has proj's input quantized a second time, for the backward pass alone
            f"activations={found.activations}: Transformer Engine's kernels scale no tensor by row that has a Hadamard "
            "transform, a choice of scales, or no part in the forward pass, such as proj's second quantization: they "
            f"need {' and '.join(missing)} beside it; or --emulate (EMULATE=1)"
        )
    return ""


def check_split(found: nvfp4_recipe.Nvfp4Recipe | None, split: dict[str, int], *, native: bool) -> None:
    """Raise UsageError where processes share a tensor of which Transformer Engine's kernels take no part."""
    if native and found and found.activations and split["tensor_parallel"] > 1:
        raise UsageError(
            f"activations={found.activations}: Transformer Engine's kernels scale no row of an activation that is "
            f"split over {split['tensor_parallel']} processes: --tensor-parallel 1 works, or --emulate (EMULATE=1)"
        )


def later_engine(found: nvfp4_recipe.Nvfp4Recipe | None, switch: LateSwitch | None) -> dict[str, tuple[int, ...]]:
    """What not every Transformer Engine computes by its own kernels, and the release from which on it does."""
    since = {"scale": packages.FOUR_OVER_SIX, "activations": packages.ROW_SCALED}
    words = found.changed() if found else {}
    needed = {f"{word}={value}": since[word] for word, value in words.items() if word in since}
    return needed | ({f"--switch {switch}": packages.HYBRID} if switch and switch.to == "forward" else {})


def late_switch(
    args: argparse.Namespace, recipe: nvfp4_recipe.Nvfp4Recipe | None, iterations: int, past: int | None
) -> dict[str, Any]:
    """The settings of a late switch: `switch`, which of NVFP4 stands in its recipe, and `switches_at`.

    Of a run that trains nothing, it is where it was.

    Args:
        past: the iteration of the checkpoint that the run begins with.

    Raises:
        UsageError: there is nothing to switch from or to, the run ends before it, or the iterations up to that
            checkpoint were trained otherwise.
    """
    if not args.precision.quantized:
        if args.switch not in (None, NEVER):
            raise UsageError(
                f"--switch leads to a higher precision, and {args.precision.name} is the highest; leave it out"
            )
        return {"switch": None, "switches_at": None}
    of_past = _past_precision(args)
    said = of_past.get("ingredients", {}).get("switch") or NEVER
    word = (recipe.switch or NEVER) if recipe else args.switch or said
    switch = LateSwitch.of(word)
    if switch:
        _check_target(switch, args)
    before = of_past.get("switches_at")
    if not args.trains:
        at = before if switch else None
    else:
        at = switch.first(iterations) if switch else None
        if at is not None and at > iterations:
            raise UsageError(
                f"--switch {switch} comes after the last of {iterations} iterations; lower it, or train longer"
            )
        if past:
            _check_past(args, (before, said), (at, switch), past)
    return {"switch": None if recipe or word == said == NEVER else word, "switches_at": at}


def _check_target(switch: LateSwitch, args: argparse.Namespace) -> None:
    if args.precision.delayed:
        raise UsageError(
            f"--switch {switch}: delayed scaling keeps maxima over iterations, which a switch would break; --precision "
            "fp8 switches"
        )
    if switch.to == args.precision.name:
        raise UsageError(f"--switch {switch} leads from {switch.to} to {switch.to}; leave it out")
    if not args.on_gpu and switch.precision and not switch.precision.on_cpu:
        raise UsageError(f"--switch {switch}: {switch.to} needs {switch.precision.needs}, and no GPU was found")
    if args.tuned:
        raise UsageError(f"--tuned replays each iteration as it was first, and so cannot --switch {switch}; drop one")


def _check_past(
    args: argparse.Namespace, theirs: tuple[int | None, str], ours: tuple[int | None, LateSwitch | None], past: int
) -> None:
    """Raise UsageError where the resumed run has switched, up to iteration `past`, and this would have otherwise.

    `theirs`, `ours`: how many iterations come before the switch, and the switch.
    """
    (before, said), (at, switch) = theirs, ours
    then, now = (past if each is None else min(each, past) for each in (before, at))
    to = LateSwitch.read(said).to if then < past else None
    if then != now or (to and to != switch.to):
        raise UsageError(
            f"--resume {args.resume} trained {then} of its {past} iterations in {args.precision.name}"
            f"{f' and the others by {before}:{to}' if to else ''}, and --switch {switch or NEVER} says "
            f"otherwise: write --switch {f'{before}:{to}' if to else f'{past} or later'}"
        )
