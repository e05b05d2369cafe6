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
"""
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


@pytest.fixture
def command(root: Path, project: Path):
    """The words and the environment that set up `root`, after the given code."""

    def words(name: str, code: str = "", **more: str) -> dict:
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "TORCH_INDEX"))}
        env = plain | {"PIP_NO_INDEX": "1", "PYTHONPATH": f"{project / 'scripts'}:{project / 'assets'}"} | more
        script = HEAD.format(project=str(root)) + code + "\n" + RUN
        return {"args": [sys.executable, "-c", script, name], "env": env, "stdin": subprocess.DEVNULL, "text": True}

    return words


@pytest.fixture
def set_up(command):
    """`set_up("host", code=0)`: what it printed."""

    def run(name: str, changed: str = "", *, code: int = 0, **more: str) -> str:
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
