"""`section.field=value` on the command line: its grammar, and which fields are settings of this playbook.

A field that a flag also sets is that flag, written otherwise: `train.train_iters=20` is `--train-iters 20`, in the
plan, the request and the record. A field that the playbook must decide is refused with the flag to use. Everything
else goes to Megatron-Bridge's config as it is, see `fields.py`. No torch in this module: the host reads the same table.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from pretraining.errors import UsageError

# A section alone takes an object as a whole, as a config file holds it.
_FORM = re.compile(r"([A-Za-z_]\w*(?:(?:\.\w+)+|(?==\{)))=(.*)", re.DOTALL)

# field of the config: argument of flags.parser
SETTINGS = {
    "train.train_iters": "train_iters",
    "train.global_batch_size": "global_batch_size",
    "train.micro_batch_size": "micro_batch_size",
    "scheduler.lr_warmup_iters": "warmup_iters",
    "model.seq_length": "seq_length",
    "dataset.seq_length": "seq_length",
    "dataset.sequence_length": "seq_length",
    "model.num_layers": "num_layers",
    "model.tensor_model_parallel_size": "tensor_parallel",
    "model.pipeline_model_parallel_size": "pipeline_parallel",
    "model.context_parallel_size": "context_parallel",
    "rng.seed": "seed",
    "dataset.random_seed": "seed",
    "mixed_precision.num_layers_at_start_in_bf16": "bf16_head_layers",
    "mixed_precision.num_layers_at_end_in_bf16": "bf16_tail_layers",
}

_PRECISION = "--precision decides it, and --bf16-head-layers and --bf16-tail-layers"
# field: what to use in its place
DECIDED = {
    **{f"mixed_precision.{name}": _PRECISION for name in ("bf16", "fp16", "fp8", "fp8_recipe", "fp4", "fp4_recipe")},
    "mixed_precision.first_last_layers_bf16": _PRECISION,
    "model.vocab_size": "it is the model's own: a plugin can change it, together with the data's",
    "tokenizer.vocab_size": "it is the model's own: a plugin can change it, together with the data's",
    "dataset.data_path": "Megatron-Bridge reads no such field: use --data",
    "dataset.blend": "use --data",
    "dataset.blend_per_split": "use --data",
    "dataset.path_to_cache": "use --cache-dir",
    "checkpoint.save": "use --save N: checkpoints go into the run folder",
    "checkpoint.save_interval": "use --save N",
    "checkpoint.load": "use --resume RUN",
    "checkpoint.ckpt_step": "use --resume RUN and --iteration N (ITERATION=)",
}
# Megatron divides by these.
_FROM_ONE = {"logger.log_interval", "logger.tensorboard_log_interval"}
# What a saved config holds only because of where and when it was saved.
OF_THE_PLACE = {
    *(name for name in DECIDED if not name.startswith("mixed_precision.")),
    "dist.local_rank",
    "model.hf_model_id",
}
# What follows from the kind of the data, where a saved config is run on another.
OF_THE_DATA = {"dataset.split", "train.eval_iters", "validation.eval_iters"}


def is_one(word: str) -> bool:
    """Whether a command-line word has the form of an override."""
    return bool(_FORM.fullmatch(word))


def looks_like_one(word: str) -> bool:
    """Whether a command-line word is meant as an override: so may be a wrong one, as ~model.x is of Hydra's grammar."""
    return not word.startswith("-") and ("=" in word or bool(re.fullmatch(r"~[\w.]+", word)))


class Word(str):
    """A value as it was written on the command line, in Hydra's grammar; see `megatron/grammar.py`."""


def check_whole(words: list[str]) -> None:
    """Raise UsageError where a blank has split a value, as the one in `model.x=[1, 2]` does without quotes."""
    for number, word in enumerate(words):
        whole = word
        for more in words[number + 1 :] if is_one(word) else ():
            is_open = sum(map(whole.count, "[{(")) > sum(map(whole.count, "]})"))
            if not is_open and (looks_like_one(more) or more.startswith("-")):
                break
            whole += f" {more}"
        if whole != word:
            quoted = shlex.quote(whole)
            twice = shlex.quote(quoted) if set(whole) & set("'\"$`\\") else f'"{quoted}"'
            raise UsageError(
                f"{whole[len(word) + 1 :]} stands alone: if it belongs to {word}, a blank splits the value; quote "
                f"it, as {quoted}, and for make as ARGS={twice}"
            )


def parse(words: Iterable[str]) -> dict[str, Word]:
    """Field to value, as written; of a field given twice the last. Raises UsageError for a word of another form."""
    found = {}
    for word in words:
        matched = _FORM.fullmatch(word)
        if not matched:
            raise UsageError(
                f"{word!r} is not an override: write section.field=value, as in optimizer.lr=1e-4 "
                "(without + or ~: no field can be added or removed)"
            )
        found[matched[1]] = Word(matched[2])
    return found


def settings_among(given: Mapping[str, Any], origin: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """Split overrides into what flags set, by the flag's argument name, and the rest, by field.

    Args:
        origin: the file they stand in, for messages; "" for the command line.

    Raises:
        UsageError: a field that the playbook decides, or two fields of one setting that differ.
    """
    flags: dict[str, Any] = {}
    named: dict[str, str] = {}
    rest = {}
    where = f"{origin}: " if origin else ""
    for name, value in given.items():
        if name in DECIDED:
            raise UsageError(f"{where}{name} cannot be overridden: {DECIDED[name]}")
        if name in _FROM_ONE and _integer(where + name, value) < 1:
            raise UsageError(f"{where}{name}={value}: it is a number of iterations, at least 1")
        if name not in SETTINGS:
            rest[name] = value
            continue
        argument = SETTINGS[name]
        number = _integer(where + name, value)
        if flags.setdefault(argument, number) != number:
            raise UsageError(
                f"{where}{named[argument]}={flags[argument]} and {name}={number} are one setting with two values, "
                f"{flag_of(argument)}; drop one"
            )
        named[argument] = name
    return flags, rest


def _integer(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool) or (isinstance(value, float) and value != number):
        raise UsageError(f"{name}={value}: {value!r} is not a whole number")
    return number


def flag_of(name: str) -> str:
    """The flag of a setting or of an argument."""
    return f"--{ {'sequence_length': 'seq_length', 'weights': 'from'}.get(name, name).replace('_', '-') }"
