"""Holds the newest comparison against an earlier one: see playbook.compare.gate."""

from __future__ import annotations

import sys

from playbook.cli import entry
from playbook.compare import gate

if __name__ == "__main__":
    sys.exit(entry.run("gate", gate.main))
