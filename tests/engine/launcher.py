"""scripts/run.py on a machine that the test describes.

PLAYBOOK_TEST_GPUS lists the GPUs as JSON, PLAYBOOK_TEST_NAMES begins container names and is the label. Optional:
PLAYBOOK_TEST_NO_GPU leaves the GPU out of requests (the engine has none), PLAYBOOK_TEST_REQUEST is how GPUs are asked
for, PLAYBOOK_TEST_UID who asks, PLAYBOOK_TEST_PATIENCE for how many seconds an engine that went away is waited for.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from playbook.launch.container import spec  # noqa: E402

spec.LABEL = os.environ["PLAYBOOK_TEST_NAMES"]  # before others take it from there

from playbook.launch.container import container_process, engine, user  # noqa: E402
from playbook.plan import gpus, local_python  # noqa: E402

described = json.loads(os.environ["PLAYBOOK_TEST_GPUS"])
listed = tuple(gpus.Gpu(**{**each, "capability": tuple(each["capability"])}) for each in described)
gpus.read = lambda: gpus.Inventory(listed, "580.95.05", "13.0")
local_python.inside_container = lambda: False  # as on a station, wherever the tests run

user.CACHE = Path(os.environ["HF_HOME"]).parent / "cache" / "images"

if "PLAYBOOK_TEST_NO_GPU" in os.environ:
    send, type_out = spec.Container.create_arguments, spec.Container.docker_run
    spec.Container.create_arguments = lambda self, api: send(replace(self, gpu=None), api)
    spec.Container.docker_run = lambda self, *extra: type_out(replace(self, gpu=None), *extra)
    engine._gpu_support = lambda info: "nvidia"
if "PLAYBOOK_TEST_REQUEST" in os.environ:
    engine._gpu_support = lambda info: os.environ["PLAYBOOK_TEST_REQUEST"]
if "PLAYBOOK_TEST_PATIENCE" in os.environ:
    container_process.ENGINE_RETURN_SECONDS = float(os.environ["PLAYBOOK_TEST_PATIENCE"])
if "PLAYBOOK_TEST_UID" in os.environ:
    os.umask(0)  # what the launcher makes, that user can write to
    os.getuid = os.getgid = lambda: int(os.environ["PLAYBOOK_TEST_UID"])

if __name__ == "__main__":
    from playbook.cli import data, entry

    data.PROJECT = Path.cwd()  # whose .cache it writes
    sys.exit(entry.main())
