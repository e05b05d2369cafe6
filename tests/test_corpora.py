"""`make data` on what people really have: each file is told by its content, and what cannot be read is named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zstandard
from megatron.core.datasets.indexed_dataset import IndexedDataset

import prepare_data
from pretraining.data import sources
from pretraining.errors import UsageError
from pretraining.inputs import contents, manifest

packed = partial(gzip.compress, mtime=0)  # tests are called by what they are given: the same in each process

TEXTS = [f"document {n}: " + "word " * (n % 50) for n in range(60)]
LINES = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(TEXTS)).encode()
ARRAY = json.dumps([json.loads(line) for line in LINES.splitlines()])


def prepare(folder: Path, given: object, *words: str) -> manifest.Manifest | None:
    arguments = ["--tokenizer", "bytes", "--workers", "1", "--out", str(folder / "made"), "--input", str(given), *words]
    return prepare_data.prepare(prepare_data.parser().parse_args(arguments))


def documents(prefix: Path) -> list[str]:
    dataset = IndexedDataset(str(prefix))
    return [bytes(dataset[number][:-1].astype(np.uint8)).decode() for number in range(len(dataset))]


def zstd(content: bytes, *, long: bool = False) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True) if long else None
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(content) + compressor.flush()


def tar(content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("corpus.jsonl")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("corpus.jsonl", content)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("plain.jsonl.gz", LINES, "it is not compressed"),
        ("plain.jsonl.zst", LINES, "it is not compressed"),
        ("plain.jsonl.xz", LINES, "it is not compressed"),
        ("packed.jsonl", packed(LINES), "it is gzip"),
        ("packed.json", zstd(LINES), "it is zstd"),
        ("packed.ndjson", bz2.compress(LINES), "it is bzip2"),
        ("other.jsonl.gz", zstd(LINES), "it is zstd"),
        ("other.jsonl.zst", packed(LINES), "it is gzip"),
        ("other.jsonl.gz", lzma.compress(LINES), "it is xz"),
        ("packed.jsonl.bz2", bz2.compress(LINES), ""),
        ("packed.jsonl.xz", lzma.compress(LINES[:99]) + lzma.compress(LINES[99:]), ""),
        ("skipped.jsonl.zst", b"\x50\x2a\x4d\x18\4\0\0\0abcd" + zstd(LINES), ""),
        ("long.jsonl.zst", zstd(LINES, long=True), ""),
        ("mark.jsonl", b"\xef\xbb\xbf" + LINES, ""),
        ("mark.jsonl.gz", packed(b"\xef\xbb\xbf" + LINES), ""),
        ("dos.jsonl", LINES.replace(b"\n", b"\r\n"), ""),
        ("corpus", LINES, "it holds a JSON object a line"),
        ("corpus.parquet", LINES, "it holds a JSON object a line"),
        ("part-00000", packed(LINES), "it is gzip and it holds a JSON object a line"),
        ("a[1].jsonl", LINES, ""),
        ("o'brien.jsonl", LINES, ""),
        ("*.jsonl", LINES, ""),
        ('say "hello" (2).jsonl', LINES, ""),
        ("a folder's/{x}?.jsonl", LINES, ""),
    ],
)
def test_it_is_read_as_what_it_is(tmp_path: Path, capsys, name: str, content: bytes, note: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    (tmp_path / "other.txt").write_text("not asked for")
    prepare(tmp_path, file)
    assert documents(tmp_path / "made") == TEXTS
    said = capsys.readouterr().out
    assert said.startswith(f"{file} is read as what it is: {note}\n") if note else said == ""


@pytest.mark.parametrize("name", ["corpus.parquet", "corpus.jsonl", "corpus"])
def test_parquet_under_any_name(tmp_path: Path, capsys, name: str) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet is read where pyarrow is installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / name)
    prepare(tmp_path, tmp_path / name)
    assert documents(tmp_path / "made") == TEXTS
    assert ("it holds Parquet" in capsys.readouterr().out) == (name != "corpus.parquet")


LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n".encode()


@pytest.mark.parametrize(
    ("name", "content", "what", "command"),
    [
        ("a.jsonl", LFS, "a Git LFS pointer and not the file itself", "git -C {0.parent} lfs pull --include={0.name}"),
        ("a.jsonl.gz", LFS, "a Git LFS pointer", "git -C {0.parent} lfs pull --include={0.name}"),
        ("a.parquet", LFS, "a Git LFS pointer", "git -C {0.parent} lfs pull --include={0.name}"),
        ("a.txt", LFS, "a Git LFS pointer", "git -C {0.parent} lfs pull --include={0.name}"),
        (
            "a.jsonl",
            b"/annex/objects/SHA256E-s99--ab.jsonl\n",
            "a git-annex pointer",
            "git -C {0.parent} annex get a.jsonl",
        ),
        ("a.jsonl", LINES.decode().encode("utf-16"), "in UTF-16", "iconv -f UTF-16 -t UTF-8 <"),
        ("a.jsonl", LINES.decode().encode("utf-16-le"), "in UTF-16LE", "iconv -f UTF-16LE -t UTF-8 <"),
        ("a.jsonl", LINES.decode().encode("utf-16-be"), "in UTF-16BE", "iconv -f UTF-16BE -t UTF-8 <"),
        ("a.jsonl", LINES.decode().encode("utf-32"), "in UTF-32", "iconv -f UTF-32 -t UTF-8 <"),
        ("a.jsonl", LINES.decode().encode("utf-32-be"), "in UTF-32BE", "iconv -f UTF-32BE -t UTF-8 <"),
        ("a.txt", "Once upon a time".encode("utf-16"), "in UTF-16", "iconv -f UTF-16 -t UTF-8 <"),
        ("a.jsonl.gz", packed(LINES.decode().encode("utf-16")), "in UTF-16", "gzip -dc < {} | iconv"),
        ("a.json", ARRAY.encode(), "a JSON array and not JSON lines", "jq -c '.[]'"),
        ("a.json", json.dumps(json.loads(ARRAY), indent=2).encode(), "a JSON array", "jq -c '.[]'"),
        ("a.jsonl", b" \n[\n" + LINES.replace(b"\n", b",\n") + b"{}]", "a JSON array", "jq -c '.[]'"),
        ("a.json.gz", packed(ARRAY.encode()), "a JSON array", "gzip -dc < {} | jq -c '.[]'"),
        ("a", ARRAY.encode(), "a JSON array", "jq -c '.[]'"),
        ("a.json", json.dumps({"text": "x", "id": 1}, indent=1).encode(), "JSON objects and not one a line", "jq -c ."),
        ("a.jsonl", b'{\n"text": "x"\n}\n{\n"text": "y"\n}\n', "JSON objects and not one a line", "jq -c ."),
        ("a.json", b'{"version": "1.1",\n "data": [{"text": "x"}]}', "JSON objects and not one a line", "jq -c ."),
        ("a.jsonl", b"<!DOCTYPE html>\n<html><body>404</body></html>", "a web page", "curl --fail -L"),
        ("a.jsonl.gz", b"\n  <html><head><title>Sign in</title></head></html>", "a web page", "curl --fail -L"),
        ("a.parquet", b"<html>", "a web page", "curl --fail -L"),
        ("a.txt", b"<!doctype HTML><title>503</title>", "a web page", "say --format text"),
        ("a.jsonl", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML", "curl --fail -L"),
        ("a.json", b"<!-- moved -->\n<Error><Code>AccessDenied</Code></Error>", "XML or a web page", "curl --fail -L"),
        ("a.jsonl", lzma.compress(LINES, lzma.FORMAT_ALONE), "lzma", "xz --format=lzma -dc <"),
        ("a.jsonl", tar(LINES), "a tar archive", "tar -xf"),
        ("a.tar.gz", packed(tar(LINES)), "a tar archive", "tar -xf"),
        ("a.tgz", packed(tar(LINES)), "a tar archive", "tar -xf"),
        ("a.jsonl.zip", zipped(LINES), "a zip archive", "unzip"),
        ("a.jsonl", zipped(LINES), "a zip archive", "unzip"),
        ("a.csv", b"id,text\n1,x\n2,y\n", "CSV and not JSON lines", "csv.DictReader(sys.stdin)"),
        ("a.jsonl", b'"id","text"\n1,"x"\n2,"y"\n', "CSV and not JSON lines", "csv.DictReader(sys.stdin)"),
        ("a.csv", b"id;text\n1;x, y\n2;z\n", "CSV and not JSON lines", 'delimiter=";"'),
        ("a.csv.gz", packed(b"text\nhello\nthere\n"), "CSV and not JSON lines", "gzip -dc < {} | python3"),
        ("a.jsonl", '{"题": "好", "text":"x"}'.encode("utf-16-le"), "in UTF-16LE", "iconv -f UTF-16LE"),
        ("a.txt", "ab".encode("utf-16-be"), "in UTF-16BE", "iconv -f UTF-16BE"),
        ("a.jsonl", LINES.replace(b"\n", b"\r"), "JSON lines that end as on an old Macintosh", "tr '\\r' '\\n' <"),
        ("a.jsonl", LINES.replace(b"\n", b""), "JSON objects and not one a line", "jq -c ."),
        ("a.jsonl.gz", packed(LINES) + b"behind", "gzip with other bytes behind it", "gzip -dc <"),
        ("a.tsv", b"id\ttext\n1\tx\n", "TSV and not JSON lines", 'delimiter="\\t"'),
        ("a.jsonl.gz", packed(packed(LINES)), "gzip within gzip", "gzip -dc <"),
        ("a.parquet.gz", packed(b"PAR1" + bytes(50)), "Parquet within gzip", "gzip -dc <"),
        ("a.jsonl", b"ARROW1\0\0" + bytes(50), "an Arrow file", "datasets.Dataset.from_file"),
        ("a.jsonl", b"MMIDIDX\0\0" + bytes(50), "the index of a dataset that is tokenized", "DATA="),
        ("a.jsonl", bytes(range(256)), "binary", "neither text nor JSON lines"),
        ("a.jsonl", bytes(4096), "binary", "neither text nor JSON lines"),
        ("a.jsonl", b"SQLite format 3\0" + bytes(99), "an SQLite database", "convert it to JSON lines"),
        ("a.txt", b"%PDF-1.7\n%\xe2\xe3", "a PDF", "pdftotext"),
    ],
)
def test_what_it_is_and_what_mends_it(tmp_path: Path, name: str, content: bytes, what: str, command: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UsageError) as told:
        prepare(tmp_path, file)
    said = str(told.value)
    assert said.startswith(f"{file} is {what}") and command.format(file) in said and "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("my corpus.json", ARRAY.encode()),
        ("o'brien.jsonl", json.dumps({"text": "x"}, indent=1).encode()),
        ("a.jsonl", LINES.decode().encode("utf-16")),
        ("a.jsonl.gz", packed(LINES.decode().encode("utf-16-le"))),
        ("a.csv", b'id,text\n1,"x\ny"\n2,z\n'),
        ("a.tsv", b"id\ttext\n1\tx\n"),
        ("a.csv", b"id;text\n1;x, y\n2;z\n"),
        ("a.jsonl", LINES.replace(b"\n", b"\r")),
        ("a.jsonl", LINES.replace(b"\n", b"")),
        ("a.jsonl.gz", packed(packed(LINES))),
    ],
)
def test_the_command_mends_it(tmp_path: Path, name: str, content: bytes) -> None:
    """The command as it is printed, in a shell."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as told:
        prepare(tmp_path, tmp_path / name)
    command = str(told.value).partition("`")[2].rpartition("`")[0]
    if "jq" in shlex.split(command) and not shutil.which("jq"):
        pytest.skip("jq is not installed")
    subprocess.run(command, shell=True, check=True)
    made = next(path for path in tmp_path.iterdir() if ".mended" in path.name)
    prepare(tmp_path, made)
    assert documents(tmp_path / "made")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"n": ' + b"9" * 5000 + b', "text": "x"}', "JSON with a number that Python does not hold"),
        (b'{"text": "x", "n": -1' + b"0" * 4400 + b"}", "JSON with a number that Python does not hold"),
        (b'{"text": "x", "tree": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "nested too deep"),
        (b"[" * 100_000, "nested too deep"),
        ('{"text": "x"}'.encode("utf-16-le"), "not "),
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        (b"{'text': 'x'}", "not JSON"),
    ],
)
def test_json_that_python_cannot_hold_is_a_broken_line(tmp_path: Path, line: bytes, why: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(LINES + line + b"\n" + LINES)
    with pytest.raises(prepare_data.BadLines) as told:
        prepare(tmp_path, file)
    assert f"{file}:{len(TEXTS) + 1}: " in str(told.value) and why in str(told.value)
    written = prepare(tmp_path, file, "--skip-bad")
    assert written.bad_lines == 1 and documents(tmp_path / "made") == TEXTS + TEXTS


def test_an_empty_file_is_told_and_left_out(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl").touch()
    (tmp_path / "c.jsonl.gz").write_bytes(packed(b""))
    prepare(tmp_path, tmp_path / "*.jsonl*")
    assert documents(tmp_path / "made") == TEXTS
    assert capsys.readouterr().out == f"{tmp_path}/b.jsonl is empty\n{tmp_path}/c.jsonl.gz is empty\n"


def test_nothing_but_empty_files(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(UsageError, match="no document in them"):
        prepare(tmp_path, tmp_path / "b.jsonl")


def test_a_link_to_nothing_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl").symlink_to("../.git/annex/objects/x1/y2/SHA256E-s9--0/SHA256E-s9--0.jsonl")
    for given in ("*.jsonl", "b.jsonl"):
        with pytest.raises(UsageError, match=r"b.jsonl is a link of git-annex .*`git -C \S+ annex get b.jsonl`"):
            prepare(tmp_path, tmp_path / given)
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.jsonl").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"b.jsonl is a link to nowhere, which is not there"):
        prepare(tmp_path, tmp_path / "*.jsonl")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="is no file: write what comes out of it into one"):
        prepare(tmp_path, tmp_path / "a.jsonl")


def test_a_frame_that_needs_a_dictionary(tmp_path: Path) -> None:
    dictionary = zstandard.train_dictionary(2048, [text.encode() * 3 for text in TEXTS])
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor(dict_data=dictionary).compress(LINES))
    with pytest.raises(UsageError, match="needs the dictionary that it was made with"):
        prepare(tmp_path, tmp_path / "a.jsonl.zst")


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress, gzip.compress, zstd])
def test_a_truncated_file_is_damaged_under_any_name(tmp_path: Path, compress) -> None:
    (tmp_path / "a.jsonl").write_bytes(compress(LINES)[:-10])
    with pytest.raises(UsageError, match=r"a.jsonl is damaged"):
        prepare(tmp_path, tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"\xef\xbb\xbfOnce upon a time"),
        ("a.md", b"Once upon a time"),
        ("a.md", b"<div align=center>\n\n# Title</div>"),
        ("a.txt", b"name, age\nAda, 36\n"),
        ("a.txt", b"[a note]\n{x}"),
        ("a.txt", b"BZh and PK are letters, ORC too"),
    ],
)
def test_text_may_look_like_anything(tmp_path: Path, capsys, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    prepare(tmp_path, tmp_path / name)
    assert documents(tmp_path / "made") == [content.removeprefix(b"\xef\xbb\xbf").decode()]
    assert capsys.readouterr().out == ""


def test_a_web_page_is_text_where_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<html>page</html>")
    prepare(tmp_path, tmp_path / "a.html", "--format", "text")
    assert documents(tmp_path / "made") == ["<html>page</html>"]


def test_json_lines_called_text_are_told(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.txt").write_bytes(LINES)
    prepare(tmp_path, tmp_path / "a.txt")
    assert "it looks like JSON lines: --format jsonl (ARGS=)" in capsys.readouterr().out


def test_words(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a b.jsonl", "c.jsonl", "o'brien.jsonl"):
        Path(name).touch()
    assert sources.words("a b.jsonl") == ["a b.jsonl"]
    assert sources.words("'a b.jsonl' c.jsonl") == ["a b.jsonl", "c.jsonl"]
    with pytest.raises(UsageError, match="one with a quotation mark is quoted"):
        sources.words("o'brien.jsonl c.jsonl")


def test_the_host_looks_without_any_package(project) -> None:
    code = "import sys; sys.path.insert(0, 'assets'); import pretraining.inputs.contents, pretraining.data.sources"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=project, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_head_is_enough_of_a_large_file() -> None:
    assert contents.fault(Path("a.jsonl"), (b'{"text": "' + b"x" * contents.HEAD)[: contents.HEAD], "jsonl") is None
