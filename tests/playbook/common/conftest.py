"""A project whose environments are made of packages of its own."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from playbook.common import venvs

HEAD = """
import sys
from pathlib import Path
from playbook.common import venvs as environments
environments.PROJECT = Path({project!r})
environments.VENVS = environments.PROJECT / ".venv"
environments.REQUIREMENTS = environments.PROJECT / "requirements"

import shutil
import subprocess
as_it_is = subprocess.run

def run(words, **more):
    if words[1:3] != ["-m", "venv"]:
        return as_it_is(words, **more)
    shutil.copytree({bare!r}, words[3], symlinks=True)
    return subprocess.CompletedProcess(words, 0, "", "")

subprocess.run = run  # `python -m venv` takes three seconds
"""
AS_IT_IS = "subprocess.run = as_it_is"
RUN = "sys.exit(environments.main(sys.argv[1:]))"


def _make_wheel(folder: Path, name: str, version: str = "1.0", module: str = "") -> str:
    """A package of one module; gives the requirement that installs it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module or name}.py", f"version = {version!r}\n")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    return f"{path}\n"


@pytest.fixture
def make_wheel() -> Callable[..., str]:
    """`make_wheel(folder, "torch", "9.9")`: the requirement that installs it."""
    return _make_wheel


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with requirements of its own."""
    (tmp_path / "requirements").mkdir()
    for file in ("host", "cpu", "megatron", "dev"):
        (tmp_path / "requirements" / f"{file}.txt").write_text(_make_wheel(tmp_path, f"pkg_{file}"))
    return tmp_path


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment as `python -m venv` makes it: a copy of it is one, too."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def command(root: Path, project: Path, bare: Path):
    """The words and the environment that set up `root`, after the given code."""

    def words(name: str, code: str = "", **more: str) -> dict:
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "TORCH_INDEX"))}
        env = plain | {"PIP_NO_INDEX": "1", "PYTHONPATH": f"{project / 'scripts'}:{project / 'assets'}"} | more
        script = HEAD.format(project=str(root), bare=str(bare)) + code + "\n" + RUN
        return {"args": [sys.executable, "-c", script, name], "env": env, "stdin": subprocess.DEVNULL, "text": True}

    return words


@pytest.fixture
def set_up(command):
    """`set_up("host", code=0)`: what it printed. Of `venv=True` the environment is made by `python -m venv`."""

    def run(name: str, changed: str = "", *, code: int = 0, venv: bool = False, **more: str) -> str:
        changed = AS_IT_IS * venv + "\n" + changed
        ended = subprocess.run(**command(name, changed, **more), capture_output=True, timeout=120, check=False)
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout + ended.stderr

    return run


@pytest.fixture
def version_in(root: Path) -> Callable[[Path, str, str], str | None]:
    """`version_in(root, "cpu", "torch")`: of a package in an environment, None where it is not there."""

    def version(root: Path, environment: str, module: str) -> str | None:
        code = f"import {module}; print({module}.version)"
        python = root / ".venv" / f"{environment}-{venvs.VERSION}" / "bin" / "python"
        ended = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
        return ended.stdout.strip() or None

    return version
