"""TensorBoard, W&B and MLflow: Megatron-Bridge's own writers, each on where asked for, into the run folder.

Nothing leaves the machine unless the user says so with the tools' own variables (WANDB_MODE=online after a login,
MLFLOW_TRACKING_URI). The record in the run folder is the same with and without them.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.errors import UsageError
from pretraining.megatron import compat

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer

    from pretraining.request.settings import Settings

TENSORBOARD = "tensorboard"
MLFLOW = "mlruns"


def check(settings: Settings) -> None:
    """Raise UsageError where a writer is asked for whose package is missing."""
    for package in settings.writers:
        if find_spec(package) is None:
            raise UsageError(
                f"{package} is asked for, and {sys.executable} does not have it: {sys.executable} -m pip install "
                f"{package}, or leave it out"
            )


def configure(config: ConfigContainer, settings: Settings, run_dir: Path) -> None:
    """Turn on in `config` the writers that are asked for; TensorBoard, which a recipe may have on, else goes off."""
    logger = config.logger
    logger.tensorboard_dir = str(run_dir / TENSORBOARD) if settings.tensorboard else None
    if settings.wandb_project:
        os.environ.setdefault("WANDB_MODE", "offline")
        logger.wandb_project, logger.wandb_exp_name = settings.wandb_project, run_dir.name
        logger.wandb_entity = os.environ.get("WANDB_ENTITY")
        logger.wandb_save_dir = str(run_dir)  # it makes wandb/ there
    if settings.mlflow_experiment:
        logger.mlflow_experiment, logger.mlflow_run_name = settings.mlflow_experiment, run_dir.name
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            logger.mlflow_tracking_uri = (run_dir / MLFLOW).absolute().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.17 wants a database otherwise
        compat.keep_checkpoints_out_of_mlflow(config)


def finish(settings: Settings, *, succeeded: bool) -> None:
    """End the MLflow run, which would stay "running": the process leaves without the usual farewells.

    Call when the outcome is written: a server that does not answer may hold this up.
    """
    if settings.mlflow_experiment and "mlflow" in sys.modules:
        import mlflow

        try:
            mlflow.end_run("FINISHED" if succeeded else "FAILED")
        except Exception as error:  # whatever the server, the network or the disk did: the training is over
            print(f"MLflow was not told of the end: {error}", file=sys.stderr)
