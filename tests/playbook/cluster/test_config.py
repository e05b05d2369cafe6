"""cluster.yaml, and what a node does with a job, where no Slurm is needed to show it."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from playbook.cluster import config, follow, submission
from playbook.cluster.slurm import ClusterError, explain
from pretraining.errors import UsageError
from pretraining.request import flags as training_flags
from pretraining.request.recipe.nvfp4_recipe import Nvfp4Recipe, words_in


@pytest.fixture(scope="module")
def node(project: Path):
    spec = importlib.util.spec_from_file_location("cluster_node", project / "assets" / "cluster_node.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_is_valid_and_says_every_field() -> None:
    assert config.read(config.EXAMPLE).image == "nvcr.io/nvidia/nemo:26.04"
    assert set(yaml.safe_load(config.EXAMPLE.read_text())) == set(config.Cluster.__dataclass_fields__)


def test_a_job_gets_the_recipe_by_flag_and_transformer_engines_variables(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NVTE_NVFP4_DISABLE_RHT", "1")
    monkeypatch.setenv("NVTE_FUSED_ATTN", "0")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    args = training_flags.parser("x").parse_args(["--nvfp4", "weights=1x16"])
    args.nodes = args.nproc = 1
    cluster = config.Cluster(runs=str(tmp_path), gpus=8, environment={"NVTE_FUSED_ATTN": "1", "MINE": "2"})
    planned = submission.planned(args, cluster)
    job = submission.job_of(planned, cluster, 1, 1)
    recipe = job["flags"][job["flags"].index("--nvfp4") + 1]  # every word, so that no default of the node's comes in
    assert Nvfp4Recipe.of(words_in(recipe)) == Nvfp4Recipe(rht=False, two_d=False) and "stochastic=on" in recipe
    assert job["environment"].items() >= {"NVTE_FUSED_ATTN": "0", "NVTE_NVFP4_DISABLE_RHT": "1", "MINE": "2"}.items()
    assert "hf_secret" not in str(job)


def test_a_file_of_an_earlier_version_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("executor: slurm\nhost: null\ngpus: 4")
    assert config.read(path) == config.Cluster(gpus=4)


@pytest.mark.parametrize(
    ("gpus", "sbatch", "asked"),
    [
        (8, {}, 8),
        (None, {}, None),
        (0, {}, None),
        (8, {"gres": "gpu:8"}, None),
        (8, {"gpus-per-node": None}, None),
        (8, {"gpus_per_node": 4}, None),
        (8, {"tres-per-node": "gres/gpu:8"}, None),
        (8, {"qos": "high"}, 8),
        (8, None, 8),
    ],
)
def test_gpus_are_asked_for_once_or_not_at_all(gpus: int | None, sbatch: dict | None, asked: int | None) -> None:
    cluster = config.Cluster(gpus=gpus, sbatch=sbatch)
    assert (cluster.gpus_per_node, cluster.on_gpu) == (asked, gpus != 0)


def test_it_is_made_on_first_use(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(config, "FILE", tmp_path / "cluster.yaml")
    with pytest.raises(UsageError, match="was not there and is now"):
        config.read(config.FILE)
    assert config.read(config.FILE) == config.read(config.EXAMPLE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("partion: batch", "unknown field 'partion': did you mean partition?"),
        ("gpus: many", "gpus is 'many': expected `int | null`, got `str`"),
        ("gpus: true", "gpus is True: expected `int | null`, got `bool`"),
        ("gpus: -1", "gpus is -1: expected `int` >= 0"),
        ("python: null", "python is None: expected `str`, got `null`"),
        ("mounts: /shared", "mounts is '/shared': expected `array | null`, got `str`"),
        ("mounts: [1]", "mounts is [1]: expected `str`, got `int`"),
        ("environment: HF_TOKEN=hf_x", "environment: expected `object | null`, got `str`; NAME: value"),
        ("host: you@login", "submit on a login node"),
        ("executor: kubeflow", "NeMo-Run's own examples"),
        (
            "time: 4:00:00",
            "time is 14400: expected `str | null`, got `int`; hours:minutes:seconds or days-hours, in quotes",
        ),
        ('time: "soon"', "time is 'soon'"),
        ("executor: pbs", "this playbook submits to Slurm"),
        ("environment: {HF_TOKEN: hf_x}", "export it in your shell"),
        ("environment: {lower: x}", "use capitals"),
        ("environment: {NVFP4_RHT: 0}", "a job gets that by flag: make submit NVFP4="),
        ("environment: {NVTE_NVFP4_DISABLE_2D_QUANTIZATION: 1}", "a job gets that by flag"),
        ("runs: relative", "must be an absolute path"),
        ("runs: /with space", "without spaces"),
        ("runs: /nemo_run/x", "NeMo-Run's scripts"),
        ("{", "is not YAML"),
        ("[" * 9_000, "is not YAML"),
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


@pytest.mark.parametrize(
    ("state", "over"),
    [
        *((state, False) for state in ("RUNNING", "RESIZING", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT")),
        *((state, True) for state in ("COMPLETED", "NODE_FAIL", "REVOKED", "UNKNOWN")),
    ],
)
def test_only_states_that_are_ends_are_ends(tmp_path: Path, state: str, over: bool) -> None:
    job = follow.Job(tmp_path, {"job": "7", "folder": "x"}, state)
    follow.settle(job)
    assert job.over is over
    assert (tmp_path / "outcome.json").exists() is (over and state != "UNKNOWN")


def test_a_job_that_cannot_be_taken_back_is_named(monkeypatch, capsys) -> None:
    def refuses(*words: str, check: bool = True) -> None:
        raise ClusterError("scancel did not answer within 60 s; try again")

    monkeypatch.setattr(submission.slurm, "run", refuses)
    submission._cancel("17")
    assert "job 17 may still start: scancel 17 ends it" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", '{"job": "7"}', '{"job": 7, "submitted": "2026", "folder": "x"}', "[]"])
def test_a_damaged_job_hides_no_other(tmp_path: Path, capsys, content: str) -> None:
    told = {"one": content, "two": '{"job": "8", "submitted": "2026", "folder": "x"}'}
    for name, text in told.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text(text)
    assert [job.number for job in follow.submitted(config.Cluster(runs=str(tmp_path)))] == ["8"]
    assert f"{tmp_path / 'one' / 'job.json'} is damaged" in capsys.readouterr().err


def test_a_log_of_any_bytes_is_followed_once(tmp_path: Path, monkeypatch, capsys) -> None:
    """Line ends of Windows and broken UTF-8, with a letter of two bytes that is cut between two readings."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "job.json").write_text('{"job": "7", "submitted": "2026", "folder": "x"}')
    (run / "plan.json").write_text("{}")
    (run / "train.log").write_bytes(b"one\r\n\xff two \xc3")
    growing = [b"\xa4\n", b"", b"end\n", b""]
    states = iter(["RUNNING", "RUNNING", "RUNNING", "COMPLETED", "COMPLETED"])

    def state_of(job: follow.Job) -> follow.Job:
        with (run / "train.log").open("ab") as log:
            log.write(growing.pop(0) if growing else b"")
        return replace(job, state=next(states))

    monkeypatch.setattr(follow, "state_of", state_of)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0)
    assert follow.logs(config.Cluster(runs=str(tmp_path)), "run") == 1
    shown = capsys.readouterr().out.split("\n", 1)[1]
    assert shown.startswith("one\r\n\ufffd two ä\nend\n") and "run: failed the job ended without a verdict" in shown
