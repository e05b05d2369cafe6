"""cluster.yaml, and what a node does with a job, where no Slurm is needed to show it."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from playbook.cluster import config
from playbook.cluster.head import explain
from pretraining.errors import UsageError


@pytest.fixture(scope="module")
def node(project: Path):
    spec = importlib.util.spec_from_file_location("cluster_node", project / "assets" / "cluster_node.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_is_valid_and_says_every_field() -> None:
    assert config.read(config.EXAMPLE).image == "nvcr.io/nvidia/nemo:26.04"
    fields = set(config.Cluster.__dataclass_fields__)
    assert set(yaml.safe_load(config.EXAMPLE.read_text())) == fields - {"kubeflow", "skypilot"}
    assert all(f"# {name}: {{" in config.EXAMPLE.read_text() for name in ("kubeflow", "skypilot"))


def test_it_is_made_on_first_use(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(config, "FILE", tmp_path / "cluster.yaml")
    with pytest.raises(UsageError, match="was not there and is now"):
        config.read(config.FILE)
    assert config.read(config.FILE) == config.read(config.EXAMPLE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("partion: batch", "unknown field 'partion': did you mean partition?"),
        ("gpus: many", "gpus is 'many', which is no int"),
        ("time: 4:00:00", "put it in quotes"),
        ('time: "soon"', "time is 'soon'"),
        ("executor: pbs", "executor is 'pbs'; one of slurm"),
        ("environment: {HF_TOKEN: hf_x}", "export it in your shell"),
        ("environment: {lower: x}", "use capitals"),
        ("runs: relative", "must be an absolute path"),
        ("runs: /with space", "without spaces"),
        ("runs: /nemo_run/x", "NeMo-Run's scripts"),
        ("{", "is not YAML"),
        ("- a", "no `name: value` lines"),
    ],
)
def test_a_wrong_file_is_refused_in_words(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(content)
    with pytest.raises(UsageError) as told:
        config.read(path)
    assert words in str(told.value) and "hf_x" not in str(told.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        config.read(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("invalid partition specified: x", "`sinfo` lists the partitions"),
        ("Batch job submission failed: Invalid account or account/partition combination", "sacctmgr show assoc"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "lower time in cluster.yaml"),
    ],
)
def test_what_slurm_says_comes_with_its_remedy(said: str, remedy: str) -> None:
    assert said in explain(said) and remedy in explain(said)


def test_an_attempt_resumes_from_the_newest_checkpoint_before_it(node, tmp_path: Path) -> None:
    first = tmp_path / "run"
    assert node.attempt_folder(first, 0) == first
    assert node.attempt_folder(first, 2).name == "run-restart2"
    assert node.last_checkpoint(first, 3) is None
    for folder in (first, tmp_path / "run-restart1"):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "latest_train_state.pt").touch()
    assert node.last_checkpoint(first, 1) == first
    assert node.last_checkpoint(first, 3).name == "run-restart1"
    assert node.without(["--a", "1", "--resume", "x", "--b"], "--resume") == ["--a", "1", "--b"]


def test_a_node_says_what_it_cannot_see(node, tmp_path: Path) -> None:
    prefix = tmp_path / "corpus"
    assert node.unseen(["--data", "mock", "--seed", "1"]) is None
    assert node.unseen(["--data", str(prefix)]) == f"--data: {prefix}.bin, {prefix}.idx"
    two = node.unseen(["--data", f"0.7 {prefix} 0.3 {prefix}2"])
    assert two.endswith(f"{prefix}.idx, {prefix}2.bin, {prefix}2.idx")
    assert node.unseen(["--data", str(prefix), "--finetune", "sft"]) == f"--data: {prefix}"
    for end in (".bin", ".idx"):
        Path(f"{prefix}{end}").touch()
    assert node.unseen(["--data", str(prefix)]) is None
    assert node.unseen(["--resume", "/no/such"]) == "--resume /no/such"
