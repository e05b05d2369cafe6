"""A container in the foreground of this terminal: a job that is no training, or a shell where a training would be."""

import contextlib
import secrets
import shutil
from dataclasses import replace

from playbook.launch import local
from playbook.launch.container import engine, spec, user
from playbook.launch.container.engine import DockerException, EngineError, NotFound
from playbook.launch.container.spec import Container

SHELL = ["sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"]


def run(container: Container, job: str, otherwise: str = "") -> int:
    """Run it through the docker command, which has a terminal's manners. Returns its exit code.

    Folders that it writes to are made, and those that stay empty go again. Raises EngineError without a docker command:
    `job`, such as "make shell", needs it, `otherwise`, such as ", or RUNTIME=cpu", does not.
    """
    if shutil.which("docker") is None:
        remedy = f"install docker-ce-cli (or Debian's docker-cli){otherwise}"
        raise EngineError(f"{job} needs the docker command here", remedy)
    made = [path for path in spec.written_folders(container) if not path.exists()]
    for path in made:
        path.mkdir(parents=True, exist_ok=True)
    if container.owner:
        container = replace(container, name=f"{spec.LABEL}-{secrets.token_hex(6)}")
    try:
        return local.in_foreground(container.in_foreground())
    finally:
        if container.owner:
            _take_back(container.name)
        for path in reversed(made):
            with contextlib.suppress(OSError):  # it has something in it
                path.rmdir()


def _take_back(name: str) -> None:
    """Hand its files over, whether it ended or could not start; the job's own exit code stays, whatever comes."""
    try:
        connected = engine.connect()
        if not connected.api.inspect_container(name)["State"]["Running"]:  # else only its docker command was killed
            user.take_back(connected, name)
    except NotFound:
        return
    except (EngineError, DockerException, OSError) as error:
        print(f"files that were made as root are still root's: the next command hands them over ({error})", flush=True)


def shell(training: Container) -> Container:
    """A shell in the container that a training would get."""
    given = spec.given((*spec.SECRETS, *spec.NETWORK))
    return replace(training, name=None, labels={}, command=SHELL, secrets=given)
