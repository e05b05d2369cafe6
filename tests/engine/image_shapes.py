"""NVIDIA's NeMo image in the shapes that it may have: what its public Dockerfiles (Megatron-Bridge's docker/) settle is
the same in all of them, and what they leave open is a shape of its own.

Settled: /opt/venv sees the system's site packages, torch lies in the system's dist-packages, Megatron-Bridge and
Megatron-LM are editable installs in /opt/Megatron-Bridge, and the entry point is the base image's. The packages are
stand-ins, but for numpy, by which `make data` works as it is.

    python image_shapes.py [SHAPE]      run while an image is built: what is settled, or what a shape has of its own
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import NamedTuple

USER = 1000  # whom some releases name
_BRIDGE, _VENV = Path("/opt/Megatron-Bridge"), Path("/opt/venv")
_ENTRY = Path("/opt/nvidia/nvidia_entrypoint.sh")
_BANNER = "=====================\n== NVIDIA NeMo Framework ==\n====================="
_MOVED = "/opt/packages"  # where the imported root file system has its packages


class Shape(NamedTuple):
    """An image.

    Attributes:
        tag: one of NeMo's. Nobody here has seen which release has which shape.
        versions: of Megatron-Bridge and Megatron-Core, different ones in each.
        closed: how what an ordinary user cannot pass begins; "" where everything is open.
        lines: of its Dockerfile, beside those of every shape.
    """

    tag: str
    versions: tuple[str, str]
    closed: str = ""
    lines: tuple[str, ...] = ()


SHAPES = {
    "editable": Shape("26.04", ("0.4.0", "0.17.0")),
    "editable-closed": Shape("26.04.01", ("0.4.2", "0.17.1"), "/opt/Megatron-Bridge/3rdparty"),
    "dist-packages-closed": Shape("26.06", ("0.5.0", "0.18.0"), "/usr/local/lib/"),
    "open-python": Shape("26.06.01", ("0.5.1", "0.18.2"), lines=("ENV LD_LIBRARY_PATH=/usr/local/python/lib",)),
    "root-python": Shape("26.08", ("0.6.0", "0.19.0"), "/root"),
    "user-1000": Shape("26.10", ("0.7.0", "0.20.0"), lines=("ENV HOME=/home/ubuntu", f"USER {USER}:{USER}")),
    "entry-point": Shape("26.10.01", ("0.7.1", "0.20.1")),
}


def packages(folder: Path) -> Path:
    """A folder of the packages of every shape: the stand-ins beside this file, and this Python's numpy."""
    import numpy

    here, numpys = Path(__file__).resolve().parent / "standin", Path(numpy.__file__).parent
    for each in (*here.iterdir(), numpys, numpys.with_name("numpy.libs")):
        if each.is_dir():
            shutil.copytree(each, folder / each.name, ignore=shutil.ignore_patterns("tests", "__pycache__", "*.pyi"))
        elif each.exists():
            shutil.copy(each, folder)
    return folder


def build_settled(api, base: str, name: str) -> None:  # type: ignore[no-untyped-def]
    """The image `name`, what all shapes have, over `base`, an import of `packages`."""
    lines = [
        "COPY image_shapes.py /build/",
        'RUN ["/opt/venv/bin/python", "/build/image_shapes.py"]',
        "ENV PYTHONPATH= PATH=/opt/venv/bin:/root/.local/bin:/usr/local/bin:/usr/bin:/bin",
        "WORKDIR /workspace",
        f'ENTRYPOINT ["/bin/sh", "{_ENTRY}"]',
    ]
    _build(api, base, name, lines)


def build(api, settled: str, name: str, shape: str) -> None:  # type: ignore[no-untyped-def]
    """The image `name` of a shape. Raises RuntimeError where Docker cannot."""
    lay_out = f'RUN ["/opt/venv/bin/python", "/build/image_shapes.py", "{shape}"]'
    _build(api, settled, name, [lay_out, *SHAPES[shape].lines])


def without(api, base: str, name: str, path: str) -> None:  # type: ignore[no-untyped-def]
    """The image `name`, which is `base` without a folder."""
    remove = f"import shutil; shutil.rmtree('{path}')"
    _build(api, base, name, [f'RUN ["/opt/venv/bin/python", "-c", "{remove}"]'])


def _build(api, base: str, name: str, lines: list[str]) -> None:  # type: ignore[no-untyped-def]
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        archive.add(__file__, "image_shapes.py")
        recipe = tarfile.TarInfo("Dockerfile")
        text = "\n".join([f"FROM {base}", *lines]).encode()
        recipe.size = len(text)
        archive.addfile(recipe, io.BytesIO(text))
    context.seek(0)
    for event in api.build(fileobj=context, custom_context=True, tag=name, rm=True, decode=True):
        if "error" in event:
            raise RuntimeError(event["error"])


_VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
_SYSTEM = Path(f"/usr/local/lib/{_VERSION}/dist-packages")
_OWN = _VENV / "lib" / _VERSION / "site-packages"
_SOURCES = {"bridge": _BRIDGE / "src", "core": _BRIDGE / "3rdparty" / "Megatron-LM"}


def _settle() -> None:
    """Inside, as root: what is the same in all shapes."""
    shutil.copytree(_MOVED, _SYSTEM)
    shutil.rmtree(_MOVED)
    of_python = Path(sysconfig.get_path("purelib", vars={"base": sys.base_prefix}))
    _text(of_python / "dist-packages.pth", str(_SYSTEM))  # Debian's Python, which the image has, looks there unaided
    for name, source in _SOURCES.items():
        shutil.copytree(_SYSTEM / "megatron" / name, source / "megatron" / name)
        _text(_OWN / f"megatron_{name}.pth", str(source))
    shutil.rmtree(_SYSTEM / "megatron")
    _venv(Path(os.path.realpath(sys.executable)))
    _metadata(_SYSTEM, "torch", "2.11.0")
    _text(_ENTRY, f'echo "{_BANNER}"\nexec "$@"')


def _lay_out(shape: str) -> None:
    """Inside, as root: what this shape has of its own."""
    for name, version in zip(_SOURCES, SHAPES[shape].versions, strict=True):
        _metadata(_OWN, f"megatron_{name}", version)
    if shape == "editable-closed":  # cloned under a umask of 077
        _SOURCES["core"].parent.chmod(0o700)
    elif shape == "dist-packages-closed":
        _SYSTEM.chmod(0o700)
    elif shape in ("open-python", "root-python"):
        python = Path(os.path.realpath(sys.executable))
        home = Path("/usr/local/python" if shape == "open-python" else "/root/.local/share/uv/python")
        if shape == "open-python" or Path("/root") not in python.parents:
            _venv(_copy_of_python(python, home))
        Path("/root").chmod(0o700)
    elif shape == "user-1000":
        Path("/home/ubuntu").mkdir(parents=True, mode=0o750)
        for top in (_VENV, _BRIDGE, Path("/home/ubuntu")):
            for each in (top, *top.rglob("*")):
                os.chown(each, USER, USER, follow_symlinks=False)
    elif shape == "entry-point":  # and a Python that greets whoever starts it
        _text(_SYSTEM / "sitecustomize.py", f"print('''{_BANNER}''')")


def _venv(python: Path) -> None:
    """Have /opt/venv lead to this interpreter."""
    shutil.rmtree(_VENV / "bin")
    (_VENV / "bin").mkdir()
    (_VENV / "bin" / "python3").symlink_to(python)
    (_VENV / "bin" / "python").symlink_to("python3")
    _text(_VENV / "pyvenv.cfg", f"home = {python.parent}\ninclude-system-site-packages = true")


def _metadata(folder: Path, name: str, version: str) -> None:
    text = f"Name: {name.replace('_', '-')}\nVersion: {version}"
    _text(folder / f"{name}-{version}.dist-info" / "METADATA", text)


def _copy_of_python(python: Path, to: Path) -> Path:
    """The interpreter and its library in a folder of their own, as uv has them in the home of who installs it."""
    library = Path(sysconfig.get_path("stdlib"))
    (to / "bin").mkdir(parents=True)
    shutil.copy(python, to / "bin" / python.name)
    shutil.copytree(library, to / "lib" / library.name, symlinks=True)
    for shared in library.parent.glob("libpython3*.so*"):
        shutil.copy(shared, to / "lib")
    return to / "bin" / python.name


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


if __name__ == "__main__":
    _lay_out(sys.argv[1]) if len(sys.argv) > 1 else _settle()
