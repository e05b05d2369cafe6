#!/usr/bin/env python3
"""Hold Transformer Engine's native NVFP4 kernels against this project's arithmetic, on a GPU with FP4 tensor cores.

    python3 assets/selfcheck.py --folder nemo_experiments/selfcheck

Writes selfcheck.json into the folder: versions, GPU, and each comparison with its first difference. It names neither
machine nor user, and is meant to be sent. `make selfcheck` runs this in the NeMo container.

Exit codes: 0 equal, 1 something differs or failed, 2 not possible here, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pretraining.console import outlive_readers
from pretraining.errors import UsageError
from pretraining.megatron import compat
from pretraining.record import run_folder
from pretraining.request.precisions import find_precision

VECTORS = Path(__file__).resolve().parents[1] / "tests" / "vectors" / "nvfp4_reference.pt"


def require_native() -> None:
    """Raise UsageError where the native kernels cannot run: what is missing, and the remedy."""
    precision = find_precision("nvfp4")
    missing = [name for name in ("torch", "triton", "transformer_engine") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"this Python has no {' and no '.join(missing)}: leave RUNTIME out, and it runs in NVIDIA's NeMo image"
        )
    import torch

    if not torch.cuda.is_available():
        raise UsageError(f"PyTorch finds no GPU here, and the native kernels need {precision.needs}")
    capability = torch.cuda.get_device_capability()
    if not precision.trains_on(capability):
        found = f"{torch.cuda.get_device_name()}, compute capability {capability[0]}.{capability[1]}"
        raise UsageError(
            f"the native kernels need {precision.needs}; found {found}. `make test-gpu` holds what such a GPU can run "
            "against Transformer Engine's reference quantizer"
        )
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(
            f"Transformer Engine does not import ({error}): use a NeMo container of its own make"
        ) from error
    compat.quantizer_factory("triton")  # needs custom recipes, as this project's layers do


def run(folder: Path, commit: str) -> int:
    """Check, print, write. Returns the exit code."""
    from pretraining.run import run_facts
    from pretraining.selfcheck import FAST_MATH, check, engines, report

    device = run_facts.describe_device(True)  # before anything can go wrong on it
    if report.fast_math():
        print(f"{FAST_MATH} is on: Transformer Engine skips a rounding to BF16, differences are expected")
    print("NVFP4 of Transformer Engine's kernels and of this project, on the same tensors: a minute or two", flush=True)
    found = []
    try:
        for each in check.everything(engines.TransformerEngine(), engines.Ours(), VECTORS, "cuda"):
            found.append(each)
    except Exception as error:
        found.append(check.failed("this and all that comes after", None, "", error))
    report.show(found)
    print(report.verdict(found))
    run_folder.write_json(folder / run_folder.SELFCHECK, report.describe(found, commit, device))
    print(f"  in full: {folder / run_folder.SELFCHECK}")
    print("  Please send that file, whatever it says: attach it to an issue of the repository that you cloned.")
    return 0 if report.equal(found) else 1


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make the folder before the work, and remove it after one that wrote nothing. Raises UsageError for a used one."""
    if (folder / run_folder.SELFCHECK).exists():
        raise UsageError(f"{folder} holds a selfcheck already; name another folder")
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} cannot be written to; name another folder")
    try:
        yield
    finally:
        if not existed:
            with suppress(OSError):  # of one that is not empty
                folder.rmdir()


def main() -> int:
    flags = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False)
    flags.add_argument("--folder", type=Path, required=True, help="a new folder for the result")
    flags.add_argument("--commit", default="", help="the project's, to write into the file")
    args = flags.parse_args()
    try:
        require_native()
        with new_folder(args.folder):
            return run(args.folder, args.commit)
    except UsageError as error:
        print(f"selfcheck: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"selfcheck: {error.filename or args.folder}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("selfcheck: interrupted; nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    with outlive_readers():
        code = main()
    sys.exit(code)
