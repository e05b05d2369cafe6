"""How large an image is before it is pulled: the registry's manifest says, and nvcr.io shows it to anybody."""

from __future__ import annotations

import platform
import re
from typing import Any

import requests

SECONDS = 5
_MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class RegistryError(Exception):
    """The registry does not answer, or has no such image."""


def size_to_pull(name: str) -> int:
    """Bytes of an image's compressed layers, for this machine's architecture.

    Args:
        name: with registry and tag, such as nvcr.io/nvidia/nemo:26.04.

    Raises:
        RegistryError: with what was answered.
    """
    registry, _, path = name.partition("/")
    repository, _, tag = path.rpartition(":")
    if not repository or not (set(".:") & set(registry) or registry == "localhost"):
        raise RegistryError(f"{name} names no registry: it is an image of your own")
    scheme = "http" if registry.partition(":")[0] in ("localhost", "127.0.0.1") else "https"
    base = f"{scheme}://{registry}/v2/{repository}/manifests/"
    try:
        with requests.Session() as session:
            session.headers["Accept"] = _MANIFESTS
            manifest = _manifest(session, base + tag, name)
            if "manifests" in manifest:
                manifest = _manifest(session, base + _for_this_machine(manifest, name), name)
            return sum(layer["size"] for layer in manifest["layers"])
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{registry} does not answer ({type(error).__name__})") from error


def _manifest(session: requests.Session, url: str, name: str) -> dict[str, Any]:
    answer = session.get(url, timeout=SECONDS)
    if answer.status_code == 401:
        session.headers["Authorization"] = f"Bearer {_token(session, answer.headers['WWW-Authenticate'])}"
        answer = session.get(url, timeout=SECONDS)
    if answer.status_code == 404:
        raise RegistryError(f"the registry has no {name}")
    answer.raise_for_status()
    return answer.json()


def _token(session: requests.Session, challenge: str) -> str:
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = asked.pop("realm")
    answer = session.get(realm, params=asked, timeout=SECONDS)
    answer.raise_for_status()
    found = answer.json()
    return found.get("token") or found["access_token"]


def _for_this_machine(index: dict[str, Any], name: str) -> str:
    wanted = _ARCHITECTURES.get(platform.machine(), platform.machine())
    for each in index["manifests"]:
        if each.get("platform", {}).get("architecture") == wanted:
            return each["digest"]
    raise RegistryError(f"{name} has no build for {wanted}")
