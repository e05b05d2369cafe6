"""Lists all runs, newest first: see playbook.cli.history."""

from __future__ import annotations

import sys

from playbook.cli import entry, history

if __name__ == "__main__":
    sys.exit(entry.run("history", history.main))
