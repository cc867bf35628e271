"""What others import and we do not need is kept out, or comes when it is used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
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
    already. Its submodules cannot be imported inside. Beside other threads nothing is held back: they would get that
    one, too."""
    if module in sys.modules or len(sys._current_frames()) > 1:
        yield
        return
    sys.modules[module] = held = _Later(module)
    try:
        yield
    finally:
        held.make_way()
