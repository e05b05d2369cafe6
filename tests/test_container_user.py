"""assets/container_user.py, which looks into an image and hands files over: here on folders of this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "assets" / "container_user.py"
USER = 12345

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


def script():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("container_user", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def image() -> Iterator[Path]:
    """What the script needs of an image, open to everybody, as pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        for name in ("torch", "megatron/core", "megatron/bridge"):
            (path / "lib" / name).mkdir(parents=True)
            (path / "lib" / name / "__init__.py").touch()
        shutil.copy(SCRIPT, path)
        yield path


def look(image: Path, python: str) -> dict:
    words = [python, str(image / SCRIPT.name), "check", f"{USER}:{USER}"]
    ended = subprocess.run(
        words, env={"PYTHONPATH": str(image / "lib"), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def open_python() -> str:
    """A Python that everybody can start."""
    for python in ("/usr/bin/python3", sys.executable):
        with_it = [python, "-c", "import sys; assert sys.version_info >= (3, 9)"]
        try:
            if subprocess.run(with_it, user=USER, group=USER, extra_groups=[], check=False).returncode == 0:
                return python
        except OSError:
            continue
    pytest.skip("no Python here that another user can start")


@pytest.mark.parametrize(
    ("closed", "mode", "named"),
    [
        (None, 0, ""),
        ("lib/megatron/bridge", 0o700, "lib/megatron/bridge (mode 0700, of user 0, group 0)"),
        ("lib/megatron", 0o700, "lib/megatron (mode 0700, of user 0, group 0)"),
        ("lib/megatron/core/__init__.py", 0o600, "lib/megatron/core/__init__.py (mode 0600, of user 0, group 0)"),
        ("lib/megatron/core/deep.py", 0o640, "lib/megatron/core/deep.py (mode 0640, of user 0, group 0)"),
        ("lib/torch/__init__.py", 0o600, "lib/torch/__init__.py (mode 0600, of user 0, group 0)"),
    ],
)
def test_the_first_thing_that_is_closed_is_named(image: Path, closed, mode, named) -> None:
    if closed:
        path = image / closed
        path.exists() or path.touch()
        path.chmod(mode)
    found = look(image, open_python())
    assert found["closed"] == (f"{image}/{named}" if named else "")
    assert all(found["modules"].values())


def test_an_interpreter_behind_a_closed_folder(image: Path) -> None:
    (image / "root").mkdir(mode=0o700)
    (image / "root" / "python").symlink_to(open_python())
    (image / "venv").mkdir()
    (image / "venv" / "python").symlink_to("../root/python")
    assert look(image, str(image / "venv" / "python"))["closed"] == f"{image}/root (mode 0700, of user 0, group 0)"


def test_a_python_that_fails_for_the_user_alone_says_how(image: Path) -> None:
    (image / "lib" / "sitecustomize.py").write_text(f"import os, sys\nif os.getuid() == {USER}: os._exit(3)\n")
    python = open_python()
    assert look(image, python)["closed"] == f"{os.path.abspath(python)} (exit code 3)"


def test_a_python_that_greets_and_takes_leave_is_understood(image: Path) -> None:
    text = "import atexit\nprint('welcome')\natexit.register(print, 'goodbye')\n"
    (image / "lib" / "sitecustomize.py").write_text(text)
    words = [open_python(), str(image / SCRIPT.name), "check", f"{USER}:{USER}"]
    ended = subprocess.run(words, env={"PYTHONPATH": str(image / "lib")}, capture_output=True, text=True)
    welcome, answer, goodbye = ended.stdout.splitlines()
    assert (welcome, goodbye) == ("welcome", "goodbye") and json.loads(answer)["closed"] == ""


def test_what_is_not_there_is_empty(image: Path) -> None:
    shutil.rmtree(image / "lib" / "megatron" / "bridge")
    found = look(image, open_python())
    assert found["modules"]["megatron.bridge"] == "" and found["modules"]["megatron.core"] and found["closed"] == ""


def test_what_root_made_since_then_is_handed_over_and_nothing_else(tmp_path: Path) -> None:
    module, run = script(), tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "weights").touch()
    (run / "away").symlink_to("/etc/passwd")
    (run / "theirs").touch()
    os.chown(run / "theirs", 777, 777)
    (run / "shared").touch()
    os.chown(run / "shared", 0, 777)
    assert module.hand(USER, USER, time.time() + 3600, [str(run)]) == {"handed": 0, "failed": ""}
    assert module.hand(USER, USER, time.time(), [str(run), str(tmp_path / "gone")]) == {"handed": 4, "failed": ""}
    owners = {path.name: (path.lstat().st_uid, path.lstat().st_gid) for path in run.rglob("*")}
    handed = dict.fromkeys(("checkpoints", "weights", "away"), (USER, USER))
    assert owners == {**handed, "theirs": (777, 777), "shared": (USER, 777)}
    assert Path("/etc/passwd").stat().st_uid == 0
    assert run.stat().st_uid == 0, "the mounted folder is not the container's"


def test_roots_folder_of_before_stays_roots_though_the_run_wrote_into_it(tmp_path: Path, monkeypatch) -> None:
    module, shared = script(), tmp_path / "a cache" / "of all"
    monkeypatch.setattr(module, "SLACK_SECONDS", 0)
    shared.mkdir(parents=True)
    time.sleep(0.05)
    since = time.time() - 0.02  # the kernel's clock for files ticks behind
    (shared / "new").touch()
    assert shared.stat().st_ctime >= since
    if module._made(str(shared), shared.stat()) >= since:
        pytest.skip("this file system does not say when a file was made")
    assert module.hand(USER, USER, since, [str(tmp_path)]) == {"handed": 1, "failed": ""}
    assert (shared / "new").stat().st_uid == USER and shared.stat().st_uid == 0
