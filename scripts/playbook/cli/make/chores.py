"""The targets that are no script of this project: the image, and the tests on a machine that has a GPU."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from playbook.launch.container import DEFAULT_TAG

GPU_TESTS = ("tests/gpu", "tests/pretraining/numerics/test_nvfp4_triton.py")
LINES = 15  # of the tests' output: their summary


def image(given: dict[str, str]) -> int:
    """Build docker/Dockerfile over the NeMo image that TAG= names."""
    tag = given.get("TAG") or DEFAULT_TAG
    command = ["docker", "build", f"--build-arg=NEMO_TAG={tag}", f"--tag=nvfp4-playbook:{tag}", "docker"]
    if "DRY_RUN" in given:  # one that is off is not given
        print(shlex.join(command))
        return 0
    try:
        return subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        print("make: docker is not installed, and the image is built with it", file=sys.stderr)
        return 1


def test_gpu(given: dict[str, str]) -> int:
    """Run the tests that need a GPU, by this Python; all that they print goes into a file beside the results."""
    log = Path("assets/results/test-gpu.txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = ("-v", "-rA", "--durations=5", "-W", "ignore", "-p", "no:cacheprovider")
    with log.open("wb") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", *flags, *GPU_TESTS],
            env={**os.environ, "TRITON_INTERPRET": "0"},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    print("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:]))
    return ended.returncode
