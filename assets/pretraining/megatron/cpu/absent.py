"""Stand-ins for packages that Megatron-Bridge imports at module level and a dense Llama never calls.

Most of them exist only with CUDA; the others (`modelopt`, `diffusers`, `peft`, `datasets`) could be installed but
would double the download and the start-up for features that pretraining does not use. A stand-in satisfies
`import`, `from ... import`, subclassing, decoration and annotation; calling it for anything else is harmless and
useless, so a feature that really needs one of these packages fails where it first uses a result.
"""

from __future__ import annotations

import abc
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
from collections.abc import Sequence
from typing import Any

from pretraining.megatron import compat


class _AbsentType(abc.ABCMeta):
    """Type of every stand-in object: usable as a base class, as a decorator, and as a decorator factory."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not cls.__dict__.get("_is_stand_in", False):
            return super().__call__(*args, **kwargs)  # a real class derived from a stand-in
        if len(args) == 1 and not kwargs and (inspect.isfunction(args[0]) or inspect.isclass(args[0])):
            return args[0]  # @triton.jit
        return lambda decorated=None, *_, **__: decorated  # @triton.autotune(configs=...)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)


def _stand_in(name: str) -> type:
    return _AbsentType(name, (), {"_is_stand_in": True, "__class_getitem__": classmethod(lambda cls, item: cls)})


class _AbsentModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = compat.ANSWERS.get(f"{self.__name__}.{name}") or _stand_in(name)
        setattr(self, name, value)  # one object a name: registries compare by identity
        return value


class _AbsentFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if any(name == package or name.startswith(package + ".") for package in compat.ABSENT):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _AbsentModule(spec.name)
        module.__version__ = compat.ENGINE_STOOD_FOR
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """Let an import of any of `compat.ABSENT` that is not installed succeed. Real packages always win."""
    if not any(isinstance(finder, _AbsentFinder) for finder in sys.meta_path):
        sys.meta_path.append(_AbsentFinder())
