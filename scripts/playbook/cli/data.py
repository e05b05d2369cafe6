"""`make data`: assets/prepare_data.py in the foreground of the place where trainings run. It needs no GPU."""

from __future__ import annotations

import argparse
import glob
import os
import signal
import sys
from pathlib import Path

from playbook import ASSETS, PROJECT
from playbook.common.venvs import ensure
from playbook.launch import foreground
from playbook.launch.container.folders import behind_links
from playbook.plan import gpus, local_python, place
from pretraining.data import OUT_OF_MEMORY, sources
from pretraining.errors import UsageError

SCRIPT = ASSETS / "prepare_data.py"


def run(arguments: list[str] | None = None) -> int:
    """Run the script with what it does not understand left to it. Returns its exit code.

    Raises:
        UsageError: no input, no tokenizer, an unknown runtime.
        SetupError, EngineError: the place cannot be made ready.
    """
    flags = argparse.ArgumentParser(prog="data.py", add_help=False, allow_abbrev=False)
    flags.add_argument("--runtime", default="auto")
    flags.add_argument("--tag")
    flags.add_argument("--input", default="")
    flags.add_argument("--tokenizer", default="")
    flags.add_argument("--out", type=Path)
    args, others = flags.parse_known_args(arguments)
    if not args.input or not args.tokenizer:
        raise UsageError(
            "name the text and its tokenizer: make data INPUT='corpus/*.jsonl' TOKENIZER=bytes, or a Hugging Face "
            "tokenizer by name or folder"
        )
    out = (args.out or Path("data") / _name(args.input, args.tokenizer)).absolute()
    wanted = ["--input", args.input, "--tokenizer", args.tokenizer, "--out", str(out), *others]
    runtime = _runtime(args.runtime)
    place.check_of_use(runtime, tag=args.tag)
    if runtime == "container":
        command = _in_container(wanted, args, out)
    else:
        python = str(ensure("cpu")) if runtime == "cpu" else local_python.python()
        command = [python, str(SCRIPT), *wanted]
    code = foreground.run(command)
    if code == 128 + signal.SIGKILL:
        print(f"data: it was killed; {OUT_OF_MEMORY}", file=sys.stderr)
    return code


def _name(patterns: str, tokenizer: str) -> str:
    """A dataset's name where none was given: after its folder or file, and the tokenizer."""
    first = Path(sources.words(patterns)[0])
    is_pattern = glob.has_magic(first.name) and not first.exists()
    stem = first.parent.absolute().name if is_pattern else first.name.split(".")[0]
    return f"{stem}-{Path(tokenizer).name}"


def _runtime(asked: str) -> str:
    """As for a training; a GPU that does not work matters to nobody here."""
    if asked not in place.RUNTIMES:
        raise UsageError(f"RUNTIME={asked} is not one of {', '.join(place.RUNTIMES)}")
    if asked != "auto":
        return asked
    if not gpus.read().gpus:
        return "cpu"
    return "local" if local_python.inside_container() and local_python.has_bridge() else "container"


def _in_container(wanted: list[str], args: argparse.Namespace, out: Path) -> list[str]:
    """The docker command. Input, tokenizer and output are mounted where they lie."""
    from playbook.launch.container import engine, image, spec

    connected = engine.connect()
    found = image.ensure(connected, image.named(args.tag))
    cache = PROJECT / ".cache"
    out.parent.mkdir(parents=True, exist_ok=True)
    reads = [Path(file) for word in sources.words(args.input) for file in sources.matching(word) or [word]]
    reads += [Path(args.tokenizer)] if os.path.isdir(args.tokenizer) else []
    asked = spec.Container(
        image=found.name,
        name=None,
        command=["python", str(SCRIPT), *wanted],
        environment=spec.user_environment(cache, found.path),
        secrets=spec.given((*spec.SECRETS, *spec.NETWORK)),
        folders=spec.checked(
            [
                spec.Folder(ASSETS),
                *(spec.Folder(path, True) for path in (out.parent, cache, *spec.huggingface_folders(args.tokenizer))),
                *(spec.Folder(each) for path in reads for each in _folders(path.absolute())),
            ]
        ),
        workdir=os.getcwd(),
        gpu=None,
        engine=connected.kind,
    )
    spec.make_ready(asked, "make data", ", or RUNTIME=cpu")
    return asked.in_foreground()


def _folders(path: Path) -> set[Path]:
    """The folders to mount for a file, a folder or a pattern: of a pattern the nearest one without a wildcard."""
    while glob.has_magic(str(path)) and not path.exists():
        path = path.parent
    return behind_links(path) or _folders(path.parent)
