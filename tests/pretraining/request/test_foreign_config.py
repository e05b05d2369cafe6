"""A config file that somebody sent sets fields and chooses the work; it runs, imports, writes and reports nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretraining.errors import UsageError
from pretraining.megatron import fields
from pretraining.request import config_file, settings
from pretraining.request import flags as training_flags

# A new flag goes here, or into config_file.OF_THE_WORK.
OF_THIS_CALL = {
    "no_probe",
    *("config", "plugin", "run_dir", "cache_dir", "resume", "iteration", "evaluate", "export", "profile"),
    "sensitivity",
    *("tensorboard", "wandb_project", "mlflow_experiment"),
}


def resolved(file: Path, *flags: str) -> settings.Settings:
    args = training_flags.parser("test").parse_args(["--config", str(file), *flags])
    return settings.resolve(args, on_gpu=False, processes=1)


def test_every_flag_is_of_the_work_or_of_the_call() -> None:
    flags = set(vars(training_flags.parser("test").parse_args([])))
    assert flags == OF_THIS_CALL | config_file.OF_THE_WORK
    assert not OF_THIS_CALL & config_file.OF_THE_WORK


@pytest.fixture
def received(tmp_path: Path) -> Path:
    (tmp_path / "plugin.py").write_text("raise SystemExit('executed')\ncallbacks = []\n")
    words = ["--model", "tiny", "--precision", "bf16", "--train-iters", "9", "--seed", "5", "optimizer.lr=0.5"]
    words += [
        "--plugin",
        str(tmp_path / "plugin.py"),
        "--run-dir",
        str(tmp_path / "there"),
        "--wandb-project",
        "theirs",
    ]
    words += ["--cache-dir", str(tmp_path / "cache"), "--tensorboard", "--config", "other.yaml", "--help"]
    file = tmp_path / "config.yaml"
    file.write_text(f"playbook: {{arguments: {words}}}\n")
    return file


def test_the_work_is_taken_and_nothing_else(received: Path) -> None:
    chosen = resolved(received)
    assert (chosen.model.name, chosen.precision.name, chosen.train_iters, chosen.seed) == ("tiny", "bf16", 9, 5)
    assert chosen.overrides == {"optimizer.lr": "0.5"}
    assert (chosen.plugin, chosen.run_dir, chosen.wandb_project, chosen.tensorboard) == (None, None, None, False)
    assert chosen.cache_dir == training_flags.PROJECT / ".cache"
    said = chosen.ignored()
    assert said.endswith("are ignored: give them here")
    assert {"--plugin", "--run-dir", "--wandb-project", "--tensorboard"} <= set(said.replace(",", "").split())


def test_what_is_given_here_is_not_called_ignored(received: Path) -> None:
    given = ("--plugin", str(received.parent / "plugin.py"), "--wandb-project", "mine", "--run-dir", "here")
    chosen = resolved(received, *given)
    assert chosen.plugin and chosen.wandb_project == "mine"
    assert "--plugin" not in chosen.ignored()


def test_a_file_without_arguments_has_nothing_to_ignore(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("optimizer: {lr: 0.5}")
    assert resolved(tmp_path / "c.yaml").ignored() == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!python/object/apply:os.system [touch called]", "is not YAML"),
        ("a: !!python/name:os.system ''", "is not YAML"),
        ("a: {f: {_target_: os.system, _args_: [touch called]}}", "it names os.system, which is not of Megatron"),
        ("_target_: subprocess.run", "it names subprocess.run"),
        ("a: {b: [{c: {_target_: builtins.eval, _call_: false}}]}", "it names builtins.eval"),
        ("a: {_target_: 5}", "it names 5"),
        ("a: {_target_: null}", "it names None"),
        ("a: {_target_: megatronic.x}", "it names megatronic.x"),
        ("a: &a {x: *a}", "more than 100000 values"),
        (
            "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}\n" for n in range(1, 40)),
            "more than 100000 values",
        ),
    ],
)
def test_a_file_that_would_call_something_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        config_file.read(tmp_path / "c.yaml")


def called(name: Any, *arguments: Any, **more: Any) -> dict[str, Any]:
    return {"_target_": name, "_args_": list(arguments), **more}


@pytest.mark.parametrize(
    "value",
    [
        called("os.system", "touch called"),
        called("torch.load", "x"),
        called("torch.hub.load", "x"),
        called("torch.nn.functional.torch.load", "x"),
        called("torch.nn.functional.warnings.warn", "x"),
        called("torch.nn.functional.silu", 1),
        called("torch.utils.cpp_extension.load", "x"),
        called("signal.raise_signal", 9),
        called("signal.Signals", called("os.getpid")),
        called("signal.Signals", 15, note="${oc.env:HOME}"),
        called("megatron", "x"),
        called("os.system", "x", _partial_=True),
        {"_target_": "os.system", "_call_": False},
        {"_target_": "torch.load", "_call_": False},
        "os.system",
    ],
)
def test_no_field_can_be_made_of_a_call(value: Any) -> None:
    with pytest.raises(ValueError):
        fields.convert(Callable if isinstance(value, str) else Any, value)


def test_values_of_a_config_are_taken() -> None:
    assert fields.convert(Callable, "torch.nn.functional.silu") is torch.nn.functional.silu


BRIDGES = {
    "whole": "_target_: megatron.bridge.training.config.ConfigContainer\ntrain: {train_iters: 5}\n",
    "without its head": "\n".join(
        f"{name}: {{_target_: megatron.bridge.training.config.{name.title()}Config}}"
        for name in ("checkpoint", "dataset", "model", "train")
    ),
}


@pytest.mark.parametrize("text", BRIDGES.values(), ids=BRIDGES)
def test_a_config_that_megatron_bridge_saved_is_told_at_once(tmp_path: Path, text: str) -> None:
    """As `checkpoints/iter_0000003/run_config.yaml`, below the run's own config.yaml."""
    file = tmp_path / "run" / "checkpoints" / "iter_0000003" / "run_config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    for instead in ("RUN/config.yaml", str(tmp_path / "run" / "config.yaml")):
        with pytest.raises(UsageError) as told:
            config_file.read(file)
        assert "is Megatron-Bridge's own run_config.yaml" in str(told.value) and f"(CONFIG={instead})" in str(
            told.value
        )
        (tmp_path / "run" / "config.yaml").write_text("playbook: {}\n")


def test_a_runs_own_config_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("playbook: {arguments: []}\n" + BRIDGES["whole"])
    assert config_file.read(tmp_path / "config.yaml").tree == {"train": {"train_iters": 5}}
    (tmp_path / "hand.yaml").write_text(
        "comm_overlap: {_target_: megatron.bridge.X, a: true}\ntrain: {train_iters: 5}\n"
    )
    assert set(config_file.read(tmp_path / "hand.yaml").tree) == {"comm_overlap", "train"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "optimizer: {lr: 1.0}\ntrain: {seed: 1}\noptimizer: {adam_beta1: 0.5}\n",
            ", line 3 is not YAML: optimizer stands there twice",
        ),
        ("optimizer:\n  lr: 1.0\n  lr: 2.0\n", ", line 3 is not YAML: lr stands there twice"),
        ("optimizer: {lr: " + "9" * 5000 + "}", "has a value that Python does not hold"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer and not the file itself"),
    ],
)
def test_a_config_file_that_means_something_else(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError) as told:
        config_file.read(tmp_path / "c.yaml")
    assert said in str(told.value)


def test_sections_may_share_fields_and_a_byte_order_mark_is_nothing(tmp_path: Path) -> None:
    text = "\ufeffoptimizer: &a {lr: 1.0}\nscheduler: {<<: *a, lr: 2.0}\n"
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert config_file.read(tmp_path / "c.yaml").tree == {"optimizer": {"lr": 1.0}, "scheduler": {"lr": 2.0}}
