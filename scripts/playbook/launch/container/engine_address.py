"""Which Docker engine is meant: the one that the `docker` command itself would talk to.

`DOCKER_HOST` names it, else the context of `DOCKER_CONTEXT`, else the one that `docker context use` chose, else it is
this machine's own. The SDK's `ContextAPI` is not asked: it takes a context that is not there for the default one, finds
none where there is no config.json, and drops the certificates of a context that has no client's.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker import TLSConfig
from docker.errors import TLSParameterError

from playbook.launch.watch import NotStarted

SOCKET = Path("/var/run/docker.sock")


class EngineError(NotStarted):
    """The Docker engine cannot be reached, or refuses."""

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(f"{cause}: {remedy}" if remedy else cause)
        self.cause = cause
        self.remedy = remedy


@dataclass(frozen=True)
class Address:
    url: str | None = None  # None for the usual socket
    tls: TLSConfig | None = None
    named: str = ""  # by what, as a person would say it; "" for this machine's own

    def options(self) -> dict[str, Any]:
        """The SDK's arguments."""
        return {name: value for name, value in (("base_url", self.url), ("tls", self.tls)) if value}


def find() -> Address:
    """The engine's address. Raises EngineError: no such context, no certificates, or it leads to another machine."""
    address = _named()
    if (address.url or "").startswith("ssh:"):
        remedy = "run make on that machine, or unset DOCKER_HOST and DOCKER_CONTEXT, or docker context use default"
        raise EngineError(
            f"{address.named} is not supported: ssh leads to another machine, and a training needs this one's folders",
            remedy,
        )
    return address


def _named() -> Address:
    if host := os.environ.get("DOCKER_HOST"):
        return Address(host, _tls(), f"DOCKER_HOST={without_user(host)}")
    config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    name = os.environ.get("DOCKER_CONTEXT") or _current(config)
    if name != "default":
        return _context(config / "contexts", name)
    own = Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")) / "docker.sock"
    rootless = f"unix://{own}" if not SOCKET.exists() and own.exists() else None
    return Address(rootless, _tls())


def _current(config: Path) -> str:
    """The context that `docker context use` chose."""
    try:
        return json.loads((config / "config.json").read_text()).get("currentContext") or "default"
    except (OSError, ValueError, AttributeError):
        return "default"


def _context(folder: Path, name: str) -> Address:
    stored = hashlib.sha256(name.encode()).hexdigest()
    try:
        host = json.loads((folder / "meta" / stored / "meta.json").read_text())["Endpoints"]["docker"]["Host"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read from {folder}"
        by = "DOCKER_CONTEXT" if os.environ.get("DOCKER_CONTEXT") else "docker context use"
        remedy = f"docker context ls lists them; {by} chose it"
        raise EngineError(f"the Docker context {name} {why}", remedy) from error
    kept = folder / "tls" / stored / "docker"
    tls = _certificates(kept, f"the Docker context {name}") if kept.is_dir() else None
    return Address(host, tls, f"the Docker context {name} ({without_user(host)})")


def _tls() -> TLSConfig | None:
    """What `DOCKER_TLS_VERIFY` and `DOCKER_TLS` ask for: set to anything they are on, as for the docker command."""
    verify = bool(os.environ.get("DOCKER_TLS_VERIFY"))
    if not verify and not os.environ.get("DOCKER_TLS"):
        return None
    folder = os.environ.get("DOCKER_CERT_PATH") or os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"
    return _certificates(Path(folder), "DOCKER_TLS_VERIFY" if verify else "DOCKER_TLS", verify=verify)


def _certificates(folder: Path, asked_by: str, *, verify: bool = True) -> TLSConfig:
    """Of ca.pem, cert.pem and key.pem: the first to know the engine by, the others where it wants to know us."""
    ca, cert, key = (folder / f"{name}.pem" for name in ("ca", "cert", "key"))
    missing = [path.name for path in (cert, key) if not path.is_file()]
    missing = missing if len(missing) == 1 else []
    missing += [ca.name] if verify and not ca.is_file() else []
    if missing:
        unset = f", or unset {asked_by}" if asked_by.startswith("DOCKER_") else ""
        remedy = f"set DOCKER_CERT_PATH to the folder that has them{unset}"
        raise EngineError(f"{asked_by} wants certificates, and {folder} has no {' and no '.join(missing)}", remedy)
    try:
        return TLSConfig(
            client_cert=(str(cert), str(key)) if cert.is_file() else None,
            ca_cert=str(ca) if ca.is_file() else None,
            verify=verify,
        )
    except TLSParameterError as error:  # gone between the look and the use
        raise EngineError(f"{asked_by} wants certificates, and those of {folder} cannot be read", str(error)) from error


def without_user(url: str) -> str:
    """A URL as it may be shown: without the name and the password that may stand in it."""
    return re.sub(r"//[^/@\s]*@", "//", url)
