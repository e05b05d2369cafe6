"""Where every command of the playbook begins, and how it ends: in words, and with its exit code."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from playbook import PROJECT
from playbook.cli.make.command import in_makes_words
from playbook.common.failures import Failure
from playbook.common.venvs import ensure, python_of
from pretraining.console import outlive_readers
from pretraining.errors import UsageError
from pretraining.record.schema import CONTROL

# The jobs that are none of `train.JOBS`: what does each, given the words after its name.
JOBS = {
    "data": "playbook.cli.data:run",
    "doctor": "playbook.cli.doctor:main",
    "estimate": "playbook.plan.estimate:main",
    "gate": "playbook.compare.gate:main",
    "history": "playbook.cli.history:main",
    "results": "playbook.publish.publish:main",
    **dict.fromkeys(("submit", "jobs", "logs", "cancel"), "playbook.cli.cluster:run"),
}
INTERRUPTED = {
    "data": "interrupted; the same command goes on from here",
    "submit": "interrupted; what was submitted goes on: make jobs, make cancel",
}


def main() -> int:
    """Do the job that the command line begins with. Returns its exit code."""
    words = sys.argv[1:]
    name = words[0] if words else ""

    def work() -> int:
        module, _, function = JOBS.get(name, "playbook.cli.train:run").partition(":")
        whole = name not in JOBS or module == "playbook.cli.cluster"  # which are several jobs
        return getattr(importlib.import_module(module), function)(words if whole else words[1:])

    return run(name if name in JOBS else "run", work, interrupted=INTERRUPTED.get(name, "interrupted"))


def run(name: str, work: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Do the work; returns its exit code, 1 where it failed, 2 for wrong usage, 130 where it was interrupted.

    The command's `name` begins what is said of its end; `interrupted` is what Ctrl-C means where the work does not say.
    """
    with outlive_readers():
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="surrogateescape")  # a path of bytes that are no text is printed as it is
        try:
            code = work()
            sys.stdout.flush()  # onto a full disk it fails here, and is said
            return code
        except UsageError as error:
            return _end(name, in_makes_words(str(error)), 2)
        except (Failure, OSError) as error:
            return _end(getattr(error, "who", "") or name, _in_words(error), 1)
        except ModuleNotFoundError:
            if not _without_packages():
                raise
            return run(name, _with_packages, interrupted=interrupted)
        except KeyboardInterrupt as error:
            return _end(name, str(error) or interrupted, 130)


def _without_packages() -> bool:
    """Whether this is one of the scripts, as a dry run starts it in a fresh clone: by any Python, with no packages."""
    started = Path(sys.argv[0]).resolve().parent == PROJECT / "scripts"
    return started and Path(sys.prefix).resolve() != python_of("host").parents[1].resolve()


def _with_packages() -> int:
    """Start again with the launcher's packages, which this needs after all."""
    python = str(ensure("host"))
    os.execv(python, [python, *sys.argv])


def _end(name: str, words: str, code: int) -> int:
    words = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", words)  # they may quote a file of somebody else's
    print(f"{name}: {words}", file=sys.stderr)
    return code


def _in_words(error: Exception) -> str:
    """What went wrong; an engine that goes away between two calls speaks HTTP."""
    if type(error).__module__.partition(".")[0] not in ("docker", "requests"):
        return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    from playbook.launch.container.engine import explain

    return explain(error)
