"""`make data`: assets/prepare_data.py in the foreground of the place where trainings run. It needs no GPU."""

import argparse
import glob
import os
import signal
import sys
from pathlib import Path

from playbook import ASSETS, PROJECT
from playbook.common.venvs import ensure
from playbook.launch import local
from playbook.launch.container.folders import behind_links
from playbook.plan import gpus, local_python, place
from playbook.plan.place import Place
from pretraining.data import OUT_OF_MEMORY, bpe, sources
from pretraining.errors import UsageError

SCRIPT = ASSETS / "prepare_data.py"


def run(arguments: list[str] | None = None) -> int:
    """Run the script with what it does not understand left to it. Returns its exit code."""
    flags = argparse.ArgumentParser(prog="run.py data", add_help=False, allow_abbrev=False)
    flags.add_argument("--runtime", default="auto")
    flags.add_argument("--tag")
    flags.add_argument("--container-user", default="")
    flags.add_argument("--input", default="")
    flags.add_argument("--tokenizer", default="")
    flags.add_argument("--out", type=Path)
    args, others = flags.parse_known_args(arguments)
    if not args.input or not args.tokenizer:
        raise UsageError(
            "name the text and its tokenizer: make data INPUT='corpus/*.jsonl' TOKENIZER=bytes, or a Hugging Face "
            "tokenizer by name or folder"
        )
    bpe.size_of(args.tokenizer)  # a size that is none, before anything is set up
    out = (args.out or Path("data") / _name(args.input, args.tokenizer)).absolute()
    wanted = ["--input", args.input, "--tokenizer", args.tokenizer, "--out", str(out), *others]
    found = gpus.read()  # one that does not answer matters to nobody here
    runtime = place.runtime_of(args.runtime, found if found.gpus else gpus.Inventory()).value
    place.check_of_use(runtime, tag=args.tag, user=args.container_user)
    if runtime == "container":
        code = _in_container(wanted, args, out)
    else:
        python = str(ensure("cpu")) if runtime == "cpu" else local_python.python()
        code = local.in_foreground([python, str(SCRIPT), *wanted])
    if code == 128 + signal.SIGKILL:
        print(f"data: it was killed; {OUT_OF_MEMORY}", file=sys.stderr)
    return code


def _name(patterns: str, tokenizer: str) -> str:
    """A dataset's name where none was given: after its folder or file, and the tokenizer."""
    first = Path(sources.words(patterns)[0])
    is_pattern = glob.has_magic(first.name) and not first.exists()
    stem = first.parent.absolute().name if is_pattern else first.name.split(".")[0]
    return f"{stem}-{Path(tokenizer).name.replace(':', '-')}"  # a path with a colon is no mount of an engine


def _in_container(wanted: list[str], args: argparse.Namespace, out: Path) -> int:
    """Input, tokenizer and output are mounted where they lie. Returns the script's exit code."""
    from playbook.launch.container import engine, foreground, image, prepare, spec, user

    connected = engine.connect()
    user.take_back_all(connected)
    where = Place("container", engine=connected.kind, image=image.named(args.tag), container_user=args.container_user)
    where = prepare.entered(where, connected)
    if reason := where.choices.get("user"):
        place.show({"user": reason})
    reads = [Path(file) for word in sources.words(args.input) for file in sources.matching(word) or [word]]
    reads += [Path(args.tokenizer)] if os.path.isdir(args.tokenizer) else []
    asked = spec.inside(
        where,
        ["python", str(SCRIPT), *wanted],
        cache=PROJECT / ".cache",
        folders=[
            spec.Folder(out.parent, True),
            *(spec.Folder(each) for path in reads for each in _folders(path.absolute())),
        ],
        workdir=Path.cwd(),
        hub=[] if bpe.size_of(args.tokenizer) else [args.tokenizer],
        secrets=spec.given((*spec.SECRETS, *spec.NETWORK)),
    )
    return foreground.run(asked, "make data", ", or RUNTIME=cpu")


def _folders(path: Path) -> set[Path]:
    """The folders to mount for a file, a folder or a pattern: of a pattern the nearest one without a wildcard."""
    while glob.has_magic(str(path)) and not path.exists():
        path = path.parent
    return behind_links(path) or _folders(path.parent)
