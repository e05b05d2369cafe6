"""`make show-config`: the config of a training, built where its packages are and printed, without training."""

import argparse
import contextlib
import subprocess
import sys

from playbook import ASSETS
from playbook.common.venvs import ensure
from playbook.plan import gpus, local_python, place
from pretraining.request import flags as training_flags
from pretraining.request import settings
from pretraining.request.models import MODELS
from pretraining.request.precisions import PRECISIONS

SCRIPT = str(ASSETS / "show_config.py")


def show(args: argparse.Namespace) -> int:
    """Print it. Returns the exit code. Raises UsageError from the settings.

    It is built in the CPU runtime's environment, whose Megatron-Bridge may be another than the NeMo image's (the first
    lines say which it is), unless RUNTIME=local trains with one that is installed here.
    """
    on_gpu = _on_gpu(args)
    processes = args.nproc if args.nproc > 1 else None
    chosen = settings.resolve(args, on_gpu=on_gpu, processes=processes)
    if args.runtime == "local":
        local_python.check()
        python = local_python.python()
    else:
        with contextlib.redirect_stdout(sys.stderr):
            python = str(ensure("cpu"))
    words = [python, "-W", "ignore", SCRIPT, *chosen.as_flags(), *["--gpu"] * on_gpu]
    words += ["--processes", str(processes)] if processes else []
    return subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode


def _on_gpu(args: argparse.Namespace) -> bool:
    """Whether the training would be on a GPU: as asked for, else where there is one or nothing else would do."""
    asked = training_flags.merged(args)
    model, precision = MODELS.get(asked.model or ""), PRECISIONS.get(asked.precision or "")
    needs = (model is not None and not model.on_cpu) or (precision is not None and not precision.on_cpu)
    return (needs and args.runtime == "auto") or place.runtime_of(args.runtime, gpus.read()).value != "cpu"
