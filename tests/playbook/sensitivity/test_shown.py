"""The table of a measured run and its heat map, and what is no such run."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from playbook.sensitivity import shown
from playbook.sensitivity.heat_map import DRAWING, PICTURE
from pretraining.errors import UsageError
from pretraining.record import run_folder


def test_a_small_model_is_shown_whole(measured: Callable[..., Path], capsys) -> None:
    shown.show(measured(4, {("fc2", 3): 0.7}, [("qkv", 0)]), 0.11, draw=True)
    told = capsys.readouterr().out
    rows = [line.split() for line in told.splitlines() if line.split()[1:2] and line.split()[1] in ("qkv", "fc2")]
    assert rows[-1] == ["3", "fc2", "70.0", "70.0", "70.0", "3.0", "7.0", "1.4", "low"]
    assert len(rows) == 7 and ["0", "fc2", *["10.0"] * 3, "3.0", "7.0", "10.0"] in rows
    assert "9.9 times its own rounding noise" in told and "in 1 of 15 linear" in " ".join(told.split())
    assert 'make compare MODEL=tiny BF16_TAIL=0 NVFP4="bf16=qkv:0,fc2:3"' in told
    folder = run_folder_of(told)
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
    drawn = ElementTree.parse(folder / DRAWING).getroot()
    said = [text for each in drawn.iter() if each.tag.endswith("text") for text in each.itertext()]
    assert {"fprop", "dgrad", "wgrad", "qkv", "fc2", "BF16", "70.0"} <= {text.strip() for text in said}


def run_folder_of(told: str) -> Path:
    return next(Path(line.strip()).parent for line in told.splitlines() if line.endswith(PICTURE))


def test_a_large_model_is_shown_by_projections_and_its_worst(measured: Callable[..., Path], capsys) -> None:
    shown.show(measured(32, {("fc1", 30): 0.4}), 0.1)
    told = capsys.readouterr().out
    assert 'make compare MODEL=tiny ARGS="model.num_layers=32" BF16_TAIL=0 NVFP4="bf16=' in told
    rows = [line.split() for line in told.splitlines() if line.split()[1:2] == ["fc1"]]
    assert rows[0][:2] == ["all", "fc1"] and rows[0][2] == "12.1"  # the root mean square of 31 times 10 and once 40
    assert rows[1][:3] == ["30", "fc1", "40.0"]


def test_nothing_fits(measured: Callable[..., Path], capsys) -> None:
    shown.show(measured(4), 0.001)
    assert "For 0.1 % of the linear layers' compute nothing more can be kept" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("layer", 9, "its layers are not numbered from 0 on"),
        ("layer", -1, "its layers are not numbered from 0 on"),
        ("layer", None, "its layers are not numbered from 0 on"),
        ("projection", "fc3", "'fc3' is no projection"),
    ],
)
def test_a_damaged_layer(measured: Callable[..., Path], name: str, value: object, words: str) -> None:
    path = measured(2) / run_folder.SENSITIVITY
    content = json.loads(path.read_text())
    content["layers"][-4:] = [each | {name: value} for each in content["layers"][-4:]]
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=f"cannot be read .{words}.; `make sensitivity` makes a new one"):
        shown.show(path.parent, 0.15, draw=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist: the run was not measured"),
        ("{", "cannot be read"),
        ('{"kind": "other"}', "another program's"),
        ("[]", "cannot be read"),
    ],
)
def test_what_is_no_measured_run(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / run_folder.SENSITIVITY).write_text(content)
    with pytest.raises(UsageError, match=words):
        shown.show(tmp_path, 0.15)
