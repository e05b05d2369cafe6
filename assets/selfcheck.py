#!/usr/bin/env python3
"""Hold Transformer Engine's native NVFP4 kernels against this project's arithmetic, on a GPU with FP4 tensor cores.

    python3 assets/selfcheck.py --folder nemo_experiments/selfcheck

Writes selfcheck.json into the folder: versions, GPU, and each comparison with its first difference. It names neither
machine nor user, and is meant to be sent. `make selfcheck` runs this in the NeMo container.

Exit codes: 0 equal, 1 something differs, 2 not possible here, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pretraining import record, versions
from pretraining.errors import UsageError
from pretraining.precision import find_precision
from pretraining.streams import outlive_readers

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
    versions.quantizer_factory("triton")  # needs custom recipes, as this project's layers do


def run(folder: Path, commit: str) -> int:
    """Check, print, write. Returns the exit code."""
    from pretraining.selfcheck import check, engines, report

    if report.fast_math():
        print(f"{report.FAST_MATH} is on: Transformer Engine skips a rounding to BF16, differences are expected")
    print("NVFP4 of Transformer Engine's kernels and of this project, on the same tensors: a minute or two", flush=True)
    found = list(check.everything(engines.TransformerEngine(), engines.Ours(), VECTORS, "cuda"))
    folder.mkdir(parents=True, exist_ok=True)
    record.write_json(folder / record.SELFCHECK, report.describe(found, commit))
    report.show(found)
    print(f"{report.verdict(found)}\n  in full: {folder / record.SELFCHECK}")
    print("  Please send that file, whatever it says: attach it to an issue of the repository that you cloned.")
    return 0 if report.equal(found) else 1


def main() -> int:
    """Returns the exit code."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False)
    flags.add_argument("--folder", type=Path, required=True, help="a new folder for the result")
    flags.add_argument("--commit", default="", help="the project's, to write into the file")
    args = flags.parse_args()
    try:
        if (args.folder / record.SELFCHECK).exists():
            raise UsageError(f"{args.folder} holds a selfcheck already; name another folder")
        require_native()
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
