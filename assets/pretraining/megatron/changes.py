"""What the user changes in the config that the playbook built: the plugin, then the config file, then the overrides."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pretraining import packages
from pretraining.data import builtin_text
from pretraining.errors import UsageError
from pretraining.megatron import bridge_config, fields
from pretraining.megatron.plugin import Plugin
from pretraining.request import config_file, overrides, settings
from pretraining.request import flags as training_flags

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer

    from pretraining.request.settings import Settings


class Change(NamedTuple):
    """Of one field: the playbook's value and the user's."""

    before: Any
    value: Any


CPU = "the CPU runtime"


def configured(
    chosen: Settings, run_dir: Path, plugin: Plugin | None, builtin: builtin_text.Text | None
) -> tuple[ConfigContainer, dict[str, Change]]:
    """The config to train with, changed as the user asked for, and each field that the file or an override set.

    Raises UsageError, from the plugin or naming the field.
    """

    def build(wanted: Settings) -> ConfigContainer:
        config = bridge_config.build_config(wanted, run_dir, builtin)
        return plugin.configure(config) if plugin else config

    config = build(chosen)
    changed = {}
    if chosen.config is not None:
        file = chosen.config
        saved_with = settings.of_the_file_alone(file, data=chosen.data, cache_dir=chosen.cache_dir)
        base = build(saved_with) if saved_with else config
        skipped = overrides.OF_THE_PLACE if saved_with else set()
        if training_flags.words_of(file).data not in (None, chosen.data):
            skipped = skipped | overrides.OF_THE_DATA
        for name, value in _edited(file, base, saved_with, skipped).items():
            with _naming(file):
                changed[name] = _change(config, name, value)
    for name, value in chosen.overrides.items():
        changed[name] = _change(config, name, value)
    bridge_config.follow_changes(config)
    return config, changed


def _change(config: ConfigContainer, name: str, value: Any) -> Change:
    before = fields.read_field(config, name)
    return Change(before, fields.set_field(config, name, value))


@contextlib.contextmanager
def _naming(file: config_file.ConfigFile) -> Iterator[None]:
    """Within: an error also says which file it is about, and whether another Megatron-Bridge saved it."""
    found = packages.installed().get("megatron-bridge")
    other = f" (saved by Megatron-Bridge {file.version}, and this is {found})" if file.version != found else ""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"--config {file.path}{other if file.version else ''}: {error}") from error


def _edited(
    file: config_file.ConfigFile, base: ConfigContainer, saved_with: Settings | None, skipped: set[str]
) -> dict[str, Any]:
    """The fields of a file that are not as in `base`, but for the `skipped`: in a saved one, those somebody edited.

    `base` is the config of `saved_with`, the settings of the run that saved it; of a file written by hand, the one to
    change.
    """
    if saved_with is not None:
        for name, value in saved_with.overrides.items():
            fields.set_field(base, name, value)
        bridge_config.follow_changes(base)
    with _naming(file):
        different = config_file.differences(file.tree, config_file.tree_of(base))
        different = {name: value for name, value in different.items() if name not in skipped}
        return overrides.settings_among(different)[1]


def check_kept(config: ConfigContainer, changed: dict[str, Change], by: str) -> None:
    """Raise UsageError where an override has been undone since, `by` whom: it would be a silent nothing."""
    for name, change in changed.items():
        found = fields.read_field(config, name)
        if found != change.value and (found == change.before or by == CPU):
            raise UsageError(f"{name}={fields.as_override(change.value)} has no effect: {by} sets it; leave it out")


def as_text(config: ConfigContainer, chosen: Settings, changed: dict[str, Change]) -> str:
    """The run's `config.yaml`: the config and the arguments that give it again, with every change as an override."""
    words = {name: overrides.Word(fields.as_override(change.value)) for name, change in sorted(changed.items())}
    not_theirs = ("config", "run_dir", "resume", "cache_dir", "profile", "sensitivity", "no_probe")
    portable = replace(chosen, overrides=words, **dict.fromkeys(not_theirs))
    return config_file.text_of(config, portable.as_flags(), packages.installed()["megatron-bridge"])


def facts(chosen: Settings, changed: dict[str, Change]) -> dict[str, Any]:
    """The parity facts of the user's changes and of the tuned preset: nothing where there are none."""
    found = {
        "overrides": {name: fields.as_override(change.value) for name, change in sorted(changed.items())},
        "tuned": chosen.tuned,
        "plugin": chosen.plugin and config_file.digest(chosen.plugin),
    }
    return {name: value for name, value in found.items() if value}
