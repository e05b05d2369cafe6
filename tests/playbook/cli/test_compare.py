"""`scripts/compare.py` as a user runs it: another folder, a pipe, typos, Ctrl-C."""

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "compare.py"
LOGS = Path(__file__).parents[2] / "logs"
FP8 = LOGS / "h200-fp8-0.4.0.log"
EMULATED = LOGS / "h200-nvfp4-emulated-0.4.0.log"


@pytest.fixture
def run(tmp_path: Path):
    """Runs the command in an empty folder, with nothing on PYTHONPATH."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FORCE_COLOR")}

    def command(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [sys.executable, SCRIPT, *map(str, arguments)],
            cwd=folder, env=environment | {"COLUMNS": "80"} | more, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in ended.stderr
        return ended

    return command


def test_two_runs(run, make_run) -> None:
    ended = run(make_run("bf16"), make_run("nvfp4", step=0.1))
    assert ended.returncode == 0
    assert "Speed-up          2.00x, nvfp4 over bf16" in ended.stdout
    assert "\x1b" not in ended.stdout
    assert not ended.stderr


def test_more_than_two_runs_against_a_base(run, make_run, tmp_path: Path) -> None:
    runs = make_run("bf16"), make_run("nvfp4", step=0.1), make_run("mxfp8", step=0.15)
    ended = run(*runs, "--base", "mxfp8", "--json", tmp_path / "c")
    assert ended.returncode == 0
    assert [line.split()[0] for line in ended.stdout.splitlines() if " ms " in line] == ["C:", "A:", "B:"]
    written = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert (written["baseline"], len(written["contrasts"])) == ("C", 2)
    assert written["reproduce"].startswith(f".venv/host/bin/python scripts/compare.py {runs[0]} ")
    assert run(*runs, "--base", "fp9").returncode == 2


@pytest.mark.parametrize("speed_up", ["1.68", "published"])
def test_the_command_that_repeats_it_has_its_speed_up(run, make_run, tmp_path: Path, speed_up: str) -> None:
    asked = (make_run("bf16"), make_run("nvfp4", step=0.1), "--speed-up", speed_up)
    assert run(*asked, "--json", tmp_path / "c.json").returncode == 0
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["reproduce"] == " ".join([".venv/host/bin/python scripts/compare.py", *map(str, asked)])


@pytest.mark.parametrize("columns", ["20", "80", "300"])
def test_numbers_do_not_wrap_at_any_width(run, make_run, columns: str) -> None:
    ended = run(make_run("bf16"), make_run("nvfp4", step=0.1), COLUMNS=columns)
    assert re.search(r"^step time, ms \(IQR\) +200\.0 \(198\.0-202\.0\) ", ended.stdout, re.MULTILINE)


def test_json_is_written_twice_to_a_new_folder(run, make_run, tmp_path: Path) -> None:
    runs, path = (make_run("bf16"), make_run("nvfp4")), tmp_path / "new" / "c.json"
    for _ in range(2):
        ended = run(*runs, "--json", path)
        assert ended.returncode == 0
        assert f"Written:\n  {path}" in ended.stdout
    assert json.loads(path.read_text())["kind"] == "nvfp4-playbook-comparison"


def test_json_into_a_folder(run, make_run, tmp_path: Path) -> None:
    assert run(make_run("bf16"), make_run("nvfp4"), "--json", tmp_path).returncode == 0
    assert (tmp_path / "comparison.json").exists()


def test_json_without_its_ending_names_a_folder(run, make_run, tmp_path: Path) -> None:
    runs = make_run("bf16"), make_run("nvfp4")
    for _ in range(2):
        assert f"Written:\n  {tmp_path}/new/mine/comparison.json" in run(*runs, "--json", tmp_path / "new/mine").stdout
    (tmp_path / "notes").write_text("mine")
    ended = run(*runs, "--json", tmp_path / "notes")
    assert (ended.returncode, ended.stdout, (tmp_path / "notes").read_text()) == (2, "", "mine")
    assert "a PATH without .json is a folder" in " ".join(run("--help").stdout.split())


@pytest.mark.parametrize("script", ["compare.py", "clean.py"])
def test_an_older_python_gets_a_sentence(script: str) -> None:
    path = SCRIPT.with_name(script)
    tree = ast.parse(path.read_text(), feature_version=(3, 4))
    assert not any(isinstance(node, ast.JoinedStr) for node in ast.walk(tree))
    assert not any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    pretended = (  # and without what 3.10 has not
        "import enum, runpy, sys; sys.version_info = (3, 10, 13, 'final', 0); del enum.StrEnum;"
        f"sys.path.insert(0, {str(path.parent)!r}); runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", pretended], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "is Python 3.10" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_foreign_json_file_is_refused_before_any_work(run, make_run, tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    ended = run(make_run("bf16"), make_run("nvfp4"), "--json", mine)
    assert (ended.returncode, ended.stdout, mine.read_text()) == (2, "", "{}")
    assert "not overwritten" in ended.stderr


def test_bad_input_leaves_an_earlier_report_as_it_is(run, make_run, tmp_path: Path) -> None:
    path, broken = tmp_path / "c.json", tmp_path / "binary.log"
    good = make_run("bf16"), make_run("nvfp4", step=0.1)
    assert run(*good, "--json", path).returncode == 0
    before = path.read_bytes()
    broken.write_bytes(bytes(range(256)) * 100)
    for bad in (broken, FP8, make_run("nvfp4", name="seed", parity={"seed": 9})):
        ended = run(good[0], bad, "--json", path)
        assert ended.returncode in (1, 2) and ended.stderr and not ended.stdout
    assert path.read_bytes() == before


def test_json_below_a_file_cannot_be_written(run, make_run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    ended = run(make_run("bf16"), make_run("nvfp4"), "--json", tmp_path / "file" / "c.json")
    assert ended.returncode == 1
    assert str(tmp_path / "file") in ended.stderr and "Not a directory" in ended.stderr


def test_refusal_names_each_fact_on_its_line_and_the_way_out(run) -> None:
    ended = run(FP8, EMULATED)
    assert ended.returncode == 1
    assert not ended.stdout
    lines = ended.stderr.splitlines()
    assert "  num_layers         A: 8  B: 4" in lines
    assert "  global_batch_size  A: 16  B: 2" in lines
    assert any("--force" in line for line in lines)


def test_force(run, tmp_path: Path) -> None:
    ended = run(FP8, EMULATED, "--force", "--json", tmp_path / "c.json")
    assert ended.returncode == 0
    assert ended.stdout.startswith("FORCED")
    assert "Cost of emulation 11.35 times the FP8 step" in ended.stdout
    assert json.loads((tmp_path / "c.json").read_text())["forced"] is True


def test_a_failed_run_is_refused_with_its_cause(run) -> None:
    ended = run(FP8, LOGS / "h200-fp8-8b-out-of-memory-0.4.0.log", "--force")
    assert ended.returncode == 1
    assert "iterations" in ended.stderr
    assert "--force" not in ended.stderr  # it would not help


def test_what_is_there_is_not_a_run(run, tmp_path: Path) -> None:
    empty, text, folder = tmp_path / "empty.log", tmp_path / "notes.txt", tmp_path / "folder"
    empty.write_text("")
    text.write_text("hello\n")
    folder.mkdir()
    for path, says in (
        (empty, "is empty"),
        (text, "not a Megatron-Bridge log"),
        (folder, "is not a run folder"),
        (tmp_path / "typo", "does not exist"),
        (FP8 / "below", "cannot read"),
        (Path("/dev/null"), "neither a run folder nor a log"),
    ):
        ended = run(FP8, path)
        assert (ended.returncode, ended.stdout) == (2, ""), path
        assert says in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_the_folder_of_the_runs_names_one_of_them(run, make_run) -> None:
    bf16 = make_run("bf16")
    ended = run(bf16, bf16.parent)
    assert ended.returncode == 2
    assert f"It holds 1 of them, such as {bf16}" in ended.stderr


@pytest.mark.parametrize("arguments", [(), ("one",), ("one", "two", "--jsn", "x")])
def test_usage(run, arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert "usage:" in ended.stderr or ended.stderr == "compare: two or more runs are needed, and one was given\n"


def test_a_reader_that_closes_the_pipe_costs_no_result(make_run, tmp_path: Path) -> None:
    command = f"{sys.executable} {SCRIPT} {make_run('bf16')} {make_run('nvfp4')} --json {tmp_path}/c.json | true"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("", "")
    assert json.loads((tmp_path / "c.json").read_text())["schema"] == 2


def test_ctrl_c_says_one_line(tmp_path: Path, until) -> None:
    slow = tmp_path / "slow.log"
    with slow.open("w") as file:
        for number in range(400_000):
            file.write(f" iteration {number}/ 400000 | elapsed time per iteration (ms): 1.0 | lm loss: 1.0 |\n")
    command = ["nice", "-n", "19", sys.executable, SCRIPT, slow, slow]  # on a busy machine it must not end unseen
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    own = Path(f"/proc/{process.pid}")

    def reads() -> bool:
        """Whether it is past its imports: it has the file open, or processes that read it."""
        for each in own.glob("fd/*"):
            with contextlib.suppress(FileNotFoundError):  # closed since
                if os.readlink(each) == str(slow):
                    return True
        return bool((own / f"task/{process.pid}/children").read_text())

    until(reads, 60)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "compare: interrupted\n")
