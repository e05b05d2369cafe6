"""The data, the checkpoint or the weights that a run begins with, and what it keeps: found, and fitting its model."""

import json
from pathlib import Path

import pytest
from asking import refusal, resolve

from pretraining.inputs import manifest
from pretraining.request import flags as training_flags
from pretraining.request.models import MODELS


@pytest.mark.parametrize("name", ["corpus", "corpus.bin", "corpus.idx"])
def test_a_dataset_by_its_prefix(tmp_path: Path, monkeypatch, name: str) -> None:
    for ending in (".bin", ".idx"):
        (tmp_path / f"corpus{ending}").touch()
    assert resolve("--data", str(tmp_path / name)).data == str(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    assert resolve("--data", name).data == str(tmp_path / "corpus")


def test_a_dataset_with_a_dot_in_its_name(tmp_path: Path) -> None:
    for ending in (".bin", ".idx"):
        (tmp_path / f"wiki.v1{ending}").touch()
    assert resolve("--data", str(tmp_path / "wiki.v1")).data == str(tmp_path / "wiki.v1")


def test_a_missing_dataset(tmp_path: Path) -> None:
    said = refusal("--data", str(tmp_path / "corpus"))
    assert f"there is no {tmp_path}/corpus.bin and .idx" in said and "mock or python-stdlib" in said
    (tmp_path / "corpus.bin").touch()
    said = refusal("--data", str(tmp_path / "corpus"))
    assert f"{tmp_path}/corpus.idx is missing" in said and "a .bin and an .idx file" in said
    (tmp_path / "corpus.bin").unlink()
    (tmp_path / "corpus.idx").touch()
    assert f"{tmp_path}/corpus.bin is missing" in refusal("--data", str(tmp_path / "corpus"))


def test_a_manifest_with_more_words_than_the_model(tmp_path: Path) -> None:
    for ending in (".bin", ".idx"):
        (tmp_path / f"corpus{ending}").touch()
    known = {name: 0 for name in manifest.Manifest.__dataclass_fields__}
    for words, fits in (
        (257, ""),
        (258, "on a GPU --model llama-110m has 16384"),
        (16385, "llama32-1b has 128256"),
        (10**6, "`make data`"),
    ):
        content = known | {"tokenizer": "my/tokenizer", "vocabulary_size": words}
        (tmp_path / f"corpus{manifest.ENDING}").write_text(json.dumps(content))
        if fits:
            said = refusal("--data", str(tmp_path / "corpus"))
            assert f"was tokenized by my/tokenizer into {words} words, and tiny has 257: " in said and fits in said
            assert said.count(" has ") == (1 if words == 10**6 else 2)
        else:
            assert resolve("--data", str(tmp_path / "corpus")).data == str(tmp_path / "corpus")
    (tmp_path / f"corpus{manifest.ENDING}").write_text("{}")
    assert "is no manifest of `make data`: was it edited?" in refusal("--data", str(tmp_path / "corpus"))


@pytest.fixture
def finished(tmp_path: Path, make_checkpoint):
    """`finished(model="tiny", precision="bf16", iteration=6)`: a run folder with a checkpoint."""

    def make(model: str = "tiny", precision: str = "bf16", iteration: int = 6, name: str = "run") -> Path:
        folder = make_checkpoint(tmp_path / name, iteration)
        facts = {"model": model, "precision": {"name": precision}}
        (folder / "environment.json").write_text(json.dumps(facts))
        return folder

    return make


def test_a_checkpoint_of_another_model_or_precision(finished, tmp_path: Path) -> None:
    run = str(finished())
    assert resolve("--resume", run, "--precision", "bf16").resume == tmp_path / "run"
    said = refusal("--resume", run)
    assert f"--resume {run} was trained in bf16, and this is nvfp4: continue it in bf16" in said
    said = refusal("--resume", run, "--precision", "bf16", "--model", "small")
    assert f"--resume {run} is a checkpoint of tiny, and this is small" in said


def test_what_trains_nothing(finished, tmp_path: Path) -> None:
    run = str(finished())
    chosen = resolve("--resume", run, "--evaluate")
    assert (chosen.trains, chosen.train_iters, chosen.save, chosen.precision.name) == (False, 6, None, "nvfp4")
    chosen = resolve("--resume", run, "--export", str(tmp_path / "out"))
    assert (chosen.trains, chosen.export, chosen.train_iters) == (False, tmp_path / "out", 6)
    assert "--evaluate needs the run whose checkpoint it means: --resume RUN" in refusal("--evaluate")
    assert "--evaluate needs text" in refusal("--resume", run, "--evaluate", "--data", "mock")
    assert "exists, and nothing is overwritten" in refusal("--resume", run, "--export", str(tmp_path))


def test_when_checkpoints_are_kept(tmp_path: Path) -> None:
    for ending in (".bin", ".idx"):
        (tmp_path / f"corpus{ending}").touch()
    own = ("--data", str(tmp_path / "corpus"))
    assert resolve(on_gpu=True).save is None  # a benchmark
    assert resolve("--save", "7", on_gpu=True).save == 7
    assert resolve(*own, on_gpu=True).save == MODELS["llama31-8b"].train_iters
    assert resolve(*own, "--save", "0", on_gpu=True).save is None
    assert resolve(*own).save is None


def test_weights_to_begin_with(finished, make_model, tmp_path: Path) -> None:
    assert resolve("--from", "hf:my/llama").weights == "my/llama"
    assert "no such folder; a repository of Hugging Face is written hf:my/llama" in refusal("--from", "my/llama")
    assert "has no config.json" in refusal("--from", str(tmp_path))
    config = MODELS["tiny"].hf_config
    make_model(tmp_path)
    assert resolve("--from", f"hf:{tmp_path}").weights == str(tmp_path)
    said = refusal("--from", str(tmp_path), "--model", "small")
    assert "is not small: it has hidden_size 128 and not 256" in said and said.endswith("take --model tiny")
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 9}))
    assert "it has vocab_size 9 and not 257; none of the models here is like it" in refusal("--from", str(tmp_path))
    run = str(finished(precision="nvfp4"))
    assert "give one of them" in refusal("--from", "hf:my/llama", "--resume", run)


@pytest.mark.parametrize("what", [(), ("--evaluate",), ("--export", "NEW")])
def test_what_goes_on_is_evaluated_or_exported_is_the_model_that_was_trained(
    make_checkpoint, tmp_path: Path, what: tuple[str, ...]
) -> None:
    """Whatever was changed of it is in the run's config file; of the rest, nothing is taken from there."""
    run = make_checkpoint(tmp_path / "run", 3)
    trained = resolve("--num-layers", "3", "--seed", "7", "model.rotary_base=20000", "optimizer.adam_beta2=0.9")
    (run / "config.yaml").write_text(json.dumps({"playbook": {"arguments": trained.as_flags()}}))
    flags = ("--resume", str(run), *(word.replace("NEW", str(tmp_path / "new")) for word in what))
    chosen = resolve(*flags)
    assert (chosen.num_layers, chosen.overrides, chosen.seed) == (
        3,
        {"model.rotary_base": "20000"},
        training_flags.SEED,
    )
    assert resolve(*chosen.as_flags()) == chosen
    changed = resolve(*flags, "model.rotary_base=5", "model.num_layers=2")
    assert changed.overrides == {"model.rotary_base": "5"}
    (run / "config.yaml").unlink()
    assert resolve(*flags).overrides == {}


def test_resume_without_a_checkpoint(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        said = refusal("--resume", str(folder))
        assert f"--resume {folder}: it holds no checkpoint" in said and "--save" in said
    assert "--iteration 3 is one of a run's checkpoints: --resume RUN names the run" in refusal("--iteration", "3")


def test_an_earlier_checkpoint(make_checkpoint, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 3, 6)
    assert resolve("--resume", str(tmp_path)).iteration == 6
    assert resolve("--resume", str(tmp_path), "--iteration", "3").iteration == 3
    assert resolve("--resume", str(tmp_path), "--iteration", "3", "--evaluate").train_iters == 3
    assert resolve().iteration is None
