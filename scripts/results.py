"""Rebuilds the published tables and pictures from their records, and publishes runs: see playbook.publish."""

from __future__ import annotations

import sys

from playbook import entry, publish

if __name__ == "__main__":
    sys.exit(entry.run("results", publish.main))
