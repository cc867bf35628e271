"""What others import and we do not need is kept out, or comes when it is used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from threading import get_ident
from types import ModuleType
from typing import Any


@contextmanager
def without(module: str) -> Iterator[None]:
    """Inside, importing this module on this thread raises ImportError unless it is imported already."""
    refusal = _Refusal(module)
    sys.meta_path.insert(0, refusal)
    try:
        yield
    finally:
        sys.meta_path.remove(refusal)


class _Refusal:
    # No importlib.abc.MetaPathFinder: it imports tempfile, and more.
    def __init__(self, module: str) -> None:
        self._module = module
        self._thread = get_ident()

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == self._module and get_ident() == self._thread:
            raise ModuleNotFoundError(f"{fullname} is kept out", name=fullname)


class _Later(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # else importing a submodule fails before a finder is asked

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.make_way()  # it may be used before the block ends
        return getattr(import_module(self.__name__), name)

    def make_way(self) -> None:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


@contextmanager
def later(module: str) -> Iterator[None]:
    """Inside, who imports this module gets one that imports it when something in it is used, unless it is imported
    already. Who imports a submodule of it uses it. Beside other threads nothing is held back: they would get that
    one, too."""
    if module in sys.modules or len(sys._current_frames()) > 1:
        yield
        return
    sys.modules[module] = held = _Later(module)
    submodules = _Submodules(held)
    sys.meta_path.insert(0, submodules)
    try:
        yield
    finally:
        sys.meta_path.remove(submodules)
        held.make_way()


class _Submodules:
    """Finds those of a module that is held back. An import hook of somebody else's may want one when it sees pika."""

    def __init__(self, held: _Later) -> None:
        self._held = held

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        name = self._held.__name__
        if not fullname.startswith(f"{name}.") or sys.modules.get(name) is not self._held:
            return None
        self._held.make_way()
        import_module(name)
        if fullname in sys.modules:
            return ModuleSpec(fullname, _Imported(sys.modules[fullname]))  # type: ignore[arg-type]
        from importlib.util import find_spec

        return find_spec(fullname)


class _Imported:
    """A loader (importlib.abc.Loader) of what has been imported by somebody else: executed again, it would be another
    module of the same name."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, _: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec
