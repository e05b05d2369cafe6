"""Docker engines by what they said of themselves: a server on a socket that answers /version and /info."""

from __future__ import annotations

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

DOCKER = {
    "version": {
        "Version": "29.0.1",
        "ApiVersion": "1.52",
        "Components": [{"Name": "Engine", "Version": "29.0.1"}, {"Name": "containerd", "Version": "v2.1.5"}],
    },
    "info": {
        "ServerVersion": "29.0.1",
        "MemTotal": 512 * 10**9,
        "DockerRootDir": "/var/lib/docker",
        "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"],
        "Runtimes": {"runc": {}, "nvidia": {}},
    },
}
PODMAN = {
    "version": {
        "Version": "5.4.0",
        "ApiVersion": "1.41",
        "Components": [{"Name": "Podman Engine", "Version": "5.4.0"}, {"Name": "Conmon", "Version": "2.1.13"}],
    },
    "info": {
        "ServerVersion": "5.4.0",
        "DockerRootDir": "/home/ada/.local/share/containers/storage",
        "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"],
        "Runtimes": {"crun": {}, "nvidia": {}, "runc": {}},  # from its containers.conf; its API never uses it
    },
}


def docker(**info: Any) -> dict[str, Any]:
    """An ordinary engine, of which some things are otherwise."""
    return {**DOCKER, "info": {**DOCKER["info"], **info}}


def serve(says: dict[str, Any], socket: Path) -> socketserver.ThreadingUnixStreamServer:
    """Start answering there, until it is shut down."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = says.get(self.path.rpartition("/")[2])
            body = json.dumps(found or {"message": "page not found"}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:  # a socket has no peer to name
            return ""

        def log_message(self, *_: Any) -> None:
            pass

    server = socketserver.ThreadingUnixStreamServer(str(socket), Answer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server
