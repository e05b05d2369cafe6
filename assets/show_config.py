#!/usr/bin/env python3
"""Print the config that a training would start with, without training: YAML that `--config` takes back.

    python3 assets/show_config.py [--gpu] [--processes N] [flags of pretrain_llama.py]

Needs no GPU, also for a model that does: --gpu says that it would have one. Exit codes: 0 printed, 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as in pretrain_llama.py
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from pretraining.errors import UsageError
from pretraining.request import flags as training_flags
from pretraining.request import settings


def shown(chosen: settings.Settings) -> str:
    """The config file of a training."""
    from pretraining.megatron import cpu

    cpu.enable()

    from pretraining.data import builtin_text
    from pretraining.megatron import changes
    from pretraining.megatron.plugin import Plugin

    builtin = builtin_text.prepare(chosen.cache_dir) if chosen.data == settings.PYTHON_STDLIB else None
    plugin = Plugin(chosen.plugin) if chosen.plugin else None
    folder = chosen.run_dir or training_flags.PROJECT / training_flags.RUNS / "RUN"
    config, changed = changes.configured(chosen, folder, plugin, builtin)
    return changes.as_text(config, chosen, changed)


def main() -> int:
    flags = training_flags.parser("show_config.py")
    flags.add_argument("--gpu", action="store_true", help="as if training had a GPU")
    flags.add_argument("--processes", type=int, metavar="N", help="that would train (default: the fewest)")
    try:
        args = flags.parse_args()
        chosen = settings.resolve(args, on_gpu=args.gpu, processes=args.processes)
        said = io.StringIO()  # by Megatron while it is imported: none of it is about this config
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            found = shown(chosen)
    except UsageError as error:
        print(f"show_config.py: {error}", file=sys.stderr)
        return 2
    print(found, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
