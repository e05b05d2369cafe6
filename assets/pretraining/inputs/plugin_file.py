"""What the file of `--plugin` defines, told without executing it; `megatron.plugin` says what each name is for."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

from pretraining.errors import UsageError

NAMES = ("configure", "callbacks", "forward_step", "loss")
MODULE = "playbook_plugin"  # its name, once it is loaded


def inspect(path: Path) -> tuple[str, ...]:
    """Which of `NAMES` a plugin defines at its top level. Raises UsageError for none, or a loss beside a step."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"--plugin {path} cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{path}:{getattr(error, 'lineno', None) or 1}: {error}") from error
    defined = _top_level(tree)
    found = tuple(name for name in NAMES if name in defined)
    if not found:
        near = [each for name in defined for each in difflib.get_close_matches(name, NAMES, n=1)]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--plugin {path} defines none of {', '.join(NAMES)}{hint}")
    if {"forward_step", "loss"} <= set(found):
        raise UsageError(f"--plugin {path}: a forward_step returns its own loss; leave loss out")
    return found


def _top_level(tree: ast.Module) -> list[str]:
    names = []
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.append(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names += [(each.asname or each.name).split(".")[0] for each in statement.names]
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names += [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    return names
