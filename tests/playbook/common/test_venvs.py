"""The virtual environments, made for real with pip, from packages that need no network."""

import ast
import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from playbook.common import torch_index, venvs

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
HEAD = """
import sys
from pathlib import Path
from playbook.common import venvs as environments
environments.PROJECT = Path({project!r})
environments.VENVS = environments.PROJECT / ".venv"
environments.REQUIREMENTS = environments.PROJECT / "requirements"
"""
RUN = "sys.exit(environments.main(sys.argv[1:]))"


def make_wheel(folder: Path, name: str, version: str = "1.0", module: str = "") -> str:
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
def root(tmp_path: Path) -> Path:
    """A project with requirements of its own."""
    (tmp_path / "requirements").mkdir()
    for file in ("host", "cpu", "megatron", "dev"):
        (tmp_path / "requirements" / f"{file}.txt").write_text(make_wheel(tmp_path, f"pkg_{file}"))
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


def version_in(root: Path, environment: str, module: str) -> str | None:
    """The version of a package in an environment, None where it is not there."""
    code = f"import {module}; print({module}.version)"
    python = root / ".venv" / f"{environment}-{VERSION}" / "bin" / "python"
    ended = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return ended.stdout.strip() or None


def test_made_once_and_brought_up_to_date(set_up, root: Path) -> None:
    assert set_up("host") == f"Setting up .venv/host-{VERSION}: the launcher's packages, 0.2 GB ...\n"
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


def test_the_test_environment_is_the_cpu_one_and_more(set_up, root: Path) -> None:
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


def test_a_failed_installation_says_why_and_goes_on_from_there(set_up, root: Path) -> None:
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


def test_an_interrupted_set_up_is_completed(command, set_up, until, root: Path) -> None:
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


def test_two_at_once(command, root: Path) -> None:
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
        ('{"python": [3, 10], "files": {"host.txt": "x"}}', None),  # made by another Python
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


def test_another_torch_index_counts_for_torch_alone(monkeypatch) -> None:
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    before = {file: venvs._fingerprint(file) for file in ("cpu.txt", "megatron.txt", "host.txt")}
    monkeypatch.setenv("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
    changed = [file for file in before if venvs._fingerprint(file) != before[file]]
    assert changed == ["cpu.txt"]
    named = {"cpu.txt": venvs._fingerprint("cpu.txt")}
    monkeypatch.setattr(venvs, "_installed", lambda folder: named)
    assert venvs._missing(Path("cpu"), named) == []
    assert venvs._missing(Path("cpu"), {"cpu.txt": before["cpu.txt"]}) == []  # torch from elsewhere is torch
    monkeypatch.setattr(venvs, "_installed", lambda folder: before)
    assert venvs._missing(Path("cpu"), named) == ["cpu.txt"]
    assert torch_index.pin(venvs.REQUIREMENTS / "cpu.txt").startswith("torch==")


@pytest.mark.parametrize("lost", ["lib", "lib/python{}.{}/site-packages/folder_of_host"])
def test_what_was_deleted_is_made_anew(set_up, root: Path, lost: str) -> None:
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


class Index:
    """A package index on this machine: PyTorch's page of CPU wheels, or what is wrong with it."""

    def __init__(self, folder: Path, how: str) -> None:
        wheel = Path(make_wheel(folder, "torch", "9.9+cpu", module="torch").strip())
        content = wheel.read_bytes()
        index = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(f"{self.command} {self.path}")
                if how == "silent":
                    index.ended.wait(30)
                body = content if self.path.endswith(".whl") else f'<a href="/{wheel.name}">{wheel.name}</a>'.encode()
                gone = how == "broken" and self.command == "GET"
                self.send_response(404 if gone else 200)
                self.send_header(
                    "Content-Type", "application/octet-stream" if self.path.endswith(".whl") else "text/html"
                )
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(b"" if self.command == "HEAD" else body)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.asked: list[str] = []
        self.ended = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/whl/cpu"

    def close(self) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def index(tmp_path_factory):
    """`index("silent")`: an index of that kind, which is the one of CPU wheels, beside no GPU."""
    made = []

    def start(how: str) -> Index:
        made.append(Index(tmp_path_factory.mktemp("index"), how))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("how", "version", "says"),
    [
        ("whole", "9.9+cpu", "PyTorch: the CPU wheel of {url}, 1.5 GB installed: no NVIDIA GPU is here"),
        ("broken", "9.9", "PyTorch: {url} did not give it; the plain wheel, up to 4.7 GB"),
    ],
)
def test_without_a_gpu_the_cpu_wheel_is_taken_by_itself(
    set_up, index, root: Path, tmp_path, how, version, says
) -> None:
    there = index(how)
    (tmp_path / "plain").mkdir()
    make_wheel(tmp_path / "plain", "torch", "9.9", module="torch")
    (root / "requirements" / "cpu.txt").write_text(f"--find-links {tmp_path / 'plain'}\ntorch==9.9\n")
    code = "from playbook.common import pci, torch_index\npci.in_the_machine = lambda: False\n"
    code += f"torch_index.CPU_WHEELS = {there.url!r}"
    free = {"PIP_NO_INDEX": "", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", "NO_PROXY": "127.0.0.1"}
    said = set_up("cpu", code, **free)
    assert says.format(url=there.url) in said
    assert version_in(root, "cpu", "torch") == version
    assert there.asked[0] == "HEAD /whl/cpu/torch/"
    assert set_up("cpu") == ""


@pytest.mark.parametrize(
    ("how", "gpu", "variables", "says"),
    [
        ("silent", False, {}, "did not answer within 3 s"),
        ("whole", True, {}, "an NVIDIA GPU is here"),
        ("whole", False, {"PIP_INDEX_URL": "http://mirror/simple"}, "pip is told where to look (env index-url)"),
        ("whole", False, {"PIP_NO_INDEX": "1"}, "pip is told where to look (env no-index)"),
        ("whole", False, {"PIP_CONFIG_FILE": "{folder}/pip.conf"}, "pip is told where to look (global index-url)"),
        ("whole", False, {"TORCH_INDEX": "http://mine/simple"}, "from TORCH_INDEX"),
    ],
)
def test_else_pips_own_index_and_why(index, tmp_path: Path, monkeypatch, how, gpu, variables, says) -> None:
    for name in [name for name in os.environ if name.startswith(("PIP_", "TORCH_INDEX"))]:
        monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = http://mirror/simple\n")
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "NO_PROXY": "127.0.0.1", **variables}.items():
        monkeypatch.setenv(name, value.format(folder=tmp_path))
    there = index(how)
    monkeypatch.setattr(torch_index, "CPU_WHEELS", there.url)
    monkeypatch.setattr(torch_index.pci, "in_the_machine", lambda: gpu)
    found = torch_index.choose(Path(sys.executable))
    assert (found.url, found.by_itself) == (variables.get("TORCH_INDEX"), False)
    assert says in found.why and ("up to 4.7 GB" in found.why or found.url)
    assert (there.asked == []) is (how == "whole"), "nobody is asked for what is not wanted"


def test_the_probe_gives_up_in_three_seconds(index, monkeypatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    there = index("silent")
    began = time.monotonic()
    assert not torch_index.answers(f"{there.url}/torch/")
    assert time.monotonic() - began < torch_index.PATIENCE_SECONDS + 2


def test_a_stamp_of_before_forgets_the_password(set_up, root: Path) -> None:
    set_up("cpu")
    stamp = root / ".venv" / f"cpu-{VERSION}" / ".installed.json"
    made = json.loads(stamp.read_text())
    made["files"]["cpu.txt"] += " https://me:hunter2@mirror/simple"
    stamp.write_text(json.dumps(made))
    before = version_in(root, "cpu", "pkg_cpu")
    set_up("cpu")
    assert "hunter2" not in stamp.read_text() and version_in(root, "cpu", "pkg_cpu") == before
    assert json.loads(stamp.read_text())["files"]["cpu.txt"] == made["files"]["cpu.txt"].split(" ")[0]


def test_a_password_in_the_index_is_in_no_stamp_and_no_argument(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_INDEX", "https://me:s3cret@index.example/cpu")
    assert "s3cret" not in venvs._fingerprint("cpu.txt") and "index" not in venvs._fingerprint("cpu.txt")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f"#!/bin/sh\necho $PIP_INDEX_URL > {tmp_path}/index\necho $* > {tmp_path}/arguments\n")
    python.chmod(0o755)
    with (tmp_path / "log").open("w") as log:
        venvs._pip(tmp_path, log, tmp_path / "log", "torch", index="https://me:s3cret@index.example/cpu")
    assert (tmp_path / "index").read_text().strip() == "https://me:s3cret@index.example/cpu"
    assert "torch" in (tmp_path / "arguments").read_text() and "s3cret" not in (tmp_path / "arguments").read_text()
