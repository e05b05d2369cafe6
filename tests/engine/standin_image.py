"""Images for the private engine, made from this machine: no registry is asked.

`python_root` writes a root file system with this machine's Python at /opt/venv/bin/python, its shell, and little else.
`standin/` holds a torch.distributed.run that starts a training of a few seconds instead of the script it is given;
each behaviour is an image of its own, chosen by its tag. With packages it holds the CPU runtime for the real script.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker

STANDIN = Path(__file__).resolve().parent / "standin"
STANDIN_INSIDE, PACKAGES = "opt/standin/lib", "opt/packages"
SHELL = Path("/bin/sh")
LABEL = "engine-tests"
_LIBRARY = re.compile(r"(/\S+\.so\S*)")
_NOT_NEEDED = {"test", "idlelib", "tkinter", "turtledemo", "lib2to3", "site-packages", "dist-packages"}
_NOT_NEEDED |= {"sitecustomize.py", "EXTERNALLY-MANAGED"}  # Debian's: one leads nowhere, one forbids pip


def import_root(api: docker.APIClient, name: str, *, packages: Path | None = None) -> None:
    """Import `python_root(packages)` as the image `name` (repository:tag). A run must override its entry point."""
    repository, _, tag = name.rpartition(":")
    answer = api._post(
        api._url("/images/create"),
        data=python_root(packages=packages),
        params={
            "fromSrc": "-",
            "repo": repository,
            "tag": tag,
            "changes": [
                'ENTRYPOINT ["/bin/false"]',
                "ENV PATH=/opt/standin/bin:/usr/bin:/bin",
                f"ENV PYTHONPATH=/{PACKAGES if packages else STANDIN_INSIDE}",
                f"LABEL {LABEL}={repository}",  # inherited by what is built on it, and how that is found again
            ],
        },
        headers={"Content-Type": "application/x-tar"},
    )
    api._raise_for_status(answer)
    if "errorDetail" in answer.text:
        raise RuntimeError(answer.text)


def tag_with(api: docker.APIClient, base: str, name: str, variables: dict[str, str]) -> None:
    """The image `base` again as `name`, with environment variables added."""
    lines = [f"FROM {base}", *(f"ENV {variable}={value}" for variable, value in variables.items())]
    recipe = io.BytesIO("\n".join(lines).encode())
    for event in api.build(fileobj=recipe, tag=name, rm=True, decode=True):
        if "error" in event:
            raise RuntimeError(event["error"])


def python_root(*, packages: Path | None = None) -> Iterator[bytes]:
    """A root file system as a tar stream.

    Args:
        packages: a site-packages folder for its Python, or None for the stand-in alone.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            with os.fdopen(write_end, "wb") as sink, tarfile.open(fileobj=sink, mode="w|") as archive:
                _fill(archive, packages)
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as source:
        while piece := source.read(1 << 20):
            yield piece
    os.waitpid(child, 0)


def _fill(archive: tarfile.TarFile, packages: Path | None) -> None:
    base = Path(sys.base_prefix)
    python = Path(os.path.realpath(sys.executable))
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for name, text in {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"}.items():
        _text(archive, name, text)
    for name in ("tmp", "proc", "sys", "dev", "root"):
        _folder(archive, name)
    archive.add(os.path.realpath(SHELL), "bin/sh")
    archive.add(python, str(python).lstrip("/"))
    for name in ("opt/venv/bin/python", "opt/venv/bin/python3"):
        _link(archive, name, str(python))
    archive.add(stdlib, str(stdlib).lstrip("/"), filter=_wanted)
    objects = [SHELL, python, *stdlib.glob("lib-dynload/*.so"), *base.glob("lib/libpython3*.so*")]
    if packages:
        for each in sorted(packages.iterdir()):
            if each.name not in ("__pycache__", "ruff"):
                archive.add(each, f"{PACKAGES}/{each.name}", filter=_shipped)
        objects += [path for path in packages.rglob("*.so*") if path.is_file()]
    else:
        archive.add(STANDIN, STANDIN_INSIDE, filter=_wanted)
    for library in sorted(_needed(objects)):
        if not str(library).startswith(str(packages)):
            archive.add(os.path.realpath(library), str(library).lstrip("/"))


def _needed(objects: list[Path]) -> set[Path]:
    found: set[Path] = set()
    for start in range(0, len(objects), 200):
        listed = subprocess.run(["ldd", *objects[start : start + 200]], capture_output=True, text=True, check=False)
        for line in listed.stdout.splitlines():
            if line.startswith("\t") and (match := _LIBRARY.search(line)):
                found.add(Path(match[1]))
    return {path for path in found if path.exists()}


def _wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uid = member.gid = 0
    name = Path(member.name).name
    return None if name in _NOT_NEEDED or name.endswith(".a") or name.startswith("config-3") else member


def _shipped(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Packages less what training never opens: headers, test suites."""
    member.uid = member.gid = 0
    skip = ("torch/include/", "torch/test/", "torch/bin/test_", "/tests/")
    return None if any(part in f"{member.name}/" for part in skip) else member


def _text(archive: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(text)
    archive.addfile(member, io.BytesIO(text.encode()))


def _folder(archive: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
    archive.addfile(member)


def _link(archive: tarfile.TarFile, name: str, target: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    archive.addfile(member)
