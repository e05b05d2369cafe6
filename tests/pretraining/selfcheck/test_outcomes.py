"""What `make selfcheck` says of comparisons that could not be made, and what its script leaves."""

import importlib.util
import json
import os
import socket
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this machine")

from stand_ins import Reference, Specified, matrix

from pretraining.request.recipe.nvfp4_recipe import Rounding
from pretraining.run import run_facts as machine
from pretraining.selfcheck import FAST_MATH, check, engines, report

DRAWS = 16
RHT = Rounding(rht=True)


def test_what_fails_is_told_without_whose_machine_it_is(monkeypatch):
    monkeypatch.setenv("USER", "wilhelmina")

    class Broken(Reference):
        def quantize(self, x, mode):
            raise RuntimeError(f"/home/wilhelmina/te/cast.cu:12: no kernel on {socket.gethostname()}, wilhelmina\n" * 9)

    found = list(check.exact("x", matrix(), Rounding(), Broken(), Specified(), "cpu"))
    assert [each.side for each in found[:2]] == list(engines.SIDES)
    for each in found[:2]:
        assert not each.equal and each.failure.startswith("RuntimeError: cast.cu:12: no kernel on ..., ...")
        assert "wilhelmina" not in each.failure and socket.gethostname() not in each.failure
    assert all(each.equal for each in found[2:]), "our kernels are checked all the same"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("[Errno 13] Permission denied: '/home/alice'", "[Errno 13] Permission denied: '...'"),
        ("cannot write /Users/alice/a.json of alice", "cannot write ... of ..."),
        ("/mnt/home/alice/te/cast.cu:12 in (/root)", "cast.cu:12 in (...)"),
        (
            "~alice/.cache and /scratch/team/alice, libcublas in /opt/libcublas.so.12",
            "... and ..., libcublas in libcublas.so.12",
        ),
        ("GET https://alice:hunter2@host.corp/x failed", "GET ... failed"),
        ("expected 3 or 4 values and/or 1/2", "expected 3 or 4 values and/or 1/2"),
    ],
)
def test_an_error_names_no_home_and_no_secret_whoever_runs_it(monkeypatch, said, shown):
    monkeypatch.delenv("USER", raising=False)
    assert check.anonymous(RuntimeError(said)) == shown


class Silent(Reference):
    """Native kernels that return nothing."""

    def quantize(self, x, mode):
        return {}


class Corner(Specified):
    """Our kernels, of a part of the matrix."""

    def kernels(self, x, mode, seed=0):
        made = super().kernels(x, mode, seed)
        return {side: each._replace(values=each.values[:16, :16]) for side, each in made.items()}


def both(native, ours):
    found = list(check.exact("x", matrix(32, 64), RHT, native, ours, "cpu"))
    drawn = Rounding(rht=True, stochastic=True)
    return found, list(check.stochastic(matrix(32, 64), drawn, native, ours, "cpu", DRAWS))


def test_what_was_not_compared_is_not_equal():
    for found in both(Silent(), Specified()):
        native = [each for each in found if not each.side.startswith(check.OURS)]
        assert [each.side for each in native] == list(engines.SIDES) and not report.equal(found)
        assert all("no rows" in each.failure or "no columns" in each.failure for each in native)
        assert report.verdict(found).startswith(f"could not be made: 2 of {len(found)} ")
    for found in both(Reference(), Corner()):
        ours = [each for each in found if each.side.startswith(check.OURS)]
        assert [each.side for each in ours] == [check.OURS + side for side in engines.SIDES]
        assert not any(each.equal for each in ours)
        assert "shape (16, 16), expected (32, 64)" in ours[0].problem
        assert "shape (16, 16), expected (64, 32)" in ours[1].problem
        assert report.verdict(found).startswith("differs: 2 ")


def test_an_element_that_is_not_a_number_is_compared():
    x = matrix(32, 64)
    x[3, 5] = torch.nan

    class Zero(Specified):
        def kernels(self, x, mode, seed=0):
            made = super().kernels(x, mode, seed)
            return {side: each._replace(values=each.values.nan_to_num(0)) for side, each in made.items()}

    specified = engines.specified(x, Rounding())["rows"]
    assert specified.values.isnan().any()
    made = Zero().kernels(x, Rounding())["rows"]
    assert "kernel values at" in check._our_kernels("x", Rounding(), "rows", made, specified).problem


def test_the_tensor_scale_of_our_stochastic_rounding():
    class Other(Specified):
        def kernels(self, x, mode, seed=0):
            made = super().kernels(x, mode, seed)
            return {side: each._replace(scale=each.scale * (1 + (seed == 3))) for side, each in made.items()}

    found = {each.side: each for each in both(Reference(), Other())[1]}
    wrong = [side for side, each in found.items() if not each.equal]
    assert wrong == [f"{check.OURS}{side}: tensor scale" for side in engines.SIDES]


@pytest.mark.parametrize("fast", ["0", "1"])
def test_a_failure_is_no_difference(monkeypatch, capsys, fast):
    monkeypatch.setenv(FAST_MATH, fast)

    class Renamed(Reference):
        def quantize(self, x, mode):
            raise TypeError("unexpected keyword argument 'with_rht'")

    found = list(check.exact("x", matrix(), RHT, Renamed(), Specified(), "cpu"))
    verdict = report.verdict(found)
    assert verdict.startswith("could not be made: 2 of 4 ") and "\n" not in verdict
    assert verdict.endswith("The first, x, 1x16 RHT, rows: TypeError: unexpected keyword argument 'with_rht'")
    assert not report.equal(found)
    report.show(found)
    assert "(1 could not be made)" in capsys.readouterr().out

    different = list(check.exact("x", matrix(), RHT, Reference(before=lambda x: x.float()), Specified(), "cpu"))
    verdict = report.verdict(found + different)
    assert verdict.startswith("differs: 1 of 8 ") and "\ncould not be made: 2 of 8 " in verdict


@pytest.fixture
def script(monkeypatch, project):
    """assets/selfcheck.py with the stand-ins on both sides, on a GPU that is said to be there."""
    spec = importlib.util.spec_from_file_location("selfcheck_script", project / "assets" / "selfcheck.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "require_native", lambda: None)

    def small(native, ours, vectors, device):
        for mode in check.EXACT:
            yield from check.exact("x", matrix(), mode, script.native, Specified(), "cpu")

    device = {"kind": "gpu", "name": "NVIDIA GB300", "capability": [10, 3], "uuid": "GPU-1234", "driver": "580.1"}
    monkeypatch.setattr(check, "everything", small)
    monkeypatch.setattr(machine, "describe_device", lambda on_gpu: dict(device))
    script.native = Reference()

    def main_with(folder):
        monkeypatch.setattr(sys, "argv", ["selfcheck.py", "--folder", str(folder)])
        return script.main()

    script.main_with = main_with
    return script


def test_the_file_and_the_verdict(script, tmp_path, capsys, monkeypatch):
    for name in ("equal", "fast"):
        (tmp_path / name).mkdir()
    assert script.run(tmp_path / "equal", "abc") == 0
    said = capsys.readouterr().out
    assert "\nequal: " in said and str(tmp_path / "equal" / "selfcheck.json") in said and "send" in said
    text = (tmp_path / "equal" / "selfcheck.json").read_text()
    file = json.loads(text)
    assert file["equal"] and file["commit"] == "abc" and file["device"]["name"] == "NVIDIA GB300"
    assert not file["fast_math"] and file["versions"]["torch"] and len(file["results"]) == 12
    for secret in (socket.gethostname(), "GPU-1234", str(tmp_path), os.path.expanduser("~/")):
        assert secret not in text
    assert [each.name for each in (tmp_path / "equal").iterdir()] == ["selfcheck.json"]

    monkeypatch.setenv(FAST_MATH, "1")
    script.native = Reference(before=lambda x: x.float())
    assert script.run(tmp_path / "fast", "abc") == 1
    said = capsys.readouterr().out
    file = json.loads((tmp_path / "fast" / "selfcheck.json").read_text())
    assert file["fast_math"] and not file["equal"] and file["verdict"] in said
    assert said.startswith("NVTE_USE_FAST_MATH is on")
    for words in ("sums are not rounded to BF16", "NVTE_USE_FAST_MATH=0 make selfcheck"):
        assert words in file["verdict"]


def test_an_error_between_comparisons_leaves_what_was_found(script, tmp_path, capsys, monkeypatch):
    def broken(*sides):
        yield from check.exact("x", matrix(), RHT, Reference(), Specified(), "cpu")
        raise SystemError("NULL result without error in /home/wilhelmina/x")

    monkeypatch.setattr(check, "everything", broken)
    assert script.main_with(tmp_path / "x") == 1
    assert "\ncould not be made: 1 of 5 " in capsys.readouterr().out
    file = json.loads((tmp_path / "x" / "selfcheck.json").read_text())
    assert not file["equal"] and file["could_not_be_made"] == 1 and len(file["results"]) == 5
    assert all(each["equal"] for each in file["results"][:4])
    assert file["results"][4]["failure"] == "SystemError: NULL result without error in ..."


def test_the_folder_is_made_first_and_stays_only_with_a_file(script, tmp_path, capsys, monkeypatch):
    def interrupted(*sides):
        assert any(each.is_dir() for each in (tmp_path / "new", tmp_path / "old"))
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "everything", interrupted)
    (tmp_path / "old").mkdir()
    assert [script.main_with(tmp_path / name) for name in ("new", "old")] == [130, 130]
    assert [each.name for each in tmp_path.iterdir()] == ["old"], "ours is gone, the user's is left"

    monkeypatch.setattr(check, "everything", lambda *sides: pytest.fail("worked for nothing"))
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert script.main_with(tmp_path / "file" / "x") == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
    monkeypatch.setattr(script.os, "access", lambda path, mode: path != tmp_path / "old")
    assert script.main_with(tmp_path / "old") == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_it_needs_no_megatron(project, environment):
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEGATRON, str(project / "assets")],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout.strip()) == (0, "imported"), ended.stderr


WITHOUT_MEGATRON = """
import sys
sys.modules["megatron"] = None
sys.path.insert(0, sys.argv[1])
import selfcheck
from pretraining.run import run_facts as environment
from pretraining.selfcheck import check
from pretraining.selfcheck import engines
from pretraining.selfcheck import report
assert report.describe([], "", environment.describe_device(False))["results"] == []
print("imported")
"""
