"""The virtual environments, made for real with pip, from packages that need no network."""

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from playbook.common import venvs

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_made_once_and_brought_up_to_date(version_in, make_wheel, set_up, root: Path) -> None:
    assert set_up("host", venv=True) == f"Setting up .venv/host-{VERSION}: the launcher's packages, 0.2 GB ...\n"
    assert version_in(root, "host", "pkg_host") == "1.0"
    began = time.monotonic()
    assert set_up("host") == ""
    assert time.monotonic() - began < 2

    marker = root / ".venv" / "host" / "marker"
    marker.touch()
    (root / "requirements" / "host.txt").write_text(make_wheel(root, "pkg_host", "2.0"))
    assert "Setting up" in set_up("host")
    assert version_in(root, "host", "pkg_host") == "2.0" and marker.exists()  # changed, not made anew
    assert set_up("host") == ""

    (root / ".venv" / "host" / ".installed.json").write_text("")  # damaged
    assert "Setting up" in set_up("host")
    assert version_in(root, "host", "pkg_host") == "2.0" and not marker.exists()
    assert set_up("host") == ""


def test_the_test_environment_is_the_cpu_one_and_more(version_in, make_wheel, set_up, root: Path) -> None:
    set_up("cpu")
    assert [version_in(root, "cpu", f"pkg_{file}") for file in ("cpu", "megatron", "host", "dev")] == [
        "1.0", "1.0", None, None,
    ]  # fmt: skip
    assert set_up("test") == f"Setting up .venv/cpu-{VERSION}: the CPU runtime and the test tools ...\n"
    assert version_in(root, "cpu", "pkg_dev") == version_in(root, "cpu", "pkg_host") == "1.0"
    assert set_up("cpu") == set_up("test") == ""
    (root / "requirements" / "dev.txt").write_text(make_wheel(root, "pkg_dev", "2.0"))
    assert set_up("cpu") == ""  # only what it is made from counts
    assert "Setting up" in set_up("test")


def test_a_failed_installation_says_why_and_goes_on_from_there(version_in, make_wheel, set_up, root: Path) -> None:
    (root / "requirements" / "megatron.txt").write_text("no-such-package-here==9\n")
    said = set_up("cpu", code=1)
    assert "pip could not install" in said and "megatron.txt" in said
    assert "No matching distribution found for no-such-package-here==9" in said
    assert "Check the network and the disk, then run the same command again" in said
    log = Path(said.rsplit(" ", 1)[-1].strip())
    assert log == root / ".venv" / f"cpu-{VERSION}.log" and "no-such-package-here" in log.read_text()
    assert version_in(root, "cpu", "pkg_cpu") == "1.0"
    marker = root / ".venv" / f"cpu-{VERSION}" / "marker"
    marker.touch()
    (root / "requirements" / "megatron.txt").write_text(make_wheel(root, "pkg_megatron"))
    set_up("cpu")
    assert version_in(root, "cpu", "pkg_megatron") == "1.0" and marker.exists()
    assert set_up("cpu") == ""


def slow_pip(seconds: int) -> str:
    """Code that makes every installation take longer."""
    return (
        "import time\nplain = environments._pip\n"
        f"def slow(*a):\n    time.sleep({seconds})\n    plain(*a)\nenvironments._pip = slow\n"
    )


def test_an_interrupted_set_up_is_completed(version_in, command, set_up, until, root: Path) -> None:
    with subprocess.Popen(
        **command("host", slow_pip(60)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        until(
            lambda: (root / ".venv" / f"host-{VERSION}.log").exists(), 60
        )  # the folder is there, the packages are not
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "setup: interrupted; the same command goes on from here\n"
    assert "Setting up" in set_up("host")
    assert version_in(root, "host", "pkg_host") == "1.0"
    assert set_up("host") == ""


def test_two_at_once(version_in, command, root: Path) -> None:
    processes = [subprocess.Popen(**command("host"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [errors for _, errors in said] == ["", ""]
    assert sorted(len(out.splitlines()) for out, _ in said) == [0, 1]  # the second waits and finds it done
    assert version_in(root, "host", "pkg_host") == "1.0"


EMPTY = """
def create(folder):
    environments.shutil.rmtree(folder, ignore_errors=True)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
environments._create, environments._pip = create, lambda *_: None
"""  # an environment in no time, where only its folder counts


def make_old(root: Path, python: list[int]) -> None:
    """Move `host` to where it lay when all Pythons had one folder."""
    (root / ".venv" / "host").unlink()
    (root / ".venv" / f"host-{VERSION}").rename(root / ".venv" / "host")
    stamp = root / ".venv" / "host" / ".installed.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "python": python}))


def test_each_python_has_its_own(set_up, root: Path) -> None:
    """Of two Pythons neither undoes the other's, and `.venv/host` leads to the one that was last asked for."""
    other = [3, 12] if sys.version_info[:2] == (3, 11) else [3, 11]
    theirs = "host-" + ".".join(map(str, other))
    set_up("host", EMPTY)
    make_old(root, other)
    marker = root / ".venv" / "host" / "marker"
    marker.touch()
    assert f"Setting up .venv/host-{VERSION}: " in set_up("host", EMPTY)
    folders = root / ".venv"
    assert (folders / theirs / "marker").exists() and not marker.exists()
    assert os.readlink(folders / "host") == f"host-{VERSION}"
    assert set_up("host", f"environments.VERSION, environments._missing = {theirs[5:]!r}, lambda *_: []") == ""
    assert os.readlink(folders / "host") == theirs
    assert set_up("host", "environments.ensure = environments.make") == ""
    assert os.readlink(folders / "host") == theirs
    assert set_up("host", EMPTY) == ""
    assert sorted(path.name for path in folders.iterdir() if path.is_dir()) == sorted(
        ["host", theirs, f"host-{VERSION}"]
    )


def test_an_environment_from_before_is_taken_over(set_up, root: Path) -> None:
    set_up("host", EMPTY)
    make_old(root, list(sys.version_info[:2]))
    marker = root / ".venv" / "host" / "marker"
    marker.touch()
    assert set_up("host", EMPTY) == "" and marker.exists() and (root / ".venv" / "host").is_symlink()
    make_old(root, [])
    (root / ".venv" / "host" / ".installed.json").write_text("")
    assert "Setting up" in set_up("host", EMPTY) and not marker.exists()


PYTHON = json.dumps(list(sys.version_info[:2]))


@pytest.mark.parametrize(
    ("content", "installed"),
    [
        (f'{{"python": {PYTHON}, "files": {{"host.txt": "x"}}}}', {"host.txt": "x"}),
        (f'{{"python": {PYTHON}, "files": {{}}}}', {}),
        ('{"python": [3, 10], "files": {"host.txt": "x"}}', None), # made by another Python
        (f'{{"python": {PYTHON}}}', None),
        (f'{{"python": {PYTHON}, "files": null}}', None),
        ("{}", None), ("[]", None), ("null", None), ("{", None), ("", None),
    ],
)  # fmt: skip
def test_what_counts_as_installed(tmp_path: Path, content: str, installed: dict | None) -> None:
    assert venvs._installed(tmp_path) is None
    (tmp_path / ".installed.json").write_text(content)
    assert venvs._installed(tmp_path) is None  # there is no interpreter
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert venvs._installed(tmp_path) is None  # nor a package
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "lib" / version / "site-packages" / "pip").mkdir(parents=True)
    assert venvs._installed(tmp_path) == installed


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_without_venv(set_up, root: Path, module: str) -> None:
    said = set_up("host", f"sys.modules[{module!r}] = None", code=1)
    assert "cannot make virtual environments" in said and "-venv) or name another Python: make PYTHON=" in said
    assert said.count("\n") == 2  # what it does, and why it cannot
    assert not (root / ".venv" / "host").is_symlink() and not (root / ".venv" / f"host-{VERSION}").exists()


def test_a_place_that_cannot_be_written(set_up, root: Path) -> None:
    (root / ".venv").write_text("a file")
    said = set_up("host", code=1)
    assert said.splitlines()[-1].startswith("setup: ") and str(root / ".venv") in said


@pytest.mark.parametrize("arguments", [(), ("gpu",), ("host", "cpu")])
def test_setup_by_a_wrong_name(project: Path, arguments: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [sys.executable, str(project / "scripts" / "setup.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (2, "setup: name one of host, cpu, cluster, test\n")


def other_pythons() -> list[str]:
    """Interpreters on this machine that the pinned packages do not exist for."""
    found = [shutil.which(f"python{version}") for version in ("2", *(f"3.{minor}" for minor in range(4, 20)))]
    managed = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser().glob("versions/*/bin/python")
    others = []
    for python in [*filter(None, found), *map(str, managed)]:
        code = "import sys; sys.exit(sys.version_info[:2] in ((3, 11), (3, 12)))"
        if not subprocess.run([python, "-c", code], capture_output=True, check=False).returncode:
            others.append(python)
    return others


def test_a_wrong_python_is_told_in_one_line(project: Path) -> None:
    found = other_pythons()
    if not found:
        pytest.skip("this machine has no Python but 3.11 and 3.12")
    for python in found:
        script = str(project / "scripts" / "setup.py")
        ended = subprocess.run([python, script, "host"], capture_output=True, text=True, check=False)
        assert ended.returncode == 2, (python, ended.stderr)
        assert ended.stderr.startswith("setup: ") and ended.stderr.count("\n") == 1
        assert "exist for 3.11 and 3.12" in ended.stderr and "PYTHON=python3.12" in ended.stderr


def test_setup_reads_in_an_old_python(project: Path) -> None:
    """No new syntax stands in setup.py, else the sentence becomes a traceback."""
    source = (project / "scripts" / "setup.py").read_text()
    tree = ast.parse(source, feature_version=(3, 4))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.AnnAssign | ast.NamedExpr)]
    source.encode("ascii")
    code = source.replace("sys.version_info[:2]", "(3, 10)").replace("SUPPORTED = ((3, 11), (3, 12))", "SUPPORTED = ()")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and " is Python 3.10, and the pinned packages" in ended.stderr


def test_supported_versions_are_the_same_everywhere(project: Path) -> None:
    assert 'requires-python = ">=3.11,<3.13"' in (project / "pyproject.toml").read_text()
    assert "SUPPORTED = ((3, 11), (3, 12))" in (project / "scripts" / "setup.py").read_text()


def test_every_requirement_is_pinned(project: Path) -> None:
    for _, files, _ in venvs.ENVIRONMENTS.values():
        for file in files:
            lines = (project / "requirements" / file).read_text().splitlines()
            assert all("==" in line for line in lines if line.strip() and not line.startswith("#")), file


@pytest.mark.parametrize("lost", ["lib", "lib/python{}.{}/site-packages/folder_of_host"])
def test_what_was_deleted_is_made_anew(version_in, make_wheel, set_up, root: Path, lost: str) -> None:
    (root / "requirements" / "host.txt").write_text(make_wheel(root, "pkg_host", module="folder_of_host/__init__"))
    set_up("host")
    assert set_up("host") == ""
    shutil.rmtree(root / ".venv" / "host" / lost.format(*sys.version_info))
    assert "Setting up .venv/host" in set_up("host")
    assert version_in(root, "host", "folder_of_host") == "1.0"


def test_progress_is_a_line_now_and_then(set_up) -> None:
    often = "environments.SAY_EVERY_SECONDS = 0.2\n"
    first, *said = set_up("host", often).splitlines()
    assert "0.2 GB" in first and said and all(re.match(r" +\d+ s  \S", line) for line in said)


def test_on_a_terminal_progress_is_a_line_that_moves(command, root: Path) -> None:
    ours, theirs = os.openpty()
    words = command("host")
    process = subprocess.Popen(**{**words, "stdin": theirs}, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while piece := os.read(ours, 1000):
            said += piece
    os.close(ours)
    assert process.wait(timeout=120) == 0
    assert said.count(b"\n") == 1 and b"\r" in said.partition(b"\n")[2]
    assert said.rpartition(b"\r")[2] == b"", "the line is wiped at the end"


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_checkout_of_somebody_else_says_what_to_do(command, root: Path) -> None:
    words = command("host")
    if os.geteuid() == 0:
        root.chmod(0o555), root.parent.chmod(0o755)
        words["args"] = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *words["args"]]
        words["env"]["PYTHONDONTWRITEBYTECODE"] = "1"
    else:
        root.chmod(0o555)
    ended = subprocess.run(**words, capture_output=True, timeout=60, check=False)
    root.chmod(0o755)
    assert ended.returncode == 1
    assert re.fullmatch(
        rf"setup: {root}/\.venv cannot be written \(.*\), .*clone of your own.*DRY_RUN=1.*\n", ended.stderr
    )


def test_a_dry_run_sets_nothing_up(root: Path, monkeypatch) -> None:
    monkeypatch.setattr(venvs, "VENVS", root / ".venv")
    assert venvs.for_a_dry_run("host") == Path(sys.executable)
    assert not (root / ".venv").exists()


def test_a_stamp_of_before_forgets_the_password(version_in, set_up, root: Path) -> None:
    set_up("cpu")
    stamp = root / ".venv" / f"cpu-{VERSION}" / ".installed.json"
    made = json.loads(stamp.read_text())
    made["files"]["cpu.txt"] += " https://me:hunter2@mirror/simple"
    stamp.write_text(json.dumps(made))
    before = version_in(root, "cpu", "pkg_cpu")
    set_up("cpu")
    assert "hunter2" not in stamp.read_text() and version_in(root, "cpu", "pkg_cpu") == before
    assert json.loads(stamp.read_text())["files"]["cpu.txt"] == made["files"]["cpu.txt"].split(" ")[0]
