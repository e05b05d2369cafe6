"""A checkpoint that is cut, empty, binary or missing is told before anything is loaded, with the newest whole one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pretraining.errors import UsageError
from pretraining.record import checkpoint

SEED = 1234
FILES = (".metadata", "__0_0.distcp", "__0_1.distcp", "common.pt", "train_state.pt", "metadata.json", "run_config.yaml")


@pytest.fixture
def run(make_checkpoint, tmp_path: Path) -> Path:
    """A run with two whole checkpoints."""
    return make_checkpoint(tmp_path / "run", 3, 6)


def refusal(run: Path, iteration: int | None = None) -> str:
    with pytest.raises(UsageError) as error:
        checkpoint.find(run, iteration)
    return str(error.value)


def tracker(run: Path) -> Path:
    return run / "checkpoints" / "latest_checkpointed_iteration.txt"


def test_the_last_or_the_one_asked_for(run: Path) -> None:
    assert (checkpoint.find(run), checkpoint.find(run, 3)) == (6, 3)
    assert refusal(run, 5) == (
        f"--resume {run}: there is no checkpoint of iteration 5, iter_0000005; the newest whole one is of iteration 6: "
        "--iteration 6 takes it"
    )


def test_weights_to_begin_with_are_of_the_last_alone(run: Path) -> None:
    (run / "checkpoints" / "iter_0000006" / "common.pt").unlink()
    with pytest.raises(UsageError) as error:
        checkpoint.find(run, flag="--from")
    said = str(error.value)
    assert said.startswith(f"--from {run}: ") and "--iteration" not in said and "--resume" not in said
    assert said.endswith(f"make export RUN={run} ITERATION=3 OUT=... makes a folder of it, for --from")


def test_the_config_of_a_checkpoint(run: Path) -> None:
    assert checkpoint.saved_config(run, 3) == {"model": {"fp4": None}}
    file = run / "checkpoints" / "iter_0000003" / "run_config.yaml"
    file.write_text("ddp: {a: 1}\n_target_: b\n")
    assert checkpoint.saved_config(run, 3) == {"ddp": {"a": 1}}
    for content in (b"a: [\n", b"- a\n", b"\n", b"\xff\n", b"a: !!python/name:os.system\n", b"[" * 3000 + b"\n"):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=rf"{file} is damaged \(\w+\): take another checkpoint"):
            checkpoint.saved_config(run, 3)
    file.unlink()
    with pytest.raises(UsageError, match="is damaged"):
        checkpoint.saved_config(run, 3)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["cut", "empty", "gone", "a folder"])
def test_a_damaged_file_is_named_with_the_newest_whole_one(run: Path, name: str, how: str) -> None:
    file = run / "checkpoints" / "iter_0000006" / name
    content = file.read_bytes()
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how != "gone":
        file.write_bytes(content[: len(content) // 3] if how == "cut" else b"")
    said = refusal(run)
    assert str(file) in said and said.endswith("the newest whole one is of iteration 3: --iteration 3 takes it")
    assert len(said.splitlines()) == 1
    assert checkpoint.find(run, 3) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds '' and no iteration"), ("abc", "holds 'abc' and no iteration"),
        ("release", "holds 'release' and no iteration"), ("-3", "holds '-3' and no iteration"),
        ("9", "there is no checkpoint of iteration 9, iter_0000009"), ("9" * 5000, "and no iteration"),
        ("\x00\x00", "and no iteration"), (None, "is missing"),
    ],
)  # fmt: skip
def test_a_tracker_that_names_none(run: Path, content: str | None, words: str) -> None:
    tracker(run).unlink()
    if content is not None:
        tracker(run).write_text(content)
    said = refusal(run)
    assert words in said and said.endswith("the newest whole one is of iteration 6: --iteration 6 takes it")


def test_nothing_whole(run: Path) -> None:
    for folder in (run / "checkpoints").glob("iter_*"):
        (folder / "__0_1.distcp").write_bytes(bytes(2999))
    assert refusal(run).endswith(
        "__0_1.distcp has 2,999 of 3,000 bytes; none of its checkpoints is whole: take another run"
    )


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"PK")])
def test_without_its_state_nothing_loads(run: Path, damage: Callable) -> None:
    latest = run / "checkpoints" / "latest_train_state.pt"
    damage(latest)
    whole = run / "checkpoints" / "iter_0000006" / "train_state.pt"
    said = refusal(run)
    assert "latest_train_state.pt is missing or damaged" in said and said.endswith(f"cp {whole} {latest}")
    shutil.copy(whole, latest)
    assert checkpoint.find(run) == 6


def test_a_checkpoint_whose_common_state_lies_among_the_tensors(run: Path) -> None:
    folder = run / "checkpoints" / "iter_0000006"
    (folder / "common.pt").unlink()
    written = (folder / ".metadata").read_bytes().replace(b"__0_0.distcp", b"common_state")
    (folder / ".metadata").write_bytes(written)
    (folder / "__0_0.distcp").rename(folder / "common_state")
    assert checkpoint.find(run) == 6


def test_any_damage_is_one_sentence(run: Path) -> None:
    chosen = random.Random(SEED)
    root = run / "checkpoints"
    shutil.copytree(root, root.with_name("kept"))
    for case in range(60):
        file = root / chosen.choice([*(f"iter_0000006/{name}" for name in FILES), tracker(run).name])
        content = file.read_bytes()
        cut, binary = content[: chosen.randrange(len(content))], chosen.randbytes(2000)
        spoilt = chosen.choice([cut, b"", binary, b"\x80\x04" + b"(" * 2000, None])
        if spoilt is None:
            file.unlink()
        else:
            file.write_bytes(spoilt)
        said = refusal(run)
        assert len(said.splitlines()) == 1 and "--iteration" in said, case
        shutil.rmtree(root)
        shutil.copytree(root.with_name("kept"), root)
