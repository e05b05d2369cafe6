"""A plan: every choice with its reason, and the request that makes two runs the same work."""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from playbook.cli import train
from playbook.launch.container import image
from playbook.launch.start import prepare
from playbook.plan import plan
from playbook.plan.place import Choice, Place
from pretraining.record import code_state, run_folder
from pretraining.request import flags as training_flags
from pretraining.request import models, settings
from pretraining.request.recipe import nvfp4_recipe


def planned(*flags: str, precision: str = "nvfp4") -> plan.Plan:
    """The plan of a command line, on the CPU."""
    args = training_flags.parser("x").parse_args(["--precision", precision, *flags])
    chosen = settings.resolve(args, on_gpu=False, processes=1)
    return plan.make_plan(chosen, Place("cpu", choices={"runtime": Choice("cpu", "no NVIDIA GPU")}), 1)


def test_what_was_asked_for_and_what_was_not() -> None:
    choices = planned("--train-iters", "7", "--data", "mock").choices
    reasons = {name: choice.reason for name, choice in choices.items()}
    assert reasons["iterations"] == reasons["data"] == "asked for"
    assert reasons["model"] == "the default without a GPU" and reasons["batch"] == "tiny's default"
    assert reasons["precision"] == "emulated exactly on the CPU"
    assert next(iter(choices)) == "runtime"
    assert all(choice.reason for choice in choices.values())


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        (("--train-iters", "7"), "iterations"),
        (("--global-batch-size", "16"), "batch"),
        (("--micro-batch-size", "8"), "batch"),
        (("--seq-length", "64"), "batch"),
        (("--bf16-head-layers", "1"), "kept in BF16"),
        (("--bf16-tail-layers", "2"), "kept in BF16"),
    ],
)
def test_whichever_flag_made_a_choice_it_was_asked_for(flag: tuple[str, str], name: str) -> None:
    assert planned().choices[name].reason != "asked for"
    assert planned(*flag).choices[name].reason == "asked for"


def test_a_probe_that_is_left_out_is_shown_and_changes_no_request() -> None:
    assert planned("--no-probe").choices["probe"].value == "none" and "probe" not in planned().choices
    assert planned("--no-probe").request() == planned().request()


def test_a_profiled_run_is_asked_for_by_no_comparison() -> None:
    assert planned("--profile", "5").request()["profile"] == 5
    assert "profile" not in planned().request()


def test_bf16_keeps_no_layers_apart() -> None:
    assert "kept in BF16" not in planned(precision="bf16").choices


FLAGS = [
    ("--model", "small"), ("--train-iters", "50"), ("--warmup-iters", "3"), ("--global-batch-size", "16"),
    ("--micro-batch-size", "8"), ("--seq-length", "64"), ("--data", "mock"), ("--seed", "1"),
    ("--bf16-head-layers", "1"), ("--bf16-tail-layers", "2"),
]  # fmt: skip


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag[0])
def test_every_setting_that_changes_the_work_is_in_the_request(flag: tuple[str, str]) -> None:
    assert planned().request() == planned().request()
    assert planned(*flag).request() != planned().request()


def test_where_the_record_goes_does_not_change_the_work(tmp_path: Path) -> None:
    elsewhere = ("--run-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache"), "--save", "5")
    assert planned(*elsewhere).request() == planned().request()


def test_a_run_without_the_writer_asked_for_is_not_reused() -> None:
    assert planned("--tensorboard").request() == {**planned().request(), "writers": {"tensorboard": True}}


def test_a_default_named_is_the_same_work() -> None:
    tiny = models.MODELS["tiny"]
    assert planned("--model", "tiny", "--train-iters", str(tiny.train_iters)).request() == planned().request()


@pytest.mark.parametrize("switch", nvfp4_recipe.SHORT)
def test_a_switch_of_the_nvfp4_recipe_is_in_the_request_and_shown(monkeypatch, switch: str) -> None:
    before = planned().request()
    monkeypatch.setenv(switch, "1")
    assert planned().request() == before
    assert "NVFP4 recipe" not in planned().choices
    monkeypatch.setenv(switch, "0")
    made = planned()
    assert made.request() != before
    assert made.choices["NVFP4 recipe"].value.startswith("without ")
    assert made.choices["NVFP4 recipe"].reason == f"asked for: {switch}=0"
    (changed,) = nvfp4_recipe.Nvfp4Recipe.of(made.request()["nvfp4"]).changed().items()
    words = nvfp4_recipe.as_text(dict([changed]))
    flags = made.settings.as_flags()
    assert words in flags[flags.index("--nvfp4") + 1]
    monkeypatch.delenv(switch)
    named = planned("--nvfp4", words)
    assert named.request() == made.request() and named.choices["NVFP4 recipe"].reason == "asked for"
    monkeypatch.setenv(switch, "0")
    bf16 = planned("--precision", "bf16")
    assert "NVFP4 recipe" not in bf16.choices and "nvfp4" not in bf16.request()
    assert "--nvfp4" not in bf16.settings.as_flags()


def test_transformer_engines_own_switch_is_asked_for_and_shown_as_it_was_set(monkeypatch) -> None:
    before = planned().request()
    monkeypatch.setenv("NVTE_NVFP4_DISABLE_RHT", "1")
    assert planned().request() == {**before, "nvfp4": {**before["nvfp4"], "rht": "off"}}
    shown = planned().choices["NVFP4 recipe"]
    assert (shown.value, shown.reason) == ("without Hadamard transform", "asked for: NVTE_NVFP4_DISABLE_RHT=1")


def test_every_other_switch_of_transformer_engine_is_other_work(monkeypatch, tmp_path: Path) -> None:
    before = planned()
    monkeypatch.setenv("NVTE_UNFUSED_ATTN", "1")
    monkeypatch.setenv("NVTE_FUSED_ATTN", "0")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    made = planned()
    said = ["NVTE_FUSED_ATTN=0", "NVTE_UNFUSED_ATTN=1"]
    assert made.request() == {**before.request(), "engine_switches": said}
    assert made.choices["Transformer Engine"] == Choice(" ".join(said), "set in the environment")
    assert f" {' '.join(said)} " in prepare(made, tmp_path, [])[1]
    assert "hf_secret" not in json.dumps(made.described([]))


def test_what_the_user_changes_is_in_the_request_and_shown(tmp_path: Path) -> None:
    config, plugin = tmp_path / "c.yaml", tmp_path / "p.py"
    config.write_text("optimizer: {lr: 1.0e-4}")
    plugin.write_text("callbacks = []")
    flags = ("--config", str(config), "--plugin", str(plugin), "model.num_layers=2", "optimizer.lr=1e-3")
    made = planned(*flags)
    assert made.request()["overrides"] == ["optimizer.lr=1e-3"]
    assert made.choices["kept in BF16"].value == "first 0 and last 1 of 2 layers"
    assert made.choices["plugin"].reason == "defines callbacks"
    assert {"config file", "overrides"} <= set(made.choices)
    before = made.request()
    config.write_text("optimizer: {lr: 1.0e-5}")
    assert planned(*flags).request() != before
    config.write_text("optimizer: {lr: 1.0e-4}")
    assert planned(*flags).request() == before
    plugin.write_text("callbacks = [1]")
    assert planned(*flags).request() != before


def test_without_bf16_layers_it_is_called_speed_only() -> None:
    assert "speed only" in planned("--bf16-tail-layers", "0").choices["kept in BF16"].reason
    assert "speed only" not in planned("--bf16-tail-layers", "1").choices["kept in BF16"].reason


def test_changed_data_is_other_work(tmp_path: Path) -> None:
    for ending in (".bin", ".idx"):
        (tmp_path / f"corpus{ending}").write_bytes(b"tokens")
    before = planned("--data", str(tmp_path / "corpus")).request()
    (tmp_path / "corpus.bin").write_bytes(b"others")
    assert planned("--data", str(tmp_path / "corpus")).request() != before


def test_a_written_plan_reads_back_as_the_same_request(tmp_path: Path) -> None:
    made = planned("--seed", "3")
    run_folder.write_json(tmp_path / run_folder.PLAN, made.described(["python", "train"]))
    kept = run_folder.read_run(tmp_path).plan
    assert kept["request"] == made.request() == json.loads(json.dumps(made.request()))
    assert set(kept) >= {"schema", "created", "choices", "request", "command", "git_commit"}
    assert kept["choices"]["iterations"] == {
        "value": models.MODELS["tiny"].train_iters, "reason": "tiny's default",
    }  # fmt: skip


def test_the_image_of_a_cluster_is_in_its_plan() -> None:
    on_cluster = replace(planned(), place=Place("cluster", image="nvcr.io/nvidia/nemo:26.04"))
    assert on_cluster.described([])["image"] == {"name": "nvcr.io/nvidia/nemo:26.04"}
    assert "image" not in replace(planned(), place=Place("cluster")).described([])


def test_a_name_without_a_digest_says_nothing_of_a_moved_tag(tmp_path: Path) -> None:
    for name, kept in (("1-container", {"name": "nemo", "digest": "sha256:1"}), ("2-cluster", {"name": "nemo"})):
        (tmp_path / name).mkdir()
        run_folder.write_json(tmp_path / name / run_folder.PLAN, {"image": kept})
    assert image.earlier_digest(tmp_path, "nemo") == ("1-container", "sha256:1")


def test_the_commit_says_whether_files_differ(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(plan, "PROJECT", tmp_path)
    assert plan.git_commit() is None
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # else a hook's variables would name another repository
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    commit = plan.git_commit()
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert plan.git_commit() == f"{commit}-dirty"


def test_the_state_of_the_code_is_that_of_what_trains(tmp_path: Path, project: Path) -> None:
    assets = tmp_path / "assets"  # no checkout: a tarball has one too
    for each in (
        "pretraining/numerics/cpu_layers.py",
        "pretrain_llama.py",
        "models/tiny/config.json",
        "results/x/plan.json",
    ):
        (assets / each).parent.mkdir(parents=True, exist_ok=True)
        (assets / each).write_bytes((project / "assets" / each).read_bytes() if "results" not in each else b"{}")
    before = code_state.digest(assets)
    assert re.fullmatch("[0-9a-f]{12}", before)
    changes = {
        "pretraining/numerics/cpu_layers.py": True, "pretrain_llama.py": True, "models/tiny/config.json": True,
        "pretraining/new.py": True, "results/x/plan.json": False, "README.md": False,
        "pretraining/__pycache__/layers.cpython-311.pyc": False,
    }  # fmt: skip
    for name, counts in changes.items():
        path = assets / name
        old = path.read_bytes() if path.exists() else None
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"# another\n" + (old or b""))
        assert (code_state.digest(assets) != before) is counts, name
        path.write_bytes(old) if old is not None else path.unlink()
        assert code_state.digest(assets) == before
    (assets / "pretrain_llama.py").rename(assets / "renamed.py")
    assert code_state.digest(assets) != before


def test_the_launchers_flags_have_the_training_scripts_among_them() -> None:
    def flags(parser: argparse.ArgumentParser) -> set[str]:
        return {flag for action in parser._actions for flag in action.option_strings}

    assert flags(training_flags.parser("x")) <= flags(train.parser("x"))


def test_planning_needs_no_torch(environment, project: Path) -> None:
    code = "import sys; import playbook.cli.train; print(sorted({'torch', 'numpy', 'megatron'} & set(sys.modules)))"
    paths = f"{project / 'assets'}:{project / 'scripts'}"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment(PYTHONPATH=paths), capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[]\n"
