"""`make show-config`: what it prints is what `--config` takes."""

import sys

import pytest
import yaml

from playbook import configs, jobs


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
    assert configs._on_gpu(jobs.parser("x").parse_args(list(flags))) is on_gpu


def test_it_prints_nothing_but_the_config(capfd, monkeypatch) -> None:
    monkeypatch.setattr(configs, "ensure", lambda name: sys.executable)
    flags = ["--model", "llama31-405b", "--precision", "bf16", "optimizer.lr=0.002"]
    assert configs.show(jobs.parser("x").parse_args(flags)) == 0
    shown = yaml.safe_load(capfd.readouterr().out)
    assert shown["playbook"]["arguments"][-1] == "optimizer.lr=0.002"
    assert (shown["optimizer"]["lr"], shown["model"]["num_layers"]) == (0.002, 126)
    assert (shown["model"]["tensor_model_parallel_size"], shown["model"]["context_parallel_size"]) == (8, 1)


def test_a_wrong_name_is_one_line(capfd, monkeypatch) -> None:
    monkeypatch.setattr(configs, "ensure", lambda name: sys.executable)
    assert configs.show(jobs.parser("x").parse_args(["--model", "llama32-1b", "optimizer.lrr=2"])) == 2
    said = capfd.readouterr()
    assert said.out == "" and "did you mean optimizer.lr" in said.err and said.err.count("\n") == 1
