"""A real Docker engine of the tests' own: a dockerd with its own folder, socket and network namespace.

Nothing outside its folder changes, no registry is reached, and it is stopped by its process id. It needs root and
Debian's docker.io (engine 20.10 or newer). Two things of a GPU machine are stood in for:

- NVIDIA's hook is one that does nothing, so the engine accepts and passes on the classic GPU request;
- root may lack the right to raise limits here, so the runtime lowers what is asked to what this process may have.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("docker.io", "iproute2", "iptables")
START_SECONDS = 60

_RUNTIME = f"""#!{sys.executable}
import json, os, resource, sys

def lower(limits):
    for limit in limits or []:
        hard = resource.getrlimit(getattr(resource, limit["type"]))[1]
        if hard != resource.RLIM_INFINITY:
            limit["hard"] = min(limit["hard"], hard)
            limit["soft"] = min(limit["soft"], hard)

words = sys.argv[1:]
for at, word in enumerate(words):
    if word == "--bundle":
        config = os.path.join(words[at + 1], "config.json")
        with open(config) as file:
            spec = json.load(file)
        lower(spec["process"].get("rlimits"))
        with open(config, "w") as file:
            json.dump(spec, file)
os.execvp("runc", ["runc", *words])
"""


def why_not() -> str:
    """Why no engine can be started here, "" where one can."""
    if os.geteuid() != 0:
        return "a private Docker engine needs root"
    missing = [program for program in ("dockerd", "runc", "ip", "iptables") if not shutil.which(program)]
    return f"not installed: {', '.join(missing)} (`make test-engine` installs them on Debian)" if missing else ""


def install() -> None:
    """Install what is missing, as root on Debian. Failing is found out by `why_not`."""
    if why_not() and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", *words], env=quiet, stdout=subprocess.DEVNULL, check=False, timeout=600)


class PrivateEngine:
    """A dockerd below `folder`. Use as a context; `address` is for DOCKER_HOST."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.address = f"unix://{self.socket}"
        self._daemon: subprocess.Popen[bytes] | None = None
        tools = folder / "bin"
        tools.mkdir(parents=True)
        _program(tools / "runc-here", _RUNTIME)
        _program(tools / "nvidia-container-runtime-hook", "#!/bin/sh\nexit 0\n")

    def __enter__(self) -> PrivateEngine:
        if self._daemon is None:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for pid in self._leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for mount in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            where = mount.split()[1]
            if where.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "-l", where], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with its last words."""
        runtime = self.folder / "bin" / "runc-here"
        words = ["dockerd", "--data-root", self.folder / "data", "--exec-root", self.folder / "exec"]
        words += ["--pidfile", self.folder / "dockerd.pid", "--host", self.address, "--storage-driver", "overlay2"]
        words += ["--add-runtime", f"here={runtime}", "--add-runtime", f"nvidia={runtime}", "--default-runtime", "here"]
        log = (self.folder / "dockerd.log").open("ab")
        self._daemon = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "dockerd", *map(str, words)],
            env={**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError((self.folder / "dockerd.log").read_text(errors="replace")[-2000:])
            time.sleep(0.1)

    def _leftovers(self) -> list[int]:
        """What a crashed daemon left: processes that name this folder, and all that descend from them."""
        parents: dict[int, int] = {}
        found: list[int] = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pid = int(process.name)
                parents[pid] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if f"{self.folder}/".encode() in (process / "cmdline").read_bytes():
                    found.append(pid)
        for pid in found:  # grows while it is read
            found += [child for child, parent in parents.items() if parent == pid and child not in found]
        return [pid for pid in found if pid != os.getpid()]

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._daemon is not None
        return self._daemon.pid

    def answers(self) -> bool:
        """Whether it serves requests."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self.socket))
            client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in client.recv(64)
        return False

    def crash(self) -> None:
        """Kill the daemon; its containers live on until the next one finds them."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()
        self._daemon = None
        # Its containerd died with it. Where nobody reaps orphans, the next daemon would take the dead one for alive.
        (self.folder / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """Stop it in an orderly way, containers first."""
        if self._daemon is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._daemon.send_signal(signal.SIGTERM)
        try:
            self._daemon.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()
        self._daemon = None


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
