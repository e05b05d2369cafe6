"""The command line of a training: its flags, and what its config file and the environment put below them."""

from __future__ import annotations

import argparse
import difflib
import functools
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pretraining.errors import UsageError
from pretraining.inputs import finetuning
from pretraining.record import run_folder
from pretraining.request import config_file, overrides
from pretraining.request.models import DEFAULT_ON_CPU, DEFAULT_ON_GPU, MOCK, MODELS, PYTHON_STDLIB
from pretraining.request.overrides import flag_of
from pretraining.request.precisions import EMULATORS, PRECISIONS, switch_word
from pretraining.request.recipe import nvfp4_recipe

PROJECT = Path(__file__).resolve().parents[3]
RUNS = "nemo_experiments"
SEED = 1234
# who says a setting
ASKED, FILED, OF_RUN = "asked for", "as in the config file", "as in the run that it begins with"
OF_TARGET = "this target's default"
SAYERS = (ASKED, FILED, OF_RUN, OF_TARGET)  # of several settings in one line the first counts

_SECRET = re.compile(
    r"(?<=://)[^/\s@:]*:[^/\s@]+(?=@)"  # in a URL
    r"|(?<=api_key=)\S+|(?<=password=)\S+|(?<=secret=)\S+"  # of a field that is called so
    r"|\b(?:hf_|gh[opsu]_|sk-)[A-Za-z0-9]{30,}|\b(?:github_pat_|glpat-)[\w-]{20,}"  # as services write them
)

# Sizes that are a model's own by default.
_SIZES = {
    "train_iters": "iterations in all",
    "warmup_iters": "learning-rate warm-up",
    "global_batch_size": "sequences a step",
    "micro_batch_size": "sequences a forward pass",
    "sequence_length": "tokens a sequence",
    "tensor_parallel": "processes that split each layer",
    "pipeline_parallel": "processes that split the layers",
}
# What belongs to a precision, or to a model, and is no longer meant where another is asked for.
_OF_THE_PRECISION = ("precision", "bf16_head_layers", "bf16_tail_layers", "emulate", "nvfp4", "switch")
_OF_THE_MODEL = ("num_layers", "bf16_tail_layers", "tensor_parallel", "pipeline_parallel")


def refuse_secrets(words: Iterable[str]) -> None:
    """Raise UsageError where one holds a secret: they stand in the plan, and everybody sees arguments."""
    for word in words:
        if found := _SECRET.search(word):
            of = f"{word[: found.start()]}..." if found.start() else "an argument"
            raise UsageError(
                f"{of} holds a password or a token, and would be written into the run folder: give it in the "
                "environment (HF_TOKEN, WANDB_API_KEY, MLFLOW_TRACKING_USERNAME and _PASSWORD)"
            )


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> Any:
        """Take `section.field=value` wherever it stands.

        argparse allows its positional arguments in one place, and gives one to a flag before it that may have a value.
        """
        words = list(sys.argv[1:] if args is None else args)
        refuse_secrets(words)
        for number, (flag, after) in enumerate(itertools.pairwise(words)):
            action = self._option_string_actions.get(flag)
            if action and action.nargs == "?" and overrides.looks_like_one(after):
                words[number] = f"{flag}={action.const}"
        known, rest = self.parse_known_args(words, namespace)
        for names in (getattr(known, action.dest) or [] for action in self._actions if action.nargs == "+"):
            rest[:0] = filter(overrides.is_one, names)
            names[:] = itertools.filterfalse(overrides.is_one, names)
        overrides.check_whole(rest)
        known.overrides = [word for word in rest if overrides.looks_like_one(word)] or None
        if unknown := [word for word in rest if not overrides.looks_like_one(word)]:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        if re.search(r"arguments: [a-z_]+\.\w", message):
            raise UsageError(f"{message}; an override is section.field=value, without spaces around =")
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{message}; {hint}`{self.prog} --help` lists the flags")


def parser(prog: str) -> argparse.ArgumentParser:
    """The training script's flags. It raises UsageError where argparse would exit."""
    flags = _Parser(
        prog=prog,
        description="Pretrain a Llama with Megatron-Bridge in NVFP4 or BF16.",
        allow_abbrev=False,
        usage="%(prog)s [flags] [section.field=value ...]",
        epilog="section.field=value changes a field of Megatron-Bridge's config, as in optimizer.lr=1e-4",
    )
    add, count = flags.add_argument, functools.partial(flags.add_argument, type=int, metavar="N")
    add("--model", help=f"{', '.join(MODELS)} (default {DEFAULT_ON_GPU} on a GPU, {DEFAULT_ON_CPU} without)")
    add("--precision", help=f"{', '.join(PRECISIONS)} (default nvfp4)")
    add("--disable-fp4", action="store_true", help="the same as --precision bf16")
    count("--bf16-tail-layers", help="last layers kept in BF16 (default: an eighth for nvfp4)")
    count("--bf16-head-layers", help="first layers kept in BF16 (default 0 for nvfp4)")
    add(
        "--emulate",
        nargs="?",
        const=EMULATORS[0],
        choices=EMULATORS,
        help="NVFP4 without FP4 tensor cores: its losses, not its speed; reference: Transformer Engine's, slow",
    )
    add("--nvfp4", metavar="WORDS", help=f"less than its whole recipe: {nvfp4_recipe.HELP}")
    add(
        "--switch",
        metavar="AT[:TO]",
        help="late switch to a higher precision, as 0.82, 900, 0.82:fp8 or 0.82:forward (BF16 forward alone); never",
    )
    add("--tuned", action="store_true", help="on a GPU: CUDA graphs and fewer checks")
    add("--no-probe", action="store_true", help="train with a GPU's own FP8 or FP4 whatever it computes; recorded")
    count("--num-layers", help="cut or grow the model, for benchmarks (default by model)")
    for name, what in _SIZES.items():
        usual = getattr(MODELS[DEFAULT_ON_GPU], name)
        count(flag_of(name), help=f"{what} (default by model; 8B models {usual})")
    count("--context-parallel", help="processes that split a sequence (default 1; NVFP4: no other)")
    add(
        "--data",
        help=f"{MOCK}, {PYTHON_STDLIB}, or .bin/.idx prefixes: P, '0.7 P 0.3 Q', 'train=P valid=Q' (default by model)",
    )
    count("--seed", help=f"of weights, data order and stochastic rounding (default {SEED})")
    count("--save", help="checkpoint every N iterations and at the end; 0: never (own data on a GPU: at the end)")
    add("--resume", type=Path, metavar="RUN", help="continue from the last checkpoint of this run folder")
    count("--iteration", help="from its checkpoint of iteration N and not from the last")
    add("--from", dest="weights", metavar="WEIGHTS", help="begin with Hugging Face's: hf:NAME or a local folder")
    add("--finetune", metavar="HOW", help=f"fine-tune on instructions: {', '.join(finetuning.SCHEMES)}; wants --from")
    add("--tokenizer", help="of the instructions (default: that of --from)")
    add("--evaluate", action="store_true", help="train nothing: the validation loss of --resume, in either precision")
    add("--export", type=Path, metavar="DIR", help="train nothing: write --resume's weights as a Hugging Face folder")
    add("--run-dir", type=Path, metavar="DIR", help=f"the run folder (default: a new one in {RUNS}/)")
    add("--config", type=Path, metavar="FILE", help="fields of a YAML file, such as a run's config.yaml")
    add("--plugin", type=Path, metavar="FILE", help="Python code: configure(config), callbacks, forward_step, loss")
    add("--cache-dir", type=Path, metavar="DIR", default=PROJECT / ".cache", help="text and index cache")
    count("--profile", help="record the last N iterations for a trace viewer; no measurement")
    count("--sensitivity", help="measure NVFP4's rounding in the last N iterations, layer by layer")
    add("--tensorboard", action="store_true", help="also write TensorBoard events, into the run folder")
    add("--wandb-project", metavar="NAME", help="also log to W&B, offline in the run folder unless WANDB_MODE is set")
    add("--mlflow-experiment", metavar="NAME", help="also log to MLflow, in the run folder or MLFLOW_TRACKING_URI")
    return flags


def fill_in(args: argparse.Namespace, who: str, **values: Any) -> None:
    """Give the settings that nobody asked for these values, in place; `who`, one of SAYERS, says them then."""
    new = {name: value for name, value in values.items() if value is not None and getattr(args, name) is None}
    vars(args).update(new, filled_in={**_filled_in(args), **dict.fromkeys(new, who)})


def _filled_in(args: argparse.Namespace) -> dict[str, str]:
    return getattr(args, "filled_in", {})


def merged(args: argparse.Namespace) -> argparse.Namespace:
    """All that was asked for: the command line and its overrides, below them its config file.

    Of the NVFP4 recipe word by word: short forms in the environment go before the file and behind --nvfp4. Its word
    switch is --switch.

    Returns:
        The arguments, in which `precision` stands for --disable-fp4 too, `nvfp4` is words and their values, `overrides`
        fields and their values. Beside them `file` is the config file, read, `left` what is not taken from it, `why`
        who of SAYERS said each setting, and `trains` whether it is to train.

    Raises:
        UsageError: a setting with two values, an override of what the playbook decides, or no config file.
    """
    given, changes = overrides.settings_among(overrides.parse(args.overrides or ()))
    filled_in = {name: who for name, who in _filled_in(args).items() if name not in given}
    for name, value in given.items():
        present = getattr(args, name)
        if present not in (None, value) and name not in _filled_in(args):
            raise UsageError(
                f"{flag_of(name)} {present} and an override that says {value} are one setting with two values; drop one"
            )
    recipe = nvfp4_recipe.in_environment() | nvfp4_recipe.words_in(args.nvfp4 or "")
    above = {**vars(args), **given, "precision": asked_precision(args)}
    above |= {"nvfp4": recipe or None, "switch": _one_switch(args.switch, recipe), "overrides": changes or None}
    above = {name: value for name, value in above.items() if value is not None and value is not False}
    file = config_file.read(args.config) if args.config else None
    below = _of_the_file(file) if file else _model_of_the_run(args)
    for name, theirs in (("precision", _OF_THE_PRECISION), ("model", _OF_THE_MODEL)):
        if below.get(name) is not None and above.get(name, below[name]) != below[name]:
            below |= dict.fromkeys(theirs)
    whole = {**vars(args), **below, **above}
    whole["nvfp4"] = (below.get("nvfp4") or {}) | recipe | ({"switch": whole["switch"]} if whole["switch"] else {})
    whole["overrides"] = (below.get("overrides") or {}) | changes
    why = {name: FILED if file else OF_RUN for name, value in below.items() if value not in (None, {})}
    why |= dict.fromkeys(above, ASKED) | filled_in
    trains = not args.evaluate and args.export is None
    return argparse.Namespace(**{"left": {}, **whole, "file": file, "why": why, "trains": trains})


def _one_switch(given: str | None, recipe: Mapping[str, str]) -> str | None:
    """The late switch of --switch and --nvfp4, which are one setting. Raises UsageError where they differ."""
    word = recipe.get("switch")
    switch = switch_word(given) if given is not None else word
    if word not in (None, switch):
        raise UsageError(f"--switch {given} and switch={word} of --nvfp4 are one setting with two values; drop one")
    return switch


def asked_precision(args: argparse.Namespace) -> str | None:
    """The name that a command line gives, None where it gives none. Raises UsageError for two different ones."""
    if not args.disable_fp4:
        return args.precision
    if args.precision not in (None, "bf16"):
        raise UsageError(f"--disable-fp4 means --precision bf16, but --precision {args.precision} was given; drop one")
    return "bf16"


def words_of(file: config_file.ConfigFile, *more: str) -> argparse.Namespace:
    """The arguments of a config file, as far as it may give them, and `more` after them; `left` are the others."""
    flags = parser(str(file.path))
    given, here = (vars(flags.parse_args(words)) for words in ([*(file.arguments or ()), *more], more))
    taken = {name: value if name in config_file.OF_THE_WORK else here[name] for name, value in given.items()}
    return argparse.Namespace(**taken, left={name: given[name] for name in given if given[name] != taken[name]})


def _of_the_file(file: config_file.ConfigFile) -> dict[str, Any]:
    """The settings that a config file stands for, by argument; parsed as `merged` gives them."""
    words = words_of(file)
    given, changes = overrides.settings_among(overrides.parse(words.overrides or ()), str(file.path))
    arguments = {**vars(words), **given}
    recipe = nvfp4_recipe.words_in(words.nvfp4) if words.nvfp4 else {}
    return {
        **arguments,
        **file.edited_settings(arguments),
        "precision": asked_precision(words),
        "nvfp4": recipe or None,
        "switch": _one_switch(words.switch, recipe),
        "overrides": changes,
    }


def _model_of_the_run(args: argparse.Namespace) -> dict[str, Any]:
    """What was changed of the model that goes on, is evaluated or exported, as its run's config file says it."""
    if args.resume is None or not (args.resume / run_folder.CONFIG).is_file():
        return {}
    words = words_of(config_file.read(args.resume / run_folder.CONFIG))
    changes = overrides.parse(words.overrides or ())
    changed = {name: value for name, value in changes.items() if name.startswith("model.")}
    return {"num_layers": words.num_layers, "overrides": changed}
