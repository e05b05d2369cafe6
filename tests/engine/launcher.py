"""scripts/run.py on a machine that has the GPUs that PLAYBOOK_TEST_GPUS describes: what the tests start."""

import json
import os
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import run  # noqa: E402
from playbook import gpus  # noqa: E402
from playbook.runtimes import container_process  # noqa: E402

described = json.loads(os.environ["PLAYBOOK_TEST_GPUS"])
listed = [gpus.Gpu(**{**each, "capability": tuple(each["capability"])}) for each in described]
gpus.read = lambda: gpus.Inventory(tuple(listed), "580.95.05", "13.0")
if "PLAYBOOK_TEST_PATIENCE" in os.environ:
    container_process.ENGINE_RETURN_SECONDS = float(os.environ["PLAYBOOK_TEST_PATIENCE"])
if "PLAYBOOK_TEST_UID" in os.environ:
    os.umask(0)  # what the launcher makes as root, that user can write to
    os.getuid = os.getgid = lambda: int(os.environ["PLAYBOOK_TEST_UID"])

if __name__ == "__main__":
    sys.exit(run.main())
