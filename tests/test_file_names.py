"""What pages and docstrings call by a file's name is there under that name."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SOURCES, BESIDE = (
    [path for room in ("assets", "scripts") for path in sorted((PROJECT / room).rglob(files))]
    for files in ("*.py", "*.md")
)
PAGES = [PROJECT / "README.md", PROJECT / "overview.md", *BESIDE]
THERE = {path.relative_to(PROJECT).as_posix() for path in SOURCES}
OTHERS = ("my.py", "file.py", "utils/train_utils.py")  # the user's, and Megatron-Bridge's


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: path.name)
def test_a_file_that_is_named_is_there(path: Path) -> None:
    named = re.findall(r"(?<![\w/.{}*])(?!tests/)[a-z_][\w/-]*\.py\b", path.read_text(encoding="utf-8"))
    wrong = [name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in THERE)]
    assert [name for name in wrong if not name.endswith(OTHERS)] == []
