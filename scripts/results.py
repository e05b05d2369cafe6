"""Rebuilds the published tables and pictures from their records, and publishes runs: see playbook.publish.publish."""

from __future__ import annotations

import sys

from playbook.cli import entry
from playbook.publish import publish

if __name__ == "__main__":
    sys.exit(entry.run("results", publish.main))
