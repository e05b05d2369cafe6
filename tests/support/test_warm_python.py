"""A forked Python begins and ends as one that was started."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm_python
from warm_python import WarmPython


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmPython]:
    python = WarmPython("import fractions", os.environ)
    yield python
    python.close()


@pytest.mark.parametrize(
    "code",
    [
        "import sys; print(sys.argv, __name__, sys.path[0], repr(sys.stdin.read())); print('e', file=sys.stderr)",
        "import os; print(os.getcwd(), sorted(os.environ))",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('words')",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import atexit, threading; atexit.register(print, 'last'); threading.Timer(0.1, print, ['late']).start()",
        "import signal; print([signal.getsignal(each) for each in (signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE)])",
    ],
)
@pytest.mark.parametrize("script", [False, True])
def test_it_is_as_if_started(warm, tmp_path: Path, code: str, script: bool) -> None:
    (tmp_path / "script.py").write_text(code)
    words = [str(tmp_path / "script.py"), "--flag"] if script else ["-c", code, "--flag"]
    env = {"PATH": os.environ["PATH"], "LC_CTYPE": "C.UTF-8", "A": "b"}
    started = subprocess.run(
        [sys.executable, *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    forked = warm.run(words, env, 60)
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_its_imports_were_done_before(warm) -> None:
    assert warm.run(["-c", "import sys; print('fractions' in sys.modules)"], os.environ, 60).stdout == "True\n"


def test_one_that_takes_too_long_is_killed(warm, until, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(["-c", code, str(pid)], os.environ, 2)
    until(lambda: not Path(f"/proc/{pid.read_text()}").exists(), 10)
    assert warm.run(["-c", "print(1)"], os.environ, 60).stdout == "1\n"


@pytest.mark.parametrize(
    ("imports", "says"),
    [("raise SystemExit(3)", "within 1 s: .* has ended with 3"), ("import time; time.sleep(60)", "still runs")],
)
def test_a_server_that_forks_nothing_is_said(monkeypatch, imports: str, says: str) -> None:
    monkeypatch.setattr(warm_python, "PATIENCE", 1.0)
    python = WarmPython(imports, os.environ)
    if "3" in says:
        python._server.wait(timeout=60)
    with pytest.raises(RuntimeError, match=says):
        python.run(["-c", ""], os.environ, 60)
    python._server.kill()
    python.close()
