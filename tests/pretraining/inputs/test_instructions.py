"""Every line of instructions is looked at before anything trains, and what is wrong is told by its number."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from pretraining.errors import UsageError
from pretraining.inputs import finetuning

packed = partial(gzip.compress, mtime=0)  # tests are called by what they are given: the same in each process


def good(count: int) -> list[bytes]:
    return [json.dumps({"input": f"What is {n} + {n}?", "output": f"{2 * n}."}).encode() + b"\n" for n in range(count)]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"input": "x", "output": null}', "its 'output' is no string but null"),
        (b'{"input": null, "output": "x"}', "its 'input' is no string but null"),
        (b'{"input": "x", "output": 5}', "its 'output' is no string but number"),
        (b'{"input": "x", "output": ["a"]}', "its 'output' is no string but list"),
        (b'{"input": {"a": 1}, "output": "x"}', "its 'input' is no string but object"),
        (b'{"input": true, "output": "x"}', "its 'input' is no string but true or false"),
        (b'{"input": "x", "output": ""}', "its 'output' is empty: there is nothing to learn"),
        (b'{"input": "x", "output": " \\n"}', "its 'output' is empty: there is nothing to learn"),
        (b'{"input": "x"}', "no field 'output', only 'input'"),
        (b'{"output": "x", "id": 3}', "no field 'input', only 'output', 'id'"),
        (b'{"messages": []}', "no field 'input' and 'output', only 'messages'"),
        (b"{}", "no field 'input' and 'output', only an empty object"),
        (b"{broken", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
        (b'{"input": "x", "output": "y"} {"input": "x", "output": "y"}', "not JSON (Extra data at column 31)"),
        (b'["x", "y"]', "no JSON object but list"),
        (b'"x"', "no JSON object but string"),
        (b"null", "no JSON object but null"),
        (b'{"input": "caf\xe9", "output": "y"}', "not UTF-8 (invalid continuation byte)"),
        (b'{"input": "\\ud83d", "output": "y"}', "half of a surrogate pair"),
        (b'{"input": "x", "output": "y", "n": 1' + b"0" * 5000 + b"}", "JSON with a number that Python does not hold"),
        (b'{"input": ' + b"[" * 100_000, "JSON with objects or lists nested too deep"),
    ],
)
@pytest.mark.parametrize("name", [finetuning.TRAINING, finetuning.VALIDATION])
def test_a_line_that_is_no_instruction(tmp_path: Path, name: str, line: bytes, why: str) -> None:
    (tmp_path / finetuning.TRAINING).write_bytes(b"".join(good(9)))
    (tmp_path / name).write_bytes(b"".join([*good(5), b"\n", line + b"\n", *good(3)]))
    with pytest.raises(UsageError) as told:
        finetuning.files(str(tmp_path))
    first, second = str(told.value).splitlines()
    assert first == f"--data {tmp_path / name}: 1 of 9 lines are no instructions:"
    assert second.startswith(f"  {tmp_path / name}:7: {why}")


def test_the_first_few_and_the_number_of_all(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"".join(good(100)) + b'{"input": "x"}\n' * 30)
    with pytest.raises(UsageError) as told:
        finetuning.files(str(file))
    lines = str(told.value).splitlines()
    assert lines[0].endswith("30 of 130 lines are no instructions:") and lines[-1] == "  and 25 more"
    assert [line.split(":")[1] for line in lines[1:-1]] == ["101", "102", "103", "104", "105"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            json.dumps([json.loads(line) for line in good(3)]).encode(),
            "is a JSON array and not JSON lines: `jq",
        ),
        (json.dumps(json.loads(good(1)[0]), indent=2).encode(), "is JSON objects and not one a line"),
        (packed(b"".join(good(3))), "is gzip: `gzip -dc <"),
        (b"".join(good(3)).decode().encode("utf-16"), "is in UTF-16: `iconv -f UTF-16 -t UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer and not the file itself"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"PAR1" + bytes(99), "is Parquet: `python3 -c"),
        (b"input,output\nx,y\n", "is CSV and not JSON lines"),
        (b"", "is empty: every line is to have 'input' and 'output'"),
        (b"\n \n", "is empty: every line is to have 'input' and 'output'"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(UsageError) as told:
        finetuning.files(str(file))
    assert str(told.value).startswith(f"--data {file} {what}")


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(".git/annex/objects/ab")
    with pytest.raises(UsageError, match="is a link of git-annex to what is not here"):
        finetuning.files(str(tmp_path / "a.jsonl"))


def test_alpacas_form_is_not_half_read(tmp_path: Path) -> None:
    """And the command that is printed makes it whole."""
    file = tmp_path / "a.jsonl"
    rows = [
        {"instruction": "Add.", "input": "1 and 1", "output": "2"},
        {"instruction": "Greet.", "input": "", "output": "Hello"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="whose 'instruction' nobody would read") as told:
        finetuning.files(str(file))
    if not shutil.which("jq"):
        pytest.skip("jq is not installed")
    subprocess.run(str(told.value).partition("`")[2].rpartition("`")[0], shell=True, check=True)
    made = tmp_path / "a.mended.jsonl"
    assert finetuning.files(str(made)) == {finetuning.TRAINING: made}
    assert [json.loads(line)["input"] for line in made.read_text().splitlines()] == ["Add.\n\n1 and 1", "Greet."]


@pytest.mark.parametrize(
    ("content", "blank"),
    [
        (b"\n".join([b"", *good(6), b" \t"]) + b"\n\r\n", 9),
        (b"\xef\xbb\xbf" + b"".join(good(6)), 0),
        (b"\xef\xbb\xbf\n" + b"".join(good(6)).removesuffix(b"\n"), 1),
    ],
)
def test_what_is_no_instruction_is_not_laid_out(tmp_path: Path, content: bytes, blank: int) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    assert finetuning.check(file).lines == 6
    folder = finetuning.lay_out({finetuning.TRAINING: file}, tmp_path / "cache" / "a-123")
    assert folder == tmp_path / "cache" / "a-123-cleaned"
    assert (folder / finetuning.TRAINING).read_bytes().splitlines() == [line.strip() for line in good(6)]
    word = "line" if blank == 1 else "lines"
    assert finetuning.left_out(str(file)) == (f"{blank} blank {word} of a.jsonl left out" if blank else "")


def test_whole_files_are_linked(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"".join(good(6)))
    folder = finetuning.lay_out({finetuning.TRAINING: file}, tmp_path / "a-123")
    assert folder == tmp_path / "a-123" and (folder / finetuning.TRAINING).readlink() == file
    file.write_bytes(b"".join(good(4)) + b"\n")  # changed since: looked at again
    assert finetuning.check(file) == finetuning.Counts(4, 1, False)
