"""Set up one of the project's virtual environments, once; nothing to do prints nothing.

    python3 scripts/setup.py host|cpu|test

Only what any Python 3 can parse stands in this file, so that a wrong version gets a sentence and not a traceback.
"""

import sys

SUPPORTED = ((3, 11), (3, 12))


def main():
    found = sys.version_info[:2]
    if found not in SUPPORTED:
        sys.stderr.write(
            # Neither an f-string nor a format method: Python 2 and 3.5 must get as far as this.
            "setup: " + sys.executable + " is Python " + ".".join(map(str, found)) + ", and the pinned packages exist "
            "for 3.11 and 3.12: install one of these (Debian, Ubuntu: apt install python3.12-venv) or name it: "
            "make PYTHON=python3.12 ...\n"
        )
        return 2
    from playbook.common.venvs import main as set_up

    return set_up(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
