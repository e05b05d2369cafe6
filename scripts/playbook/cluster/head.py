"""Slurm's commands on the head node: here, or by ssh."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from playbook.failures import Failure

SECONDS = 60
CONNECT_SECONDS = 10


class ClusterError(Failure):
    """Slurm, or the way to it, said no."""


@dataclass(frozen=True)
class Head:
    """Where sbatch is.

    Attributes:
        host: to reach by ssh, as its own configuration knows it; None for this machine.
    """

    host: str | None = None

    def run(self, *words: str, text: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command there.

        Args:
            text: its standard input.
            check: a failure is an error.

        Raises:
            ClusterError: no such command, no way there, or (with `check`) what it said.
        """
        command = list(words)
        if self.host:
            ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
            command = [*ssh, self.host, shlex.join(words)]
        elif shutil.which(words[0]) is None:
            raise ClusterError(
                f"this machine has no {words[0]}: run it on a login node, or name one in cluster.yaml (host: you@login)"
            )
        try:
            ended = subprocess.run(
                command,
                input=text or "",
                capture_output=True,
                timeout=SECONDS,
                check=False,
                text=True,
                errors="surrogateescape",
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{words[0]} on {self} did not answer within {SECONDS} s; try again") from None
        except FileNotFoundError:
            raise ClusterError("host: in cluster.yaml needs the ssh command: install openssh-client") from None
        if self.host and ended.returncode == 255:
            raise ClusterError(
                f"{self.host} cannot be reached: {_last(ended.stderr)}; does `ssh {self.host} true` work without a "
                "password?"
            )
        if check and ended.returncode:
            raise ClusterError(explain(_last(ended.stderr or ended.stdout) or f"{words[0]} failed"))
        return ended

    def write(self, path: Path, text: str) -> None:
        """Write a file there. Raises ClusterError with the system's words."""
        self.run("sh", "-c", 'cat > "$1"', "sh", str(path), text=text)

    def __str__(self) -> str:
        return self.host or "this machine"


def explain(said: str) -> str:
    """What Slurm said, with what to do about it."""
    remedies = {
        "invalid partition": "`sinfo` lists the partitions: set one in cluster.yaml",
        "Invalid account": "`sacctmgr show assoc user=$USER` lists your accounts: set one in cluster.yaml",
        "Requested node configuration is not available": "fewer NODES or GPUs a node: `sinfo -o '%P %D %G'` lists them",
        "Node count specification invalid": "`sinfo` says how many nodes the partition has: fewer NODES",
        "More processors requested": "fewer NODES or GPUs: `sinfo -o '%P %D %c %G'` lists what nodes have",
        "time limit": "`sinfo -o '%P %l'` lists the limits: lower time in cluster.yaml",
        "Unable to contact slurm controller": "Slurm's controller does not answer: ask `scontrol ping`",
        "Could not establish a configuration": "this machine's Slurm is not set up: name a login node (host:)",
        "slurmdbd": "accounting does not answer; `sacctmgr ping` says whether it is only now",
        "Invalid qos": "`sacctmgr show qos` lists them: set one under sbatch in cluster.yaml",
    }
    for words, remedy in remedies.items():
        if words.lower() in said.lower():
            return f"{said}\n  {remedy}"
    return said


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
