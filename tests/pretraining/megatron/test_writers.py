"""TensorBoard, W&B and MLflow: off unless asked for, offline unless the user says so, and told of the end."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pretraining.errors import UsageError
from pretraining.megatron import writers
from pretraining.request import flags as training_flags
from pretraining.request import settings
from pretraining.request.settings import Settings

ALL = ("--tensorboard", "--wandb-project", "project", "--mlflow-experiment", "experiment")


def chosen(*flags: str) -> Settings:
    return settings.resolve(training_flags.parser("x").parse_args(list(flags)), on_gpu=False, processes=1)


def configured(run_dir: Path, *flags: str, **logger: object) -> SimpleNamespace:
    """The logger section of a recipe's config, configured."""
    names = ("tensorboard_dir", "wandb_project", "wandb_exp_name", "wandb_entity", "wandb_save_dir")
    names += ("mlflow_experiment", "mlflow_run_name", "mlflow_tracking_uri")
    config = SimpleNamespace(logger=SimpleNamespace(**{**dict.fromkeys(names), **logger}))
    writers.configure(config, chosen(*flags), run_dir)
    return config.logger


@pytest.fixture(autouse=True)
def environment_of_nobody(monkeypatch) -> None:
    for name in ("WANDB_MODE", "WANDB_ENTITY", "MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "")  # so that what is set here is taken back
        monkeypatch.delenv(name)


def test_nothing_is_on_unasked(tmp_path: Path) -> None:
    found = configured(tmp_path, tensorboard_dir="/somewhere/shared")  # as recipes have it
    assert set(vars(found).values()) == {None}


def test_all_go_into_the_run_folder_and_stay_there(tmp_path: Path) -> None:
    run = tmp_path / "run with space"
    found = configured(run, *ALL, mlflow_log_artifacts=True)
    assert found.tensorboard_dir == str(run / "tensorboard")
    assert (found.wandb_project, found.wandb_exp_name) == ("project", "run with space")
    assert (found.wandb_save_dir, os.environ["WANDB_MODE"]) == (str(run), "offline")
    assert (found.mlflow_experiment, found.mlflow_run_name) == ("experiment", "run with space")
    assert found.mlflow_tracking_uri == f"file://{tmp_path}/run%20with%20space/mlruns"
    assert found.mlflow_log_artifacts is False  # a checkpoint of an 8B model is 105 GB


def test_the_users_own_servers_are_theirs_to_name(tmp_path: Path, monkeypatch) -> None:
    for name, value in {"WANDB_MODE": "online", "WANDB_ENTITY": "team", "MLFLOW_TRACKING_URI": "https://host"}.items():
        monkeypatch.setenv(name, value)
    found = configured(tmp_path, *ALL, mlflow_log_artifacts=True)
    assert (os.environ["WANDB_MODE"], found.wandb_entity) == ("online", "team")
    assert found.mlflow_tracking_uri is None  # MLflow reads the variable, and it enters no config


def test_versions_without_the_switch_copy_no_checkpoints_either(megatron) -> None:
    assert megatron("copied_to_mlflow") == []


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_one_sentence_with_the_command(package: str, monkeypatch) -> None:
    monkeypatch.setattr(writers, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(UsageError) as caught:
        writers.check(chosen(*ALL))
    assert f"{sys.executable} -m pip install {package}" in str(caught.value) and "\n" not in str(caught.value)
    writers.check(chosen("--tensorboard"))


@pytest.mark.parametrize(("succeeded", "status"), [(True, "FINISHED"), (False, "FAILED")])
def test_mlflow_is_told_of_the_end(monkeypatch, succeeded: bool, status: str) -> None:
    told = []
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(end_run=told.append))
    writers.finish(chosen(*ALL), succeeded=succeeded)
    writers.finish(chosen("--tensorboard"), succeeded=succeeded)
    assert told == [status]


def test_an_mlflow_that_cannot_be_told_fails_nothing(monkeypatch, capsys) -> None:
    def unreachable(status: str) -> None:
        raise ConnectionError("no route to host")

    mlflow = ModuleType("mlflow")
    mlflow.end_run = unreachable
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    writers.finish(chosen(*ALL), succeeded=True)
    assert "MLflow was not told of the end: no route to host" in capsys.readouterr().err
