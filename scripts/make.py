"""What every target of make runs: see playbook.cli.

Any Python 3 can parse this file, so that a wrong version gets a sentence and not a traceback.
"""

import sys

import setup

if sys.version_info[:2] < (3, 8):  # noqa: UP036  # make help needs no more
    sys.exit(setup.main())  # says so

from playbook.cli.make.command import main
from pretraining.console import outlive_readers

if __name__ == "__main__":
    with outlive_readers():
        code = main()
    sys.exit(code)
