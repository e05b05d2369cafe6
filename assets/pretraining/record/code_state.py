"""Which state of the training code a run was of, also where there is no git: a container, a node, a tarball."""

from __future__ import annotations

import hashlib
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1]
WHAT = ("*.py", "pretraining/**/*.py", "models/*/config.json")


def digest(assets: Path = ASSETS) -> str:
    """Twelve hexadecimal digits that name the content of what trains; results and the launcher are no part of it.

    Two commits that differ elsewhere have the same, and a changed file makes another of the same commit.
    """
    found = hashlib.sha256()
    for path in sorted(path for pattern in WHAT for path in assets.glob(pattern)):
        content = path.read_bytes()
        found.update(f"{path.relative_to(assets).as_posix()}\0{len(content)}\0".encode() + content)
    return found.hexdigest()[:12]
