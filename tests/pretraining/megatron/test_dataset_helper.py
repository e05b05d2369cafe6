"""Megatron-Core's dataset helper where its tree is root's: built in a copy, once, by a stand-in Makefile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[3] / "assets"
MAKEFILE = "helpers_cpp.py: helpers.cpp\n\tcp $< $@\n\techo built >>$(HOME)/builds\n"
CALL = """
import os
os.access = lambda path, mode: False  # the tree is somebody else's
from pretraining.megatron import compat as versions
versions.skip_compile_helpers()
import megatron.core.datasets.helpers_cpp as built
import megatron.bridge.training.initialize as initialize
initialize.compile_helpers()
print(built.answer, built.__file__)
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A Megatron tree with the helper's source, and a HOME beside it."""
    (tmp_path / "home").mkdir()
    datasets = tmp_path / "tree" / "megatron" / "core" / "datasets"
    training = tmp_path / "tree" / "megatron" / "bridge" / "training"
    for folder in (datasets, training):
        folder.mkdir(parents=True)
        for each in (folder, folder.parent, folder.parent.parent):
            (each / "__init__.py").touch()
    exits = "def compile_helpers():\n    raise SystemExit('make in a tree of root')\n"
    (datasets / "utils.py").write_text(exits)
    (training / "initialize.py").write_text("from megatron.core.datasets.utils import compile_helpers\n")
    (datasets / "helpers.cpp").write_text("answer = 42\n")
    (datasets / "Makefile").write_text(MAKEFILE)
    return tmp_path


def call(image: Path) -> subprocess.CompletedProcess[str]:
    variables = {"HOME": str(image / "home"), "PYTHONPATH": f"{ASSETS}:{image / 'tree'}", "PATH": os.environ["PATH"]}
    return subprocess.run([sys.executable, "-c", CALL], env=variables, text=True, capture_output=True, check=False)


def test_it_is_built_in_a_copy_below_home_once(image: Path) -> None:
    for _ in range(2):
        ended = call(image)
        assert ended.returncode == 0, ended.stderr
        answer, file = ended.stdout.split()
        assert answer == "42" and file.startswith(str(image / "home"))
    assert (image / "home" / "builds").read_text() == "built\n"
    assert not list((image / "tree").rglob("helpers_cpp*"))


def test_a_failed_build_says_what_make_said(image: Path) -> None:
    (image / "tree" / "megatron" / "core" / "datasets" / "Makefile").write_text("all:\n\t@echo no g++ >&2; exit 1\n")
    ended = call(image)
    assert ended.returncode != 0
    assert "UsageError" in ended.stderr and "make image" in ended.stderr
    assert not list((image / "home" / ".cache" / "nvfp4-playbook").iterdir())
