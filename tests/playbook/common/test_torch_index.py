"""Where PyTorch comes from: the index of CPU wheels by itself, or the one that was named."""

import contextlib
import http.server
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from playbook.common import torch_index, venvs


class Index:
    """A package index on this machine: PyTorch's page of CPU wheels, or what is wrong with it."""

    def __init__(self, wheel: Path, how: str) -> None:
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
def index(make_wheel, tmp_path_factory):
    """`index("silent")`: an index of that kind, which is the one of CPU wheels, beside no GPU."""
    made = []

    def start(how: str) -> Index:
        made.append(
            Index(Path(make_wheel(tmp_path_factory.mktemp("index"), "torch", "9.9+cpu", module="torch").strip()), how)
        )
        return made[-1]

    yield start
    for each in made:
        each.close()


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


@pytest.mark.parametrize(
    ("how", "version", "says"),
    [
        ("whole", "9.9+cpu", "PyTorch: the CPU wheel of {url}, 1.5 GB installed: no NVIDIA GPU is here"),
        ("broken", "9.9", "PyTorch: {url} did not give it; the plain wheel, up to 4.7 GB"),
    ],
)
def test_without_a_gpu_the_cpu_wheel_is_taken_by_itself(
    version_in, make_wheel, set_up, index, root: Path, tmp_path, how, version, says
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
