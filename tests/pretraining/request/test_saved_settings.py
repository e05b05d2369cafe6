"""Settings from a config file, who said each, and all of them as flags again."""

import json
from pathlib import Path

import pytest
from asking import refusal, resolve

from pretraining.request import blends, config_file
from pretraining.request import flags as training_flags
from pretraining.request.recipe import nvfp4_recipe

WHOLE = "is not a whole number"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {global_batch_size: 8.9}", f"train.global_batch_size=8.9: 8.9 {WHOLE}"),
        ("train: {train_iters: true}", f"train.train_iters=True: True {WHOLE}"),
        ("train: {train_iters: .inf}", WHOLE),
        ("rng: {seed: .nan}", WHOLE),
        ("model: {num_layers: [2]}", WHOLE),
        ("playbook: {arguments: 5}", "arguments of playbook is 5 and no list of words"),
        ("playbook: {arguments: --model tiny}", "arguments of playbook is '--model tiny' and no list of words"),
        ("playbook: {arguments: [--modle, tiny]}", "unrecognized arguments: --modle tiny; did you mean --model?"),
        ("playbook: 5", "playbook is no section of fields"),
    ],
)
def test_wrong_config_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert words in refusal("--config", str(tmp_path / "c.yaml"))


def test_what_a_config_file_was_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text, data in (
        ("train: {global_batch_size: 8.0}", None),
        ("playbook: {arguments: [--model, tiny]}", None),
        ("playbook: {arguments: [--data=mock, --model, tiny]}", "mock"),
        ("playbook: {arguments: [--model, tiny, --data, python-stdlib]}", "python-stdlib"),
    ):
        file.write_text(text)
        assert training_flags.words_of(config_file.read(file)).data == data
        assert resolve("--config", str(file)).global_batch_size == (8 if "8.0" in text else 32)


def test_who_said_a_setting(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    words = ["--model", "tiny", "--nvfp4", "rht=off", "--seed", "7", "train.train_iters=30"]
    file.write_text(json.dumps({"playbook": {"arguments": words}, "model": {"seq_length": 64}}))
    chosen = resolve("--config", str(file), "--seed", "5", "train.global_batch_size=16")
    assert (chosen.seed, chosen.train_iters, chosen.sequence_length, chosen.global_batch_size) == (5, 30, 64, 16)
    who = {name: chosen.reason("nobody", name) for name in ("model", "nvfp4", "seq_length", "train_iters")}
    assert set(who.values()) == {"as in the config file"}
    assert chosen.reason("nobody", "seed") == chosen.reason("nobody", "global_batch_size") == "asked for"
    assert chosen.reason("nobody", "save", "data") == "nobody" and chosen.overrides == {}
    assert chosen.reason("nobody", "seq_length", "seed") == "asked for"  # one is enough


def test_a_command_line_is_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value is parsed once, and kept parsed."""
    read: dict[str, int] = {}

    def counted(module, name: str) -> None:
        parse = getattr(module, name)

        def once(*given, **more):
            read[name] = read.get(name, 0) + 1
            return parse(*given, **more)

        monkeypatch.setattr(module, name, once)

    for end in (".bin", ".idx"):
        (tmp_path / f"a{end}").touch()
    (tmp_path / "c.yaml").write_text("optimizer: {lr: 0.1}")
    for module, name in ((config_file, "read"), (blends, "parse"), (nvfp4_recipe, "words_in")):
        counted(module, name)
    chosen = resolve("--config", str(tmp_path / "c.yaml"), "--data", str(tmp_path / "a"), "--nvfp4", "rht=off")
    assert (chosen.ignored(), chosen.as_flags()[0], chosen.changes) == ("", "--model", [])
    assert chosen.config.tree == {"optimizer": {"lr": 0.1}} and chosen.blends and not chosen.nvfp4.rht
    assert read == {"read": 1, "parse": 1, "words_in": 1}


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--disable-fp4",),
        ("--bf16-tail-layers", "0", "--bf16-head-layers", "2"),
        ("--train-iters", "1"),
        ("--train-iters", "7", "--warmup-iters", "0", "--global-batch-size", "12", "--micro-batch-size", "3"),
        ("--model", "small", "--seed", "9", "--save", "5", "--run-dir", "with space/run", "--cache-dir", "c"),
        ("--data", "mock", "--seq-length", "64"),
        ("--nvfp4", "rht=off scale=4over6:weights error=mse"),
        ("--tensorboard", "--wandb-project", "p", "--mlflow-experiment", "e"),
    ],
)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_as_flags_gives_the_same_settings_wherever_it_is_parsed(flags: tuple[str, ...], on_gpu: bool) -> None:
    chosen = resolve(*flags, on_gpu=on_gpu)
    assert resolve(*chosen.as_flags(), on_gpu=on_gpu) == chosen
    assert resolve(*chosen.as_flags(), on_gpu=True) == chosen


def test_as_flags_names_every_setting(make_checkpoint, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 6)
    (tmp_path / "c.yaml").write_text("optimizer: {lr: 0.1}")
    (tmp_path / "p.py").write_text("callbacks = []")
    given = ("--config", str(tmp_path / "c.yaml"), "--plugin", str(tmp_path / "p.py"))
    given += ("--wandb-project", "p", "--mlflow-experiment", "e", "--run-dir", str(tmp_path / "next"))
    continued = resolve("--save", "2", "--resume", str(tmp_path), *given).as_flags()
    exported = resolve("--resume", str(tmp_path), "--export", str(tmp_path / "out")).as_flags()
    begun = resolve("--from", "hf:my/llama", "--profile", "2").as_flags()
    measured = resolve("--sensitivity", "1").as_flags()
    flags = [*continued, *exported, *begun, *measured]
    known = {flag for action in training_flags.parser("x")._actions for flag in action.option_strings}
    on_or_off = {"--disable-fp4", "--evaluate", "--tuned", "--tensorboard", "--no-probe"}
    elsewhere = {"--finetune", "--tokenizer", "--emulate", "--switch"}  # a fine-tuning's, and a GPU's alone
    assert set(flags[::2]) == known - {"-h", "--help"} - elsewhere - on_or_off
    assert resolve("--resume", str(tmp_path), "--evaluate").as_flags()[-1] == "--evaluate"
    for each in (continued, exported, begun, measured):
        assert resolve(*each).as_flags() == each
