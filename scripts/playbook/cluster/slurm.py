"""Slurm's commands on this machine, and what its answers mean."""

import shutil
import subprocess

from playbook.common.failures import Failure, last_line

SECONDS = 60


class ClusterError(Failure):
    """Slurm said no."""


def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands. Raises ClusterError: no such command, no answer, or (with `check`) a failure."""
    if shutil.which(words[0]) is None:
        raise ClusterError(f"this machine has no {words[0]}: run it on a login node of the cluster")
    try:
        ended = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False, text=True
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{words[0]} did not answer within {SECONDS} s; try again") from None
    if check and ended.returncode:
        raise ClusterError(explain(last_line(ended.stderr or ended.stdout, f"{words[0]} failed")))
    return ended


def explain(said: str) -> str:
    """What Slurm said, with what to do about it."""
    remedies = {
        "invalid partition": "`sinfo` lists the partitions: set one in cluster.yaml",
        "Invalid account": "`sacctmgr show assoc user=$USER` lists your accounts: set one in cluster.yaml",
        "Invalid generic resource": "`sinfo -o '%P %G'` lists the kinds of GPU: set sbatch: {gres: ...}, or gpus: null",
        "Requested node configuration is not available": "fewer NODES or GPUs a node: `sinfo -o '%P %D %G'` lists them",
        "Node count specification invalid": "`sinfo` says how many nodes the partition has: fewer NODES",
        "More processors requested": "fewer NODES or GPUs: `sinfo -o '%P %D %c %G'` lists what nodes have",
        "time limit": "`sinfo -o '%P %l'` lists the limits: lower time in cluster.yaml",
        "Unable to contact slurm controller": "Slurm's controller does not answer: ask `scontrol ping`",
        "Could not establish a configuration": "this machine's Slurm is not set up: go to a login node",
        "slurmdbd": "accounting does not answer; `sacctmgr ping` says whether it is only now",
        "Invalid qos": "`sacctmgr show qos` lists them: set one under sbatch in cluster.yaml",
    }
    for words, remedy in remedies.items():
        if words.lower() in said.lower():
            return f"{said}\n  {remedy}"
    return said
