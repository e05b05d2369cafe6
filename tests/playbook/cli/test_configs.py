"""`make show-config`: what it prints is what `--config` takes."""

import os
import subprocess
import sys

import pytest
import yaml

from playbook.cli import configs, train


@pytest.mark.parametrize(
    ("flags", "on_gpu"),
    [
        (("--runtime", "cpu"), False),
        (("--runtime", "container"), True),
        (("--model", "llama32-1b"), True),
        (("--precision", "fp8"), True),
    ],
)
def test_whose_defaults_it_shows(flags: tuple[str, ...], on_gpu: bool) -> None:
    assert configs._on_gpu(train.parser("x").parse_args(list(flags))) is on_gpu


def test_the_largest_config_is_built_in_seconds_and_printed_alone() -> None:
    """Imports included, and no weights: under 15 s of a core and 2 GB."""
    flags = ["--gpu", "--processes", "64", "--model", "llama31-405b", "--precision", "bf16", "optimizer.lr=0.002"]
    command = [sys.executable, "-W", "ignore", configs.SCRIPT, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        shown = yaml.safe_load(process.stdout)
        _, process.returncode, used = os.wait4(process.pid, 0)
    assert process.returncode == 0
    assert shown["playbook"]["arguments"][-1] == "optimizer.lr=0.002"
    assert (shown["optimizer"]["lr"], shown["model"]["num_layers"]) == (0.002, 126)
    assert (shown["model"]["tensor_model_parallel_size"], shown["model"]["context_parallel_size"]) == (8, 1)
    assert used.ru_utime + used.ru_stime < 15
    assert used.ru_maxrss * 1024 < 2e9
