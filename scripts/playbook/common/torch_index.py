"""Which package index PyTorch is taken from. Only the standard library: this runs before anything is installed.

On most machines the plain wheel is the CUDA build: the CPU environment then takes 4.7 GB, with the CPU wheel 1.5 GB.
"""

import os
import subprocess
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from playbook.common import pci

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
PATIENCE_SECONDS = 3.0
SMALL, LARGE = "1.5 GB", "4.7 GB"
_NAMES_AN_INDEX = ("index-url", "extra-index-url", "no-index")  # of pip's configuration; --find-links only adds files


@dataclass(frozen=True)
class Source:
    url: str | None  # of an index, or None for whichever pip uses
    why: str  # with what it comes to, for a person
    by_itself: bool = False  # nobody asked for it: where it fails, pip's own does


def choose(python: Path) -> Source:
    """The index: TORCH_INDEX, PyTorch's own of CPU wheels where no GPU is and it answers, else pip's."""
    if asked := os.environ.get("TORCH_INDEX"):
        return Source(asked, "from TORCH_INDEX")
    plain = f"the plain wheel, up to {LARGE} installed (TORCH_INDEX={CPU_WHEELS}: {SMALL})"
    if pci.in_the_machine():
        return Source(None, f"{plain}: an NVIDIA GPU is here")
    if named := _named_for_pip(python):
        return Source(None, f"{plain}: pip is told where to look ({named})")
    if not answers(f"{CPU_WHEELS}/torch/"):
        return Source(None, f"{plain}: {CPU_WHEELS} did not answer within {PATIENCE_SECONDS:.0f} s")
    why = f"the CPU wheel of {CPU_WHEELS}, {SMALL} installed: no NVIDIA GPU is here"
    return Source(CPU_WHEELS, why, by_itself=True)


def _named_for_pip(python: Path) -> str:
    """The setting by which the user chose an index, in the environment or in a file; "" for none."""
    words = [str(python), "-m", "pip", "config", "list"]
    listed = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False).stdout
    for line in listed.splitlines():
        setting, _, value = line.partition("=")
        of, _, name = setting.rpartition(".")
        if name in _NAMES_AN_INDEX and value.strip("'\"").lower() not in ("", "0", "false", "no", "off"):
            return f"{of.strip(':')} {name}"
    return ""


def answers(url: str) -> bool:
    """Whether a page is there, asked for no longer than a person would wait, name servers and proxies included."""
    found = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "pip"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                found.append(answer.status == 200)
        except (OSError, ValueError, urllib.error.URLError):
            pass

    asking = threading.Thread(target=ask, daemon=True)  # a name server that is silent has no timeout of ours
    asking.start()
    asking.join(PATIENCE_SECONDS)
    return bool(found and found[0])


def pin(requirements: Path) -> str | None:
    """The line of a requirements file that pins torch."""
    return next((line for line in requirements.read_text().splitlines() if line.startswith("torch==")), None)
