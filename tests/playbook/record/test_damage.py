"""Damaged run folders and comparisons, generated: each is met with one line, and hides no other run."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from playbook.cli import entry, history, train
from playbook.compare import gate, saved
from playbook.record import loading
from pretraining.errors import UsageError
from pretraining.record import run_folder, schema
from pretraining.record.schema import Damaged

SEED = 1234
PUBLISHED = Path(__file__).parents[3] / "assets" / "results" / "h200-unfused-llama3-8b"
TINY = PUBLISHED.parent / "cpu-tiny" / "bf16"
JSON_FILES = ("plan.json", "environment.json", "outcome.json")
LINE_FILES = ("metrics.jsonl", "device.jsonl")
ODD = (
    "x", "", "\ud800", "\x1b[2J", -1, 0, 3, 2.5, 1e308, -(10**12), 10**30, 10**400, float("inf"), float("nan"), None,
    True, [], {}, ["x"], {"x": "y"}, [[[]]], "2030-01-01",
)  # fmt: skip


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder of two whole runs, BF16 and emulated NVFP4."""
    runs = tmp_path / "runs"
    for name in ("bf16", "nvfp4-emulated"):
        shutil.copytree(PUBLISHED / name, runs / name)
        for packed in (runs / name).glob("*.gz"):
            packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
            packed.unlink()
    return runs


def command(capsys, work: Callable[[], int]) -> tuple[int, str, str]:
    """Exit code and what was said on either stream; what is no error of ours goes through, as it would to a user."""
    code = entry.run("x", work)
    return code, *capsys.readouterr()


@pytest.fixture
def compare(project: Path, monkeypatch):
    """`compare("--json", path)`: `scripts/compare.py`."""
    monkeypatch.syspath_prepend(str(project / "scripts"))
    import compare as script

    yield script.main
    sys.modules.pop("compare")


def somewhere(chosen: random.Random, content: Any) -> tuple[Any, Any]:
    """An object or list within `content`, and a name or index in it."""
    places = []

    def look(value: Any) -> None:
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, name))
            if isinstance(part, dict | list):
                look(part)

    look(content)
    return chosen.choice(places)


def odd(chosen: random.Random, text: str) -> str:
    """The JSON text with one value that is another, gone, or nested without end."""
    content = json.loads(text)
    holder, name = somewhere(chosen, content)
    if chosen.random() < 0.1:
        del holder[name]
        return json.dumps(content)
    holder[name] = "HERE"
    value = "[" * 100_000 if chosen.random() < 0.1 else json.dumps(chosen.choice(ODD)).replace("Infinity", "1e400")
    return json.dumps(content).replace('"HERE"', value)


def damage(chosen: random.Random, path: Path) -> None:
    """Spoil one file."""
    text = path.read_text()
    how = chosen.choice(["cut", "empty", "binary", "deep", "schema", "folder", *["odd"] * 6])
    if how == "odd" and path.suffix == ".jsonl":
        lines = text.splitlines()
        at = chosen.randrange(len(lines))
        for here in range(at, at + 1) if chosen.random() < 0.5 else range(len(lines)):
            lines[here] = odd(random.Random(at), lines[here])
        path.write_text("\n".join(lines) + "\n")
    elif how == "odd":
        path.write_text(odd(chosen, text))
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "schema":
        path.write_text(text.replace("{", f'{{"schema": {chosen.choice([2, 99, -1, 1e9, "null"])}, ', 1))
    else:
        spoilt = {
            "cut": text.encode()[: chosen.randrange(len(text))], "empty": b"", "binary": chosen.randbytes(3000),
            "deep": b"[" * 100_000 + b"]" * 100_000,
        }  # fmt: skip
        path.write_bytes(spoilt[how])


@pytest.mark.parametrize("part", range(6))
def test_a_damaged_run_is_one_line_and_hides_no_other(whole: Path, capsys, compare, part: int) -> None:
    chosen = random.Random(SEED + part)
    spoilt, good = whole / "nvfp4-emulated", whole / "bf16"
    kept = {name: (spoilt / name).read_bytes() for name in (*JSON_FILES, *LINE_FILES)}
    for case in range(40):
        name = chosen.choice([*kept])
        damage(chosen, spoilt / name)
        code, out, err = command(capsys, lambda: history.main(["--runs", str(whole)]))
        assert (code, err) == (0, "") and "bf16" in out and "succeeded" in out and "nvfp4-emulated" in out, case
        code, out, err = command(capsys, lambda: compare([str(good), str(spoilt)]))
        assert code in (0, 1, 2), case
        if code == 2:
            assert len(err.splitlines()) == 1 and str(spoilt / name) in err and not out, err
        shutil.rmtree(spoilt / name) if (spoilt / name).is_dir() else None
        for each, content in kept.items():
            (spoilt / each).write_bytes(content)


def test_a_damaged_comparison_is_one_line(whole: Path, capsys, compare) -> None:
    chosen = random.Random(SEED)
    assert (
        compare([str(whole / "bf16"), str(whole / "nvfp4-emulated"), "--json", str(whole / "compared" / "c.json")]) == 0
    )
    baseline = whole / "compared" / "c.json"
    text = baseline.read_text()
    spoilt = whole / "compared" / saved.FILE
    for case in range(60):
        spoilt.write_text(text)
        damage(chosen, spoilt)
        capsys.readouterr()
        for arguments in ([str(spoilt), "--current", str(baseline)], [str(baseline), "--current", str(spoilt)]):
            code, out, err = command(capsys, lambda given=arguments: gate.main(given))
            assert code in (0, 1, 2) and (len(err.splitlines()), bool(out)) == (
                (1, False) if code == 2 else (0, True)
            ), case
        code, out, err = command(capsys, lambda: gate.main([str(baseline), "--runs", str(whole)]))
        assert code in (0, 1, 2), case
        spoilt.rmdir() if spoilt.is_dir() else spoilt.unlink()


@pytest.mark.parametrize(
    "words",
    [("eval", "--run"), ("export", "--export", "exported", "--run"), ("bf16", "--train-iters", "500", "--resume")],
    ids=lambda words: words[0],
)
def test_a_damaged_run_is_neither_evaluated_nor_exported_nor_continued(
    tmp_path: Path, capsys, make_checkpoint, words: tuple[str, ...]
) -> None:
    """Records and checkpoints: one line, or a plan where what is damaged is not looked at; no folder is made."""
    chosen, runs = random.Random(SEED), tmp_path / "runs"
    run = make_checkpoint(shutil.copytree(TINY, runs / "run"), 60, 120)
    files = [path for path in run.rglob("*") if path.is_file() and path.suffix != ".gz"]
    kept = {path: path.read_bytes() for path in files}
    arguments = [*words, str(run), "--runtime", "cpu", "--runs", str(runs), "--dry-run"]
    assert command(capsys, lambda: train.run(arguments))[0] == 0
    for case in range(40):
        path = chosen.choice(files)
        damage(chosen, path) if path.suffix == ".json" else damage_bytes(chosen, path)
        code, _, err = command(capsys, lambda: train.run(arguments))
        assert code in (0, 2) and len(err.splitlines()) == (code == 2), (case, path, err)
        assert [each.name for each in runs.iterdir()] == ["run"]
        path.rmdir() if path.is_dir() else None
        path.write_bytes(kept[path])


def damage_bytes(chosen: random.Random, path: Path) -> None:
    """Spoil a file that is no JSON."""
    content = path.read_bytes()
    spoilt = [content[: chosen.randrange(len(content))], b"", chosen.randbytes(3000), b"abc\n", b"[" * 100_000]
    path.write_bytes(chosen.choice(spoilt))


def test_a_damaged_config_is_one_line(tmp_path: Path, capsys) -> None:
    chosen = random.Random(SEED)
    whole = {
        "playbook": {"arguments": ["--model", "tiny", "--precision", "nvfp4", "--train-iters", "40", "--seed", "7"]},
        "train": {"train_iters": 40, "global_batch_size": 32}, "optimizer": {"lr": 0.003, "adam_beta2": 0.95},
        "model": {"num_layers": 4, "seq_length": 128}, "dataset": {"blend": None},
    }  # fmt: skip
    text, path = json.dumps(whole, indent=1), tmp_path / "config.yaml"
    arguments = ["nvfp4", "--config", str(path), "--runtime", "cpu", "--runs", str(tmp_path / "runs"), "--dry-run"]
    path.write_text(text)
    assert command(capsys, lambda: train.run(arguments))[0] == 0
    refused = 0
    for case in range(80):
        path.write_text(text)
        damage(chosen, path)
        code, _, err = command(capsys, lambda: train.run(arguments))
        assert code in (0, 2) and len(err.splitlines()) <= 3 and bool(err) == (code == 2), (case, err)
        refused += code == 2
        path.rmdir() if path.is_dir() else None
    assert refused > 40 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("environment.json", '{"parity": {"world_size": "x"}}',
         'parity.world_size is "x" and not a whole number from 0'),
        ("environment.json", '{"parity": {"seed": 1e400}}', "parity.seed is no finite number within 64 bits"),
        ("environment.json", '{"device": "cpu"}', 'device is "cpu" and not an object'),
        ("environment.json", '{"device": {"capability": [9]}}',
         "device.capability is a list and not two whole numbers"),
        ("environment.json", "[" * 100_000, "it is not valid JSON (nested more than 32 deep)"),
        ("environment.json", '{"x": ' + "[" * 50 + "]" * 50 + "}", "it is nested more than 32 deep"),
        ("environment.json", '{"started": 5}', "started is 5 and not a text or null"),
        ("outcome.json", "", "it is empty"),
        ("outcome.json", '{"verdict": "fine"}', 'the verdict "fine" is none of succeeded'),
        ("outcome.json", '{"peak_memory": "x"}', 'peak_memory is "x" and not an object'),
        ("plan.json", '{"request": {"data": "\\ud800"}}', 'request.data is "\\ud800", half of a letter'),
        ("plan.json", "[]", "it holds no JSON object but a list"),
        ("metrics.jsonl", '{"kind": "train", "iteration": 1}\n{"kind": "train", "iteration": 1e400}',
         "line 2: iteration is no finite number within 64 bits"),
        ("metrics.jsonl", '\n{"kind": "train", "iteration": 2, "loss": "x"}',
         'line 2: loss is "x" and not a number or null'),
        ("metrics.jsonl", '{"kind": "train", "iteration": 1, "x": ' + "[" * 100_000,
         "line 1 is not valid JSON (nested more than 32 deep)"),
        ("metrics.jsonl", '{"kind": "train", "iteration": 1}\n\x00\xff\n', "line 2 is not valid JSON ("),
        ("device.jsonl", '{"device": 0, "power_w": "x"}', 'line 1: power_w is "x" and not a number or null'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(whole: Path, name: str, content: str, said: str) -> None:
    (whole / "bf16" / name).write_text(content)
    with pytest.raises(Damaged) as error:
        loading.load(whole / "bf16")
    assert str(error.value).startswith(f"{whole / 'bf16' / name} is damaged: {said}")
    assert str(error.value).endswith("was it edited? Take an undamaged copy, or leave this one out")


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_newer_schema_is_no_damage(whole: Path, name: str, capsys) -> None:
    path = whole / "bf16" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2, "parity": 5}))
    with pytest.raises(UsageError, match=f"{name} has schema 2, and this playbook reads up to 1: .*update this one"):
        run_folder.read_facts(whole / "bf16")
    history.main(["--runs", str(whole)])
    assert "unreadable: " in capsys.readouterr().out


def test_damage_is_told_from_a_process_of_its_own(whole: Path, monkeypatch) -> None:
    monkeypatch.setattr(loading, "LARGE", 1)
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda process: {0, 1})
    (whole / "bf16" / "plan.json").write_text("{")
    with pytest.raises(Damaged, match=r"plan\.json is damaged"):
        loading.load_all([whole / "bf16", whole / "nvfp4-emulated"])


def test_null_is_as_missing(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text('{"precision": null, "parity": {"seed": null}, "notes": null}')
    assert schema.read(tmp_path / "environment.json", schema.ENVIRONMENT) == {"parity": {"seed": None}}
    assert schema.read(tmp_path / "nowhere.json", schema.ENVIRONMENT) == {}


@pytest.mark.parametrize("text", ["\x1b]0;owned\x07", "\x1b[2J", "\x9b2J", "\x08"])
def test_no_text_of_a_record_steers_a_terminal(tmp_path: Path, text: str, capsys) -> None:
    for escaped in (True, False):
        path = tmp_path / "outcome.json"
        path.write_text(json.dumps({"cause": f"a{text}\\u001b\n", "verdict": text}, ensure_ascii=escaped))
        found = schema.read(path, schema.OUTCOME)
        assert not schema.CONTROL.search(found["cause"] + found["verdict"])
        assert found["cause"].startswith("a\\x") and found["cause"].endswith("\\u001b\n")

    def fail() -> int:
        raise UsageError(f"it says {text}")

    assert entry.run("x", fail) == 2 and not schema.CONTROL.search(capsys.readouterr().err)
