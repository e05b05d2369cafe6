"""Who may import whom, by the syntax tree: what is imported late or for types alone counts too."""

import ast
import graphlib
from collections import Counter
from pathlib import Path

PROJECT = Path(__file__).parent.parent
PACKAGES = {"playbook": PROJECT / "scripts", "pretraining": PROJECT / "assets"}
# A room may import those to its right; a line of `cli` leads over campaign or cluster to what starts a training.
LINES = (
    "cli publish campaign report profile compare record common",
    "cli sensitivity report profile compare record common",
    "cli publish campaign launch plan record common",
    "cli cluster launch plan record common",
    "run megatron data request inputs record",
    "run megatron numerics request inputs record",
    "selfcheck numerics request inputs record",
)
LARGEST_ROOM = 12  # files beside its __init__


def _modules() -> dict[str, Path]:
    found = {}
    for package, above in PACKAGES.items():
        for path in (above / package).rglob("*.py"):
            found[".".join(path.relative_to(above).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _imports(path: Path) -> set[str]:
    """The project's modules that a file imports, by absolute names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= parts if parts <= set(MODULES) else parts | {str(node.module)}
    return names & set(MODULES)


def _room(module: str) -> str:
    """The package's name and the room's; the package's alone for what stands above the rooms."""
    path = MODULES[module].relative_to(PACKAGES[module.split(".")[0]])
    return ".".join(path.parts[:2]) if len(path.parts) > 2 else path.parts[0]


IMPORTS = {module: _imports(path) - {module} for module, path in MODULES.items()}


def _allowed(importer: str, imported: str) -> bool:
    (package, _, room), (other, _, theirs) = _room(importer).partition("."), _room(imported).partition(".")
    if package != other:
        return package == "playbook"
    lines = [line.split() for line in LINES]
    return room == theirs or not theirs or any(theirs in line[line.index(room) :] for line in lines if room in line)


def test_rooms_import_to_the_right() -> None:
    found = {(module, each) for module, imports in IMPORTS.items() for each in imports if not _allowed(module, each)}
    assert not found


def test_assets_import_no_scripts() -> None:
    for path in (PROJECT / "assets").glob("*.py"):
        assert not any(module.startswith("playbook") for module in _imports(path)), path


def test_no_circle() -> None:
    tuple(graphlib.TopologicalSorter(IMPORTS).static_order())  # CycleError names the modules


def test_a_room_holds_a_dozen_files_and_no_two_share_a_name() -> None:
    files = {module: path for module, path in MODULES.items() if path.name != "__init__.py"}
    sizes = Counter(module.rpartition(".")[0] for module in files)
    assert {room: size for room, size in sizes.items() if size > LARGEST_ROOM} == {}
    assert {name for name, count in Counter(path.stem for path in files.values()).items() if count > 1} == set()
