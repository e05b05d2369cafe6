"""`config.yaml`: Megatron-Bridge's config as a file, saved by every run and taken back by `--config`.

A saved one holds all fields, as they are handed to `pretrain()` before the CPU runtime or Megatron itself changes any,
and under `playbook` the arguments that chose the recipe. Taking it back means: build the config of those arguments
again, see which fields of the file differ from it (somebody edited them), and treat these as overrides. So what the
playbook derives from its settings follows them when another flag is given beside the file. One written by hand holds
only the fields to change.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining.errors import UsageError
from pretraining.inputs import contents, plugin_file
from pretraining.record import schema
from pretraining.request import overrides

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer

PLAYBOOK = "playbook"
ARGUMENTS = "arguments"
VERSION = "megatron-bridge"
# What the arguments in a file may say: what the work is. Not where it is written, what code runs in it and whom it
# tells: a file may be anybody's.
OF_THE_WORK = {
    *("model", "num_layers", "weights", "finetune", "tokenizer", "data", "seed", "save", "overrides", "tuned"),
    *("precision", "disable_fp4", "bf16_head_layers", "bf16_tail_layers", "emulate", "nvfp4", "switch"),
    *("train_iters", "warmup_iters", "global_batch_size", "micro_batch_size", "seq_length"),
    *("tensor_parallel", "pipeline_parallel", "context_parallel"),
}
_LARGEST = 100_000
# What the names of objects in a saved config begin with.
_OBJECTS = ("megatron.", "torch.", "signal.Signals", "transformers.", f"{plugin_file.MODULE}.")


@dataclass(frozen=True)
class ConfigFile:
    """What such a file holds."""

    path: Path
    arguments: list[str] | None  # the training script's, or None in a file written by hand
    version: str | None  # of the Megatron-Bridge that saved it
    tree: dict[str, Any]  # sections of fields

    def edited_settings(self, arguments: dict[str, Any]) -> dict[str, int]:
        """The settings that the file's fields give, other than those that its own arguments, by name, gave."""
        leaves = {name: value for name, value in flat(self.tree).items() if name in overrides.SETTINGS}
        if self.arguments is not None:
            leaves = {name: value for name, value in leaves.items() if arguments.get(overrides.SETTINGS[name]) != value}
        return overrides.settings_among(leaves, str(self.path))[0]


def read(path: Path) -> ConfigFile:
    """Read a config file. Raises UsageError where it is not there, or not a mapping of sections."""
    import yaml

    if wrong := contents.pointer(path):
        raise UsageError(f"--config {wrong}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        _check_depth(path, text)
        tree = yaml.load(text, _loader())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise UsageError(f"--config {path}{line} is not YAML: {getattr(error, 'problem', None) or error}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise UsageError(f"--config {path} has a value that Python does not hold: {error}") from error
    _check_not_foreign(path, tree)
    wrong = [str(name) for name, section in tree.items() if not isinstance(section, dict | None) and name[:1] != "_"] \
        if isinstance(tree, dict) else ["the whole"]  # fmt: skip
    if wrong:
        raise UsageError(
            f"--config {path}: {wrong[0]} is no section of fields; write as in a run's config.yaml, "
            "`optimizer:` and below it, indented, `lr: 1.0e-4`"
        )
    _check(path, tree)
    own = tree.pop(PLAYBOOK, None) or {}
    tree.pop("_target_", None)
    tree = {name: section for name, section in tree.items() if section is not None}
    arguments = own.get(ARGUMENTS)
    if not isinstance(arguments, list | None):
        raise UsageError(
            f"--config {path}: {ARGUMENTS} of {PLAYBOOK} is {arguments!r} and no list of words, as every saved "
            "config.yaml has it; a file written by hand has none"
        )
    if arguments is not None:
        arguments = [str(each) for each in arguments if each not in ("-h", "--help")]
    return ConfigFile(path.absolute(), arguments, own.get(VERSION), tree)


def _check_depth(path: Path, text: str) -> None:
    """Raise UsageError for collections in collections beyond what a config has: libyaml's own loader would crash."""
    import yaml

    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > schema.DEEPEST:
            raise UsageError(
                f"--config {path}, line {event.start_mark.line + 1}: nested more than {schema.DEEPEST} deep"
            )


def _loader() -> Any:
    """PyYAML's loader, to which a name that stands twice in a section is an error and not the last of both."""
    import yaml

    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc, valid-type]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value} stands there twice", key.start_mark
                    )
                seen.add(key.value if isinstance(key.value, str) else id(key))
            return super().construct_mapping(node, deep)

    return Loader


def _check_not_foreign(path: Path, tree: Any) -> None:
    """Raise UsageError for the config that Megatron-Bridge itself saves beside a checkpoint: all fields, of its run."""
    if not isinstance(tree, dict) or PLAYBOOK in tree:
        return
    objects = [name for name, section in tree.items() if isinstance(section, dict) and "_target_" in section]
    if str(tree.get("_target_")).endswith(".ConfigContainer") or {"checkpoint", "train", "model"} <= set(objects):
        near = (each / "config.yaml" for each in path.absolute().parents[:3])
        instead = next((each for each in near if each.is_file() and each != path.absolute()), "RUN/config.yaml")
        raise UsageError(
            f"--config {path} is Megatron-Bridge's own run_config.yaml, a whole config with the places of its run: "
            f"take the run's config.yaml (CONFIG={instead}), or a file with only the fields to change"
        )


def _check(path: Path, tree: Any) -> None:
    """Raise UsageError where a file is far larger than any, by its aliases, or where an object in it is none of ours.

    `fields.py` looks at an object again, before it makes one.
    """
    left = [tree]
    for _ in range(_LARGEST):
        if not left:
            return
        each = left.pop()
        if isinstance(each, dict) and not str(each.get("_target_", _OBJECTS[0])).startswith(_OBJECTS):
            raise UsageError(
                f"--config {path}: it names {each['_target_']}, which is not of Megatron or torch: a config sets "
                "fields and calls nothing; code of your own goes into a --plugin"
            )
        left += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
    raise UsageError(f"--config {path} has more than {_LARGEST} values, and a run's config.yaml some 600")


def digest(path: Path) -> str:
    """Twelve hexadecimal digits that name a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def text_of(config: ConfigContainer, arguments: list[str], version: str) -> str:
    """The file for a config; `arguments` are the training script's, `version` is Megatron-Bridge's."""
    import yaml

    own = {PLAYBOOK: {ARGUMENTS: arguments, VERSION: version}}
    return f"{yaml.safe_dump(own, width=120, default_flow_style=None)}{_dumped(config)}"


def tree_of(config: ConfigContainer) -> dict[str, Any]:
    """A config as a saved file would give it."""
    import yaml

    tree = yaml.load(_dumped(config), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    tree.pop("_target_", None)
    return tree


def _dumped(config: ConfigContainer) -> str:
    import yaml
    from megatron.bridge.utils.yaml_utils import safe_yaml_representers

    with safe_yaml_representers():
        return yaml.safe_dump(config.to_dict(), default_flow_style=False)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields by their dotted names."""
    leaves = {}
    for name, value in tree.items():
        if name == "_target_":
            continue
        if _is_section(value):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + str(name)] = value
    return leaves


def differences(tree: dict[str, Any], base: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of `tree` that are not as in `base`, by their dotted names.

    Raises:
        UsageError: a section of another class, which no field can mend.
    """
    found: dict[str, Any] = {}
    for name, value in tree.items():
        whole, known = prefix + str(name), base.get(name)
        if name == "_target_":
            if known is not None and known != value:
                raise UsageError(
                    f"the file's {prefix.rstrip('.')} is a {value}, and here it is a {known}: it was saved "
                    "with another plugin, model or Megatron-Bridge"
                )
        elif _is_section(value) and _is_section(known):
            found |= differences(value, known, f"{whole}.")
        elif name in base and known == value:
            continue
        elif _is_section(value) and "_target_" not in value:
            found |= flat(value, f"{whole}.")
        else:
            found[whole] = value
    return found


def _is_section(value: Any) -> bool:
    """Whether it is a mapping of fields, and not the form of an object: a function, a type, a number format."""
    return isinstance(value, dict) and bool(value) and not value.keys() & {"_call_", "_partial_", "_args_"}
