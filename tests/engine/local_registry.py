"""A registry of one small image, as nvcr.io answers: tokens for anybody, an index by architecture, blobs.

python local_registry.py PORT
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPOSITORY, TAG = "nvidia/nemo", "pulled"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _image() -> tuple[dict[str, tuple[str, bytes]], int]:
    """What to serve by path, and the size of the layer."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        member = tarfile.TarInfo("noise")
        member.size = 1 << 20
        archive.addfile(member, io.BytesIO(os.urandom(member.size)))
    layer = gzip.compress(tar.getvalue(), mtime=0)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(tar.getvalue())]},
        }
    ).encode()
    kinds = {"config": "application/vnd.docker.container.image.v1+json"}
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": kinds["config"], "size": len(config), "digest": _digest(config)},
            "layers": [
                {
                    "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    "size": len(layer),
                    "digest": _digest(layer),
                }
            ],
        }
    ).encode()
    platforms = [{"architecture": name, "os": "linux"} for name in ("arm64", "amd64")]
    entry = {"mediaType": MANIFEST, "size": len(manifest), "digest": _digest(manifest)}
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{**entry, "platform": each} for each in platforms]}
    ).encode()
    base = f"/v2/{REPOSITORY}"
    served = {
        f"{base}/manifests/{TAG}": (INDEX, index),
        f"{base}/manifests/{_digest(index)}": (INDEX, index),
        f"{base}/manifests/{_digest(manifest)}": (MANIFEST, manifest),
        f"{base}/blobs/{_digest(config)}": (kinds["config"], config),
        f"{base}/blobs/{_digest(layer)}": ("application/octet-stream", layer),
    }
    return served, len(layer)


def make_server(port: int) -> tuple[ThreadingHTTPServer, int]:
    """A server on this machine alone (port 0 for a free one), and the size of its image's layer."""
    served, size = _image()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            where = f"http://127.0.0.1:{self.server.server_address[1]}"
            if self.path.startswith("/token"):
                return self._answer(200, "application/json", b'{"token": "anybody"}')
            if self.headers.get("Authorization") != "Bearer anybody":
                challenge = f'Bearer realm="{where}/token",service="registry",scope="repository:{REPOSITORY}:pull"'
                return self._answer(401, "application/json", b"{}", challenge)
            if self.path in ("/v2/", "/v2"):
                return self._answer(200, "application/json", b"{}")
            kind, content = served.get(self.path, ("application/json", b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}'))
            return self._answer(200 if self.path in served else 404, kind, content)

        do_HEAD = do_GET

        def _answer(self, status: int, kind: str, content: bytes, challenge: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Docker-Content-Digest", _digest(content))
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            if challenge:
                self.send_header("WWW-Authenticate", challenge)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler), size


if __name__ == "__main__":
    make_server(int(sys.argv[1]))[0].serve_forever()
